"""The `asymgrpo` command."""

import os
import sys
from collections.abc import Sequence
from traceback import walk_tb

from asymgrpo_app.errors import ExitCode, RunError, UserError
from asymgrpo_app.runtime.console import complain, show_failure
from asymgrpo_app.runtime.environment import SAFE_PATH
from asymgrpo_app.runtime.stopping import StopRun, end_with_parent, switch
from asymgrpo_app.version import __version__

_PARSERS = {"json", "yaml", "jsonargparse", "argparse", "copy"}


def main(args: Sequence[str] | None = None) -> int:
    """Run the command line and return its exit code; `args` replaces `sys.argv[1:]`.

    Codes: 0 done, 1 stopped by a guard or a failure, 2 bad input, 75 stopped by the time limit, 130 and 143 stopped by
    a signal.

    Raises:
        SystemExit: `--help`, with code 0.
    """
    arguments = list(sys.argv[1:] if args is None else args)
    if arguments == ["--version"]:
        print(f"asymgrpo {__version__}")
        return ExitCode.OK
    if _is_started_rank():
        end_with_parent()
    try:
        with switch.handling_signals():
            code = _run(arguments)
            # A failure during the stop has been reported already; the exit code tells a scheduler of the stop.
            return switch.cause if code != ExitCode.OK and switch.cause is not None else code
    except StopRun as stop:
        if _is_started_rank():
            return ExitCode.OK  # Lightning kills the first rank, with whatever it is doing, when another one fails
        complain(f"asymgrpo: stopped by {stop.cause.name}. {stop.outcome}".rstrip())
        return stop.cause


def _run(arguments: list[str]) -> int:
    # torch and Lightning take seconds to import, so `--version` came first; vllm is imported by the engine alone.
    from asymgrpo_app.runtime.environment import quiet_environment

    quiet_environment()
    try:
        if arguments[:1] == ["score"]:
            from asymgrpo_app.cli import score as score_command

            return int(score_command.run(arguments[1:]))
        if arguments[:1] == ["compare"]:
            from asymgrpo_app.cli import compare as compare_command

            return int(compare_command.run(arguments[1:]))
        if arguments[:1] == ["export"]:
            from asymgrpo_app.cli import export as export_command

            return int(export_command.run(arguments[1:]))
        if arguments[:1] == ["serve"]:
            from asymgrpo_app.cli import serve as serve_command

            return int(serve_command.run(arguments[1:]))
        if arguments[:1] == ["check"]:
            return _checked(arguments[1:])
        from asymgrpo_app.cli import run

        return int(run.run(arguments))
    except UserError as error:
        complain(f"asymgrpo: error: {error}")
        return ExitCode.BAD_INPUT
    except RecursionError as error:
        if not _is_of_a_parser(error):
            raise
        complain("asymgrpo: error: a value in one of the files is nested too deeply to be read.")
        return ExitCode.BAD_INPUT
    except RunError as error:
        complain(f"asymgrpo: stopped: {error}")
        return ExitCode.FAILURE


def _checked(arguments: list[str]) -> int:
    """`asymgrpo check`; vLLM is imported by another process while this one imports what it needs itself."""
    from asymgrpo_app.runtime.vllm_import import ImportTrial

    trial = ImportTrial()
    try:
        from asymgrpo_app.cli import run

        return int(run.check(arguments, trial))
    finally:
        trial.end()


def _is_of_a_parser(error: RecursionError) -> bool:
    """Whether an error arose as a file was parsed, not in a user's own code or in training."""
    frames = [frame for frame, _ in walk_tb(error.__traceback__)]
    return frames[-1].f_globals.get("__name__", "").partition(".")[0] in _PARSERS


def _is_started_rank() -> bool:
    """Whether this process is a further rank that Lightning's launcher started."""
    return os.environ.get("LOCAL_RANK", "0") != "0" and "TORCHELASTIC_RUN_ID" not in os.environ


def entry_point() -> None:
    """The console script."""
    sys.excepthook = show_failure
    if getattr(sys.modules["__main__"], "__spec__", None) is None:  # else `python -m`, which looks there by itself
        # Or the processes that libraries start would look for their modules in the working directory first.
        os.environ.setdefault(*SAFE_PATH)
    sys.exit(main())
