"""Methods against each other: train them, keep what is needed, make the table and the figures.

python -m benchmarks.study run countdown --jobs 2       # 60 runs; interrupted ones go on
python -m benchmarks.study keep countdown               # configs, results and curves into benchmarks/study/kept
python -m benchmarks.study report countdown             # tables of docs/results.md and its figures from these
"""

import argparse
import signal
import sys
from pathlib import Path

from asymgrpo_app.errors import RunError, UserError
from benchmarks.study.definitions import REPOSITORY, STUDIES, study_named
from benchmarks.study.records import keep, read_records
from benchmarks.study.report import write_report
from benchmarks.study.runs import run_all


def main() -> None:
    """Run one of the three commands."""
    options = _arguments()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # as an exception, so that it ends the runs as well
    try:
        study = study_named(options.study)
        folder = options.folder or REPOSITORY / "runs/study" / study.name
        if options.command == "run":
            run_all(study, folder, options.jobs, options.methods or study.methods, options.seeds or study.seeds)
        elif options.command == "keep":
            print(f"{keep(study, folder)} runs kept.")
        else:
            for path in write_report(study, read_records(study), options.docs):
                print(path)
    except UserError as error:
        sys.exit(_said(error, 2))
    except RunError as error:
        sys.exit(_said(error, 1))


def _said(error: Exception, code: int) -> int:
    print(f"Error: {error}", file=sys.stderr)
    return code


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)
    for name in ("run", "keep", "report"):
        command = commands.add_parser(name)
        command.add_argument("study", help=", ".join(STUDIES))
        command.add_argument("--folder", type=Path, help="of the runs; default: runs/study/<study>")
        if name == "run":
            command.add_argument("--jobs", type=int, default=1, help="runs side by side, each with cores of its own")
            command.add_argument("--methods", nargs="+", help="default: all of the study's")
            command.add_argument("--seeds", nargs="+", type=int, help="default: the study's")
        if name == "report":
            command.add_argument("--docs", type=Path, default=REPOSITORY / "docs", help="where results.md is")
    return parser.parse_args()


if __name__ == "__main__":
    main()
