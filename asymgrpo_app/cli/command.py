"""The `asymgrpo` command."""

import os
import sys
from collections.abc import Sequence
from importlib import import_module
from traceback import walk_tb
from typing import Any

from asymgrpo_app.cli.commands import OF_A_CONFIG, check_command, check_options_of_config, long_options, usage
from asymgrpo_app.cli.config_files import check_config_file, config_paths
from asymgrpo_app.cli.paths import expand_config_names
from asymgrpo_app.errors import ExitCode, RunError, UserError
from asymgrpo_app.runtime.compat import defer_transformers
from asymgrpo_app.runtime.console import complain, show_failure
from asymgrpo_app.runtime.environment import SAFE_PATH, quiet_environment
from asymgrpo_app.runtime.launch import check_launch, is_started_rank
from asymgrpo_app.runtime.stopping import StopRun, end_with_parent, switch
from asymgrpo_app.runtime.streams import keep_streams, write_failure
from asymgrpo_app.version import __version__

_PARSERS = {"json", "yaml", "jsonargparse", "argparse", "copy"}


def main(args: Sequence[str] | None = None) -> int:
    """Run the command line and return its exit code; `args` replaces `sys.argv[1:]`.

    Codes: 0 done, 1 stopped by a guard or a failure, 2 bad input, 75 stopped by the time limit, SIGUSR1 or SIGUSR2;
    129, 130 and 143 stopped by SIGHUP, SIGINT and SIGTERM.

    Raises:
        SystemExit: `--help` of a command, with code 0.
    """
    arguments = list(sys.argv[1:] if args is None else args)
    if arguments[:1] in (["--version"], ["--help"], ["-h"]):
        print(f"asymgrpo {__version__}" if arguments[0] == "--version" else usage())
        return ExitCode.OK
    started = is_started_rank()  # before the run, which tells further ranks that this process is their parent
    if started:
        end_with_parent()
    try:
        with switch.handling_signals():
            code = _run(arguments)
            # A failure during the stop has been reported already; the exit code tells a scheduler of the stop.
            return switch.cause.code if code != ExitCode.OK and switch.cause is not None else code
    except StopRun as stop:
        if started:
            return ExitCode.OK  # Lightning kills the first rank, with whatever it is doing, when another one fails
        complain(f"asymgrpo: stopped by {stop.cause.name}. {stop.outcome}".rstrip())
        return stop.cause.code


def _run(arguments: list[str]) -> int:
    # torch and Lightning take seconds to import, so what needs neither comes first; the engine alone imports vllm.
    quiet_environment()
    try:
        check_command(arguments)
        check_launch()
        command, rest = arguments[0], arguments[1:]
        if command in OF_A_CONFIG:
            rest = expand_config_names(long_options(rest))
            check_options_of_config(rest)
            for path in config_paths(rest):  # as the parser does, but at once
                check_config_file(path)
            defer_transformers()
            if command == "check":
                return _checked(rest)
            from asymgrpo_app.cli import run

            return int(run.run([command, *rest]))
        return int(import_module(f"asymgrpo_app.cli.{command}").run(rest))
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


def entry_point() -> None:
    """The console script."""
    keep_streams()
    sys.excepthook = show_failure
    if getattr(sys.modules["__main__"], "__spec__", None) is None:  # else `python -m`, which looks there by itself
        # Or the processes that libraries start would look for their modules in the working directory first.
        os.environ.setdefault(*SAFE_PATH)
    try:
        code: Any = main()
    except SystemExit as stop:  # the parser's, after --help or --print_config
        code = stop.code
    sys.stdout.flush()
    if (failure := write_failure()) is not None:
        complain(f"asymgrpo: the output is not whole: {failure.strerror}.")
        if sys.argv[1:2] != ["fit"] or "--print_config" in sys.argv:  # all of a run is in its folder
            code = code or ExitCode.FAILURE
    sys.exit(code)
