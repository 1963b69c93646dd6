"""Predictions: a JSON Lines file with every completion of an evaluation, written as it goes and resumable.

Beside `predictions.jsonl` lies `predictions.run.json`, which says what was evaluated and how; a file is only continued
by the run that began it. A line belongs to the file once its line feed is written: what an interruption left behind the
last line feed is dropped, and written again.
"""

import json
import os
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from itertools import groupby
from operator import attrgetter
from pathlib import Path

from asymgrpo_app.errors import UserError
from asymgrpo_app.evaluation.files import checked, parsed, read_record, write_record, writing
from asymgrpo_app.evaluation.outcomes import Key, Prediction, ProblemOutcome
from asymgrpo_app.evaluation.results import EvaluationProtocol, EvaluationRun, distinct
from asymgrpo_app.rewards.base import Status


@dataclass(frozen=True)
class PredictionHeader:
    """The description of a prediction file.

    Attributes:
        run: The policy, seed and program of the evaluation.
        sets: How each set was evaluated, by its name.
    """

    run: EvaluationRun
    sets: dict[str, EvaluationProtocol]


def header_path(path: Path) -> Path:
    """The path of a prediction file's description."""
    return path.with_suffix(".run.json")


def encoded(prediction: Prediction) -> bytes:
    """The line of the file, with its line feed. ASCII: completions hold line separators and half surrogate pairs."""
    return (json.dumps(asdict(prediction), allow_nan=False) + "\n").encode("ascii")


# ---- reading ----


def read_header(path: Path) -> PredictionHeader | None:
    """The description beside a prediction file, if there is one.

    Raises:
        UserError: The description is broken.
    """
    beside = header_path(path)
    return read_record(PredictionHeader, beside) if beside.exists() else None


def read_predictions(path: Path) -> Iterator[Prediction]:
    """The completions of a file one by one, without a half-written last line.

    Raises:
        UserError: The file cannot be read, a line is broken, or a completion is there twice.
    """
    lines_of: dict[Key, int] = {}
    uids: dict[tuple[str, int], str] = {}
    try:
        with path.open("rb") as file:
            for number, line in enumerate(file, start=1):
                if not line.endswith(b"\n"):
                    return
                where = f"{path}, line {number}"
                prediction = checked(Prediction, parsed(line, where), where)
                if (earlier := lines_of.setdefault(prediction.key, number)) != number:
                    raise UserError(f"{where} repeats the completion of line {earlier}.")
                uid = uids.setdefault((prediction.set, prediction.index), prediction.uid)
                if uid != prediction.uid:
                    raise UserError(f"{where}: problem {prediction.index} was {uid!r}, now it is {prediction.uid!r}.")
                yield prediction
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror or error}.") from error


def finished_sets(
    path: Path, predictions: Iterable[Prediction], header: PredictionHeader | None
) -> dict[str, dict[str, ProblemOutcome]]:
    """The outcomes of a finished file: set -> uid -> outcome, problems in their order.

    Args:
        path: For messages.
        predictions: All of the file.
        header: The file's description; without it, all problems have as many completions as the one with most.

    Raises:
        UserError: A problem or a completion is missing, or there is one too many.
    """
    by_set: dict[str, list[Prediction]] = {}
    for prediction in predictions:
        by_set.setdefault(prediction.set, []).append(prediction)
    if not by_set:
        raise UserError(f"{path} has no completions.")
    if header is not None and (unlike := sorted(set(by_set) ^ set(header.sets))):
        raise UserError(f"{path}: set {unlike[0]} is only in one of the file and {header_path(path).name}.")
    outcomes = {}
    for name, own in by_set.items():
        in_order = sorted(own, key=attrgetter("index", "sample"))
        problems = [list(group) for _, group in groupby(in_order, key=attrgetter("index"))]
        samples = header.sets[name].samples if header else max(map(len, problems))
        size = header.sets[name].problems if header else len(problems)
        whole = sum(
            len(group) == samples and [prediction.sample for prediction in group] == list(range(len(group)))
            for group in problems
        )
        if not whole == len(problems) == size:
            raise UserError(
                f"{path} is not finished: {whole} of {size} problems of set {name} have their {samples} completions; "
                "resume the prediction."
            )
        classes = _has_classes(own)
        uids = distinct([group[0].uid for group in problems])
        outcomes[name] = {uid: ProblemOutcome(group, classes) for uid, group in zip(uids, problems, strict=True)}
    return outcomes


def _has_classes(predictions: Sequence[Prediction]) -> bool:
    """Whether a set's verifier has a notion of equal answers: not if it finds answers, but no class of any."""
    any_class = any(prediction.answer_class is not None for prediction in predictions)
    return any_class or not any(prediction.status == Status.OK for prediction in predictions)


# ---- writing ----


class PredictionWriter:
    """Appends completions to a file, each as soon as it is known; goes on with a file that this very run began.

    Args:
        path: The file; begun if it does not exist.
        header: The description of the evaluation.

    Raises:
        UserError: The file exists, and is broken or was begun by another run.
        RunError: It cannot be written.

    Attributes:
        written: All completions in the file by their key, without their texts.
    """

    def __init__(self, path: Path, header: PredictionHeader) -> None:
        self.path, self.header = path, header
        self.written: dict[Key, Prediction] = {}
        if path.exists() or header_path(path).exists():
            self._check_same_run()
            self._take_up()
        else:
            write_record(header_path(path), header)
        with writing(path):
            self._file = path.open("ab")

    def is_complete(self, set_name: str, index: int) -> bool:
        """Whether all completions of a problem are written, for a resumed run."""
        return all((set_name, index, sample) in self.written for sample in range(self.header.sets[set_name].samples))

    def write(self, predictions: Iterable[Prediction]) -> None:
        """Append the completions that are not in the file yet; each line is handed to the system at once."""
        with writing(self.path):
            for prediction in predictions:
                if prediction.key not in self.written:
                    self._file.write(encoded(prediction))
                    self._file.flush()  # a killed process loses what is still in its own buffer
                    self.written[prediction.key] = replace(prediction, completion="")

    def close(self) -> None:
        """Close the file. Safe to call twice."""
        if not self._file.closed:
            os.fsync(self._file.fileno())
            self._file.close()

    def _check_same_run(self) -> None:
        begun = read_header(self.path)
        if begun is None:
            raise UserError(f"{self.path} cannot be resumed: {header_path(self.path).name} is missing beside it.")
        settings = _settings(begun)
        for name, now in _settings(self.header).items():
            if settings.get(name) != now:
                raise UserError(
                    f"{self.path} cannot be resumed: {name} was {settings.get(name)!r} and is {now!r} now; restore it, "
                    "or choose another file."
                )

    def _take_up(self) -> None:
        """Read the existing file, and drop a half-written last line."""
        if not self.path.exists():
            return
        for prediction in read_predictions(self.path):
            protocol = self.header.sets.get(prediction.set)
            if protocol is None or prediction.sample >= protocol.samples:
                raise UserError(f"{self.path} has a completion that does not belong to this run: {prediction.key}.")
            self.written[prediction.key] = replace(prediction, completion="")
        with self.path.open("rb+") as file:
            file.truncate(sum(len(line) for line in file if line.endswith(b"\n")))


def _settings(header: PredictionHeader) -> dict[str, object]:
    """What an interruption must not change, by name."""
    run = {name: getattr(header.run, name) for name in ("model", "checkpoint", "seed")}
    protocols = {
        f"{setting} of set {name}": value
        for name, protocol in header.sets.items()
        for setting, value in asdict(protocol).items()
    }
    return run | {"the list of sets": sorted(header.sets)} | protocols
