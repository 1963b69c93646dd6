"""The `asymgrpo` command."""

import sys
from collections.abc import Sequence

from asymgrpo_app import __version__
from asymgrpo_app.errors import ExitCode, RunError, UserError


def main(args: Sequence[str] | None = None) -> int:
    """Run the command line and return its exit code; `args` replaces `sys.argv[1:]`.

    Codes: 0 done, 1 stopped by a guard or a failure, 2 bad input, 130 and 143 ended by a signal.

    Raises:
        SystemExit: `--help`, with code 0.
    """
    arguments = list(sys.argv[1:] if args is None else args)
    if arguments == ["--version"]:
        print(f"asymgrpo {__version__}")
        return ExitCode.OK
    # torch and Lightning take seconds to import, so `--version` comes first; vllm is imported by the engine alone.
    from asymgrpo_app.environment import quiet_environment

    quiet_environment()
    try:
        if arguments[:1] == ["score"]:
            from asymgrpo_app import score_command

            return int(score_command.run(arguments[1:]))
        if arguments[:1] == ["compare"]:
            from asymgrpo_app import compare_command

            return int(compare_command.run(arguments[1:]))
        if arguments[:1] == ["export"]:
            from asymgrpo_app import export_command

            return int(export_command.run(arguments[1:]))
        from asymgrpo_app import lightning_cli

        if arguments[:1] == ["check"]:
            return int(lightning_cli.check(arguments[1:]))
        return int(lightning_cli.run(arguments))
    except UserError as error:
        print(f"asymgrpo: error: {error}", file=sys.stderr)
        return ExitCode.BAD_INPUT
    except RunError as error:
        print(f"asymgrpo: stopped: {error}", file=sys.stderr)
        return ExitCode.FAILURE
    except KeyboardInterrupt:
        return ExitCode.INTERRUPTED


def entry_point() -> None:
    """The console script."""
    sys.exit(main())
