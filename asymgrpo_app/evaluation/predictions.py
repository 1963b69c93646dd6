"""Predictions: a JSON Lines file with every completion of an evaluation, written as it goes and resumable.

Beside `predictions.jsonl` lies `predictions.run.json`, which says what was evaluated and how; a file is only continued
by the run that began it. A line belongs to the file once its line feed is written: what an interruption left behind the
last line feed is dropped, and written again.
"""

import json
import os
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from math import isfinite
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Self

from asymgrpo_app.errors import RunError, UserError
from asymgrpo_app.evaluation.files import from_plain, read_json, readable_json, refuse_existing, to_plain, write_whole
from asymgrpo_app.evaluation.outcomes import ProblemOutcome, outcomes_of
from asymgrpo_app.evaluation.results import EvaluationProtocol, EvaluationRun
from asymgrpo_app.rewards.base import Status

if TYPE_CHECKING:  # compare needs no torch
    from asymgrpo_app.rollout.types import RolloutBatch

_FORMAT = 1


@dataclass(frozen=True)
class Prediction:
    """One completion: a line of the file.

    Attributes:
        set: Name of the evaluation set.
        uid: Name of the problem.
        index: Index of the problem in the set.
        sample: Number of the completion, from 0.
        completion: Its text.
        correct: Whether it is right; a truncated one never is.
        status: Status of the verdict: `ok`, `no_answer`, `timeout` or `error`.
        truncated: Whether the length limit cut it.
        length: Tokens, the end token included.
        logprob_sum: Sum of the sampler's log-probabilities of its tokens, in nats.
        answer_class: Number of its answer among the different answers to the problem; None without an answer, or
            without a notion of equal answers.
    """

    set: str
    uid: str
    index: int
    sample: int
    completion: str
    correct: bool
    status: str
    truncated: bool
    length: int
    logprob_sum: float
    answer_class: int | None

    @property
    def key(self) -> tuple[str, int, int]:
        """The set, index and sample, which identify it within the file."""
        return self.set, self.index, self.sample


@dataclass(frozen=True)
class PredictionHeader:
    """The description of a prediction file.

    Attributes:
        run: The policy, seed and program of the evaluation.
        sets: How each set was evaluated, by its name.
    """

    run: EvaluationRun
    sets: dict[str, EvaluationProtocol]


def predictions_of(
    set_name: str, rollouts: "RolloutBatch", answers: Sequence[Sequence[int | None] | None] | None = None
) -> list[Prediction]:
    """The lines of judged rollouts, problem by problem; they hold the same values as `outcomes_of`.

    Args:
        set_name: Name of the evaluation set.
        rollouts: P problems with their completions.
        answers: [P][n] classes of equal answers, None for a problem (or all) without such a notion.
    """
    return [
        Prediction(
            set=set_name,
            uid=prompt.prompt.uid,
            index=prompt.index,
            sample=sample,
            completion=judged.text,
            correct=outcome.correct[sample],
            status=judged.verdict.status.value,
            truncated=outcome.truncated[sample],
            length=outcome.lengths[sample],
            logprob_sum=outcome.logprob_sums[sample],
            answer_class=outcome.answers[sample] if outcome.answers is not None else None,
        )
        for prompt, group, outcome in zip(
            rollouts.prompts, rollouts.groups, outcomes_of(rollouts, answers), strict=True
        )
        for sample, judged in enumerate(group)
    ]


def header_path(path: Path) -> Path:
    """The path of a prediction file's description."""
    return path.with_suffix(".run.json")


def encoded(prediction: Prediction) -> bytes:
    """The line of the file, with its line feed. ASCII: completions hold line separators and half surrogate pairs."""
    return (json.dumps(to_plain(prediction), allow_nan=False) + "\n").encode("ascii")


# ---- reading ----


def read_header(path: Path) -> PredictionHeader | None:
    """The description beside a prediction file, if there is one.

    Raises:
        UserError: The description is broken.
    """
    beside = header_path(path)
    if not beside.exists():
        return None
    data = read_json(beside)
    if not isinstance(data, dict) or data.pop("format", None) != _FORMAT:
        raise UserError(f"{beside} does not describe predictions, or was written by another version of asymgrpo.")
    return from_plain(PredictionHeader, data, str(beside))


def read_predictions(path: Path) -> Iterator[Prediction]:
    """The completions of a file one by one, without a half-written last line.

    Raises:
        UserError: The file cannot be read, a line is broken, or a completion is there twice.
    """
    try:
        with path.open("rb") as file:
            yield from _parsed(path, (line for line in file if line.endswith(b"\n")))
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror or error}.") from error


def _parsed(path: Path, lines: Iterable[bytes]) -> Iterator[Prediction]:
    seen: dict[tuple[str, int, int], int] = {}
    uids: dict[tuple[str, int], str] = {}
    for number, line in enumerate(lines, start=1):
        where = f"{path}, line {number}"
        prediction = _decoded(line, where)
        if prediction.key in seen:
            raise UserError(f"{where} repeats the completion of line {seen[prediction.key]}.")
        seen[prediction.key] = number
        problem = prediction.set, prediction.index
        if uids.setdefault(problem, prediction.uid) != prediction.uid:
            raise UserError(f"{where}: problem {prediction.index} was {uids[problem]!r}, now it is {prediction.uid!r}.")
        yield prediction


def _decoded(line: bytes, where: str) -> Prediction:
    try:
        data = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise UserError(f"{where} is not JSON in UTF-8.") from error
    prediction = from_plain(Prediction, data, where)
    if prediction.status not in list(Status):
        raise UserError(f"{where}: status must be one of {', '.join(Status)}, got {prediction.status!r}.")
    for name, value, least in (
        ("index", prediction.index, 0),
        ("sample", prediction.sample, 0),
        ("length", prediction.length, 1),
        ("answer_class", prediction.answer_class or 0, 0),
    ):
        if value < least:
            raise UserError(f"{where}: {name} must be at least {least}, got {value}.")
    if not isfinite(prediction.logprob_sum):
        raise UserError(f"{where}: logprob_sum must be a number, got {prediction.logprob_sum}.")
    return prediction


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
    by_set: dict[str, dict[int, dict[int, Prediction]]] = {}
    for prediction in predictions:
        by_set.setdefault(prediction.set, {}).setdefault(prediction.index, {})[prediction.sample] = prediction
    if not by_set:
        raise UserError(f"{path} has no completions.")
    if header is not None and (unlike := sorted(set(by_set) ^ set(header.sets))):
        raise UserError(f"{path}: set {unlike[0]} is only in one of the file and {header_path(path).name}.")
    outcomes = {}
    for name, problems in by_set.items():
        samples = header.sets[name].samples if header else max(map(len, problems.values()))
        size = header.sets[name].problems if header else len(problems)
        if len(problems) != size:
            raise UserError(
                f"{path} is not finished: set {name} has {len(problems)} of {size} problems; resume the prediction."
            )
        for index, completions in problems.items():
            if sorted(completions) != list(range(samples)):
                raise UserError(
                    f"{path}: problem {index} of set {name} has {len(completions)} completions instead of number 0 to "
                    f"{samples - 1}; resume the prediction."
                )
        outcomes[name] = _outcomes(problems)
    return outcomes


def _outcomes(problems: Mapping[int, Mapping[int, Prediction]]) -> dict[str, ProblemOutcome]:
    """Outcomes by uid. A set whose verifier finds answers but no class has no notion of equal answers."""
    everything = [prediction for by_sample in problems.values() for prediction in by_sample.values()]
    any_class = any(prediction.answer_class is not None for prediction in everything)
    has_classes = any_class or not any(prediction.status == Status.OK for prediction in everything)
    found: dict[str, ProblemOutcome] = {}
    again: Counter[str] = Counter()
    for index in sorted(problems):
        predictions = [problems[index][sample] for sample in sorted(problems[index])]
        uid = predictions[0].uid
        again[uid] += 1
        found[uid if again[uid] == 1 else f"{uid}#{again[uid]}"] = ProblemOutcome(
            index=index,
            correct=[prediction.correct for prediction in predictions],
            statuses=[Status(prediction.status) for prediction in predictions],
            truncated=[prediction.truncated for prediction in predictions],
            lengths=[prediction.length for prediction in predictions],
            logprob_sums=[prediction.logprob_sum for prediction in predictions],
            answers=[prediction.answer_class for prediction in predictions] if has_classes else None,
        )
    return found


# ---- writing ----


class PredictionWriter:
    """Appends completions to a file, each as soon as it is known; a context manager.

    Args:
        path: The file.
        header: The description of the evaluation.
        resume: Go on with a file that this very run began; without it an existing file is refused. A file that does not
            exist is begun.

    Raises:
        UserError: The file exists (without `resume`), is broken, or was begun by another run.
        RunError: It cannot be written.
    """

    def __init__(self, path: Path, header: PredictionHeader, *, resume: bool = False) -> None:
        self.path, self.header = path, header
        self.predictions: list[Prediction] = []  # all that are in the file, without their texts
        if path.exists() or header_path(path).exists():
            if not resume:
                raise UserError(f"{path} exists already: resume it, remove it, or choose another name.")
            self._check_same_run()
            self._take_up()
        else:
            refuse_existing(path)
            text = readable_json({"format": _FORMAT, **to_plain(header)})
            write_whole(header_path(path), f"{text}\n".encode())
        self.done = {prediction.key for prediction in self.predictions}
        try:
            self._file = path.open("ab")
        except OSError as error:
            raise RunError(f"{path} cannot be written: {error.strerror or error}.") from error

    def is_complete(self, set_name: str, index: int) -> bool:
        """Whether all completions of a problem are written, for a resumed run."""
        return all((set_name, index, sample) in self.done for sample in range(self.header.sets[set_name].samples))

    def write(self, predictions: Iterable[Prediction]) -> None:
        """Append the completions that are not in the file yet; each line is handed to the system at once."""
        try:
            for prediction in predictions:
                if prediction.key not in self.done:
                    self._file.write(encoded(prediction))
                    self._file.flush()  # a killed process loses what is still in its own buffer
                    self.done.add(prediction.key)
                    self.predictions.append(replace(prediction, completion=""))
        except OSError as error:
            raise RunError(f"{self.path} cannot be written: {error.strerror or error}.") from error

    def close(self) -> None:
        """Close the file. Safe to call twice."""
        if not self._file.closed:
            self._file.flush()
            os.fsync(self._file.fileno())
            self._file.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _check_same_run(self) -> None:
        begun = read_header(self.path)
        if begun is None:
            raise UserError(f"{self.path} cannot be resumed: {header_path(self.path).name} is missing beside it.")
        for name in ("model", "checkpoint", "seed"):
            _refuse_change(self.path, name, getattr(begun.run, name), getattr(self.header.run, name))
        _refuse_change(self.path, "the list of sets", sorted(begun.sets), sorted(self.header.sets))
        for set_name, protocol in self.header.sets.items():
            for field in fields(EvaluationProtocol):
                then, now = getattr(begun.sets[set_name], field.name), getattr(protocol, field.name)
                _refuse_change(self.path, f"{field.name} of set {set_name}", then, now)

    def _take_up(self) -> None:
        """Read the existing file, and drop a half-written last line."""
        if not self.path.exists():
            return
        for prediction in read_predictions(self.path):
            protocol = self.header.sets.get(prediction.set)
            if protocol is None or prediction.sample >= protocol.samples:
                raise UserError(f"{self.path} has a completion that does not belong to this run: {prediction.key}.")
            self.predictions.append(replace(prediction, completion=""))
        with self.path.open("rb+") as file:
            file.truncate(sum(len(line) for line in file if line.endswith(b"\n")))


def _refuse_change(path: Path, name: str, then: object, now: object) -> None:
    if then != now:
        raise UserError(
            f"{path} cannot be resumed: {name} was {then!r} and is {now!r} now; restore it, or choose another file."
        )
