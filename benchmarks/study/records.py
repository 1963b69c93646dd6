"""What is kept of a run: its config, its results, and a few of its curves."""

import json
import shutil
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean

from asymgrpo_app.callbacks.evaluation import RESULTS_NAME
from asymgrpo_app.errors import UserError
from asymgrpo_app.evaluation.results import Results, read_results
from benchmarks.study.definitions import FOLDER, Study
from benchmarks.study.runs import COST_NAME

KEPT = FOLDER / "kept"
_CURVES_NAME = "curves.json"
_CONFIG_NAME = "config.yaml"
BINS = ("p00-25", "p25-50", "p50-75", "p75-100")
_TAGS = (
    "actor/entropy",
    "actor/entropy_pos",
    "actor/entropy_neg",
    "reward/mean",
    "reward/solved_none",
    "reward/solved_all",
    "method/logprob_change_pos",
    *(f"method/cov_{own}" for own in BINS),
)


@dataclass(frozen=True)
class Record:
    """One run.

    Attributes:
        method: Name of its overlay.
        seed: Its seed.
        results: Of the validation after its last step.
        curves: (step, value) by TensorBoard tag, to five digits.
        seconds: How long it took, start and end of the program included.
        cores: On so many.
    """

    method: str
    seed: int
    results: Results
    curves: dict[str, list[tuple[int, float]]]
    seconds: float
    cores: int

    def last(self, tag: str, window: int) -> float:
        """Mean of a curve over the last `window` RL steps, those in which it has a value."""
        end = max(step for step, _ in self.curves[tag])
        return fmean(value for step, value in self.curves[tag] if step > end - window)


def keep(study: Study, folder: Path, kept: Path = KEPT) -> int:
    """Take over what is needed from finished runs; how many there were.

    Raises:
        UserError: There is no finished run in `folder`.
    """
    runs = [
        (run, kept / study.name / run.name)
        for run in _run_folders(study, folder)
        if (run / RESULTS_NAME).exists() and (run / COST_NAME).exists()
    ]
    if not runs:
        raise UserError(f"{folder} has no finished run of the study {study.name}.")
    for run, target in runs:
        target.mkdir(parents=True, exist_ok=True)
        for name in (RESULTS_NAME, COST_NAME, _CONFIG_NAME):
            shutil.copyfile(run / name, target / name)
        curves = _curves(run / "tensorboard", [*_TAGS, *(f"val/{study.set}/{name}" for name in study.metrics)])
        lines = ",\n".join(f"{json.dumps(tag)}: {json.dumps(points)}" for tag, points in curves.items())
        (target / _CURVES_NAME).write_text(f"{{\n{lines}\n}}\n")
    return len(runs)


def _run_folders(study: Study, folder: Path) -> Iterable[Path]:
    return (folder / f"{method}-{seed}" for method in study.methods for seed in study.seeds)


def _curves(events: Path, tags: Iterable[str]) -> dict[str, list[tuple[int, float]]]:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    read = EventAccumulator(str(events), size_guidance={"scalars": 0})
    read.Reload()
    known = read.Tags()["scalars"]
    return {
        tag: [(event.step, float(f"{event.value:.5g}")) for event in read.Scalars(tag)] for tag in tags if tag in known
    }


def read_records(study: Study, kept: Path = KEPT) -> list[Record]:
    """All kept runs of a study.

    Raises:
        UserError: One is missing.
    """
    records = []
    for method in study.methods:
        for seed in study.seeds:
            folder = kept / study.name / f"{method}-{seed}"
            if not folder.is_dir():
                raise UserError(f"{folder} is missing: run the study, then keep its results.")
            cost = json.loads((folder / COST_NAME).read_text())
            curves = {
                tag: [(int(step), float(value)) for step, value in points]
                for tag, points in json.loads((folder / _CURVES_NAME).read_text()).items()
            }
            results = read_results(folder / RESULTS_NAME)
            records.append(Record(method, seed, results, curves, cost["seconds"], cost["cores"]))
    return records
