"""`asymgrpo compare`: the paired difference between evaluations of the same problems."""

from collections.abc import Sequence
from pathlib import Path

from asymgrpo_app.cli.command_parser import CommandParser
from asymgrpo_app.errors import ExitCode, UserError
from asymgrpo_app.evaluation.compare import compare, comparison_table
from asymgrpo_app.evaluation.files import readable_json, refuse_existing, to_plain, write_whole
from asymgrpo_app.evaluation.results import ACCURACY

_DESCRIPTION = """Compare evaluations of the same problems.

The first file is the baseline. Problems are paired, so that what two evaluations share (easy and hard problems) does
not blur their difference; its 95 % interval treats the problem as the unit."""


def run(arguments: Sequence[str]) -> int:
    """Compare files, print a table, and write the outputs that were asked for; returns the exit code.

    Raises:
        UserError: The arguments or a file cannot be used.
        RunError: An output cannot be written.
    """
    config = _parser().parse_args(list(arguments))
    plot, output = (Path(name) if name is not None else None for name in (config.plot, config.output))
    for option, path in (("--plot", plot), ("--output", output)):
        if path is not None:
            refuse_existing(path, overwrite=config.overwrite, option=option)
    if plot is not None and plot.suffix.lower() != ".png":
        raise UserError(f"--plot {plot}: the plot is a PNG file, so its name must end in .png.")
    content = compare([Path(name) for name in config.files], config.metric, config.set)
    print(comparison_table(content))
    if output is not None:
        text = readable_json(to_plain(content))
        write_whole(output, f"{text}\n".encode(), overwrite=config.overwrite)
    if plot is not None:
        from asymgrpo_app.evaluation.plot import comparison_png

        write_whole(plot, comparison_png(content), overwrite=config.overwrite)
    return ExitCode.OK


def _parser() -> CommandParser:
    parser = CommandParser(prog="asymgrpo compare", description=_DESCRIPTION)
    parser.add_argument(
        "files",
        type=str,
        nargs="+",
        help="Two or more results.json, folders with one, or prediction files (.jsonl); the first is the baseline.",
    )
    parser.add_argument(
        "--metric",
        type=str,
        default=ACCURACY,
        help="What to compare: avg@8, pass@4, maj@8, greedy, truncated, length, ...; accuracy is each set's avg@n or "
        "greedy.",
    )
    parser.add_argument("--set", type=str | None, default=None, help="Compare on this set alone; default: on all.")
    parser.add_argument("--plot", type=str | None, default=None, help="Draw the differences into this PNG file.")
    parser.add_argument("--output", type=str | None, default=None, help="Write the comparison to this JSON file.")
    parser.add_argument("--overwrite", action="store_true", help="Replace what --plot and --output name.")
    return parser
