"""Compare evaluations of the same problems.

The first file is the baseline. Problems are paired, so that what two evaluations share (easy and hard problems) does
not blur their difference; its 95 % interval treats the problem as the unit.
"""

from collections.abc import Sequence
from pathlib import Path

from asymgrpo_app.cli.command_parser import CommandParser
from asymgrpo_app.errors import ExitCode, UserError
from asymgrpo_app.evaluation.compare import compare, comparison_table
from asymgrpo_app.evaluation.files import refuse_existing, whole_file, write_record
from asymgrpo_app.evaluation.results import ACCURACY
from asymgrpo_app.runtime.console import say


def run(arguments: Sequence[str]) -> int:
    """Compare files, print a table, and write the outputs that were asked for; returns the exit code.

    Raises:
        UserError: The arguments or a file cannot be used.
        RunError: An output cannot be written.
    """
    options = _parser().parse_args(list(arguments))
    for option in ("plot", "output"):
        if options[option] is not None:
            refuse_existing(options[option], overwrite=options.overwrite, option=f"--{option}")
    if options.plot is not None and options.plot.suffix.lower() != ".png":
        raise UserError(f"--plot {options.plot}: the plot is a PNG file, so its name must end in .png.")
    content = compare(options.files, options.metric, options.set)
    say(comparison_table(content))
    if options.output is not None:
        write_record(options.output, content, overwrite=options.overwrite)
    if options.plot is not None:
        from asymgrpo_app.evaluation.plot import comparison_png

        with whole_file(options.plot, overwrite=options.overwrite) as file:
            file.write(comparison_png(content))
    return ExitCode.OK


def _parser() -> CommandParser:
    parser = CommandParser(prog="asymgrpo compare", description=__doc__)
    parser.add_argument(
        "files",
        type=Path,
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
    parser.add_argument("--plot", type=Path | None, default=None, help="Draw the differences into this PNG file.")
    parser.add_argument("--output", type=Path | None, default=None, help="Write the comparison to this JSON file.")
    parser.add_argument("--overwrite", action="store_true", help="Replace what --plot and --output name.")
    return parser
