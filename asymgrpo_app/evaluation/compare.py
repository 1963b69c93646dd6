"""The paired difference between evaluations of the same problems."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from math import isnan, nan
from pathlib import Path
from typing import Any

from asymgrpo_app.errors import UserError
from asymgrpo_app.evaluation.intervals import difference_interval, mean_interval, mean_over_sets
from asymgrpo_app.evaluation.outcomes import UNITS, MetricChoice, ProblemOutcome, estimate
from asymgrpo_app.evaluation.predictions import finished_sets, read_header, read_predictions
from asymgrpo_app.evaluation.results import (
    ACCURACY,
    EvaluationProtocol,
    StoredEstimate,
    accuracy_name,
    aligned,
    read_results,
    shown,
)
from asymgrpo_app.runtime.console import printable

_SETTINGS = ("samples", "temperature", "top_p", "max_tokens", "template")
_RESULTS_NAME = "results.json"


@dataclass(frozen=True)
class ProblemTable:
    """The values of one metric on one set, problem by problem.

    Attributes:
        metric: Name of the metric in this set.
        values: Value by the name of the problem; NaN where there is none.
        protocol: Settings of the set's evaluation; None if not known.
    """

    metric: str
    values: dict[str, float]
    protocol: EvaluationProtocol | None

    def setting(self, name: str) -> Any:
        """A setting of the evaluation; None if it is not known."""
        return getattr(self.protocol, name, None)


@dataclass(frozen=True)
class Evaluated:
    """One of the evaluations that are compared.

    Attributes:
        label: Its name in tables and plots.
        path: Its file.
        sets: The metric's values by name of the set.
    """

    label: str
    path: Path
    sets: dict[str, ProblemTable]


@dataclass(frozen=True)
class Difference:
    """The difference of one evaluation from the baseline on one set, or on the mean over sets.

    Attributes:
        set: Name of the set; `mean of N sets` for the mean.
        label: Label of the evaluation.
        metric: Name of the metric.
        baseline: The baseline's value.
        value: The evaluation's value.
        difference: Evaluation minus baseline, with its paired interval.
    """

    set: str
    label: str
    metric: str
    baseline: StoredEstimate
    value: StoredEstimate
    difference: StoredEstimate

    @property
    def verdict(self) -> str:
        """`higher` or `lower` if the interval excludes 0, else `undecided`."""
        if self.difference.low > 0:
            return "higher"
        return "lower" if self.difference.high < 0 else "undecided"


@dataclass(frozen=True)
class Comparison:
    """The differences of evaluations from the first of them.

    Attributes:
        metric: The metric that was asked for.
        baseline: Label of the first evaluation.
        differences: Set by set, evaluation by evaluation; then the differences of the mean.
        notes: Reasons why the differences may not be those of the models alone, one sentence each.
    """

    metric: str
    baseline: str
    differences: list[Difference]
    notes: list[str]


def compare(paths: Sequence[Path], metric: str = ACCURACY, only_set: str | None = None) -> Comparison:
    """Compare evaluations problem by problem.

    Args:
        paths: Two or more results files, folders with a `results.json`, or prediction files; the first is the baseline.
        metric: The metric, e.g. `avg@8`, `pass@4`, `length`; `accuracy` is each set's `avg@n` or `greedy`.
        only_set: Compare on this set alone; None: on all sets that the files share.

    Raises:
        UserError: A file cannot be used, it has no such metric or set, or the problems are not the same.
    """
    if len(paths) < 2:
        raise UserError(f"there is nothing to compare with {len(paths)} file: give two or more.")
    evaluated = [_load(path, label, metric, only_set) for path, label in zip(paths, _labels(paths), strict=True)]
    first, *others = evaluated
    names = [name for name in first.sets if all(name in other.sets for other in others)]
    if not names:
        listed = "; ".join(f"{evaluation.path} has {', '.join(evaluation.sets)}" for evaluation in evaluated)
        raise UserError(f"the files have no set in common: {listed}.")
    notes = _notes(evaluated, names)
    by_set = [[_difference(name, first, other, notes) for other in others] for name in names]
    differences = [difference for row in by_set for difference in row]
    if len(names) > 1:
        differences += [_mean(metric, of_one) for of_one in zip(*by_set, strict=True)]
    return Comparison(metric, first.label, differences, notes)


# ---- reading ----


def _labels(paths: Sequence[Path]) -> list[str]:
    """Labels: the shortest ends of the paths, without `results.json`, that tell the evaluations apart."""
    parts = [path.parent.parts if path.name == _RESULTS_NAME else path.with_suffix("").parts for path in paths]
    longest = max(map(len, parts))
    for depth in range(1, longest + 1):
        labels = ["/".join(names[-depth:]) or str(path) for names, path in zip(parts, paths, strict=True)]
        if len(set(labels)) == len(labels):
            return labels
    return [f"{path} ({number})" for number, path in enumerate(paths, start=1)]


def _load(path: Path, label: str, metric: str, only_set: str | None) -> Evaluated:
    path = path / _RESULTS_NAME if path.is_dir() else path
    sets = _from_predictions(path, metric) if path.suffix == ".jsonl" else _from_results(path, metric)
    if only_set is not None:
        if only_set not in sets:
            raise UserError(f"{path} has no set {only_set!r}, it has {', '.join(sets)}.")
        sets = {only_set: sets[only_set]}
    return Evaluated(label, path, sets)


def _from_results(path: Path, metric: str) -> dict[str, ProblemTable]:
    tables = {}
    for name, result in read_results(path).sets.items():
        chosen = _chosen(metric, [*result.values], f"{path}: set {name}")
        values = [nan if value is None else value for value in result.values[chosen]]
        tables[name] = ProblemTable(chosen, dict(zip(result.uids, values, strict=True)), result.protocol)
    return tables


def _from_predictions(path: Path, metric: str) -> dict[str, ProblemTable]:
    header = read_header(path)
    light = (replace(prediction, completion="") for prediction in read_predictions(path))
    return {
        name: _from_outcomes(f"{path}: set {name}", outcomes, header.sets[name] if header else None, metric)
        for name, outcomes in finished_sets(path, light, header).items()
    }


def _from_outcomes(
    where: str, outcomes: Mapping[str, ProblemOutcome], protocol: EvaluationProtocol | None, metric: str
) -> ProblemTable:
    """The metric from completions; the k of pass@k and maj@k may be any number up to theirs."""
    samples = len(next(iter(outcomes.values())).completions)
    kind, _, number = metric.partition("@")
    ks = (int(number),) if number.isdecimal() and len(number) < 10 and 1 <= int(number) <= samples else ()
    greedy = protocol is not None and protocol.temperature == 0 and samples == 1
    choice = MetricChoice(ks if kind == "pass" else (), ks if kind == "maj" else (), greedy)
    names = choice.names(samples)
    chosen = _chosen(metric, names, where, f", and pass@k and maj@k for k up to {samples}")
    index = names.index(chosen)
    return ProblemTable(chosen, {uid: choice.values(outcome)[index] for uid, outcome in outcomes.items()}, protocol)


def _chosen(metric: str, names: Sequence[str], where: str, more: str = "") -> str:
    """The name among a set's metrics of the one that was asked for."""
    chosen = accuracy_name(names) if metric == ACCURACY else metric
    if chosen not in names:
        raise UserError(f"{where} has no metric {metric!r}, it has {', '.join(names)}{more}.")
    return chosen


# ---- checks that evaluations can be compared ----


def _check_same_problems(name: str, first: Evaluated, other: Evaluated) -> None:
    ours, theirs = first.sets[name], other.sets[name]
    digests = {table.setting("digest") for table in (ours, theirs)} - {None, ""}
    if alone := sorted(ours.values.keys() ^ theirs.values.keys()):
        reason = f"{len(alone)} problems are in one of them only, the first is {alone[0]!r}"
    elif len(digests) > 1:
        reason = "the problems have the same names and different texts"
    else:
        return
    raise UserError(f"set {name} is not the same in {first.path} and {other.path}: {reason}.")


def _notes(evaluated: Sequence[Evaluated], names: Sequence[str]) -> list[str]:
    notes = []
    for evaluation in evaluated:
        if unused := [name for name in evaluation.sets if name not in names]:
            notes.append(f"Not compared, since not all have it: {', '.join(unused)} of {evaluation.label}.")
        if any(evaluation.sets[name].protocol is None for name in names):
            notes.append(f"The sampling settings of {evaluation.label} are not known: there is no .run.json beside it.")
    return notes


# ---- differences ----


def _difference(name: str, first: Evaluated, other: Evaluated, notes: list[str]) -> Difference:
    _check_same_problems(name, first, other)
    ours, theirs = first.sets[name], other.sets[name]
    settings = [(key, ours.setting(key), theirs.setting(key)) for key in _SETTINGS]
    if apart := [f"{key} is {a} and {b}" for key, a, b in settings if a != b and None not in (a, b)]:
        notes.append(f"Set {name} was not evaluated alike in {first.label} and {other.label}: {', '.join(apart)}.")
    pairs = [(value, theirs.values[uid]) for uid, value in ours.values.items()]
    known = [(a, b) for a, b in pairs if not (isnan(a) or isnan(b))]
    if not known:
        raise UserError(f"set {name} has no problem with {ours.metric} in both {first.path} and {other.path}.")
    if len(known) < len(pairs):
        notes.append(f"Set {name}: {len(pairs) - len(known)} problems without {ours.metric} are left out.")
    interval = mean_interval if ours.metric in UNITS else difference_interval
    return Difference(
        name,
        other.label,
        ours.metric if ours.metric == theirs.metric else f"{theirs.metric} – {ours.metric}",
        estimate(ours.metric, [a for a, _ in known]),
        estimate(theirs.metric, [b for _, b in known]),
        interval([b - a for a, b in known]),
    )


def _mean(metric: str, differences: Sequence[Difference]) -> Difference:
    """The mean over sets, all with the same weight."""
    names = {difference.metric for difference in differences}
    return Difference(
        f"mean of {len(differences)} sets",
        differences[0].label,
        names.pop() if len(names) == 1 else metric,
        mean_over_sets([difference.baseline for difference in differences]),
        mean_over_sets([difference.value for difference in differences]),
        mean_over_sets([difference.difference for difference in differences]),
    )


# ---- on the terminal ----


def comparison_table(content: Comparison) -> str:
    """A table for the terminal: one line per set and evaluation, and the notes below."""
    rows = [("set", "metric", "evaluation", content.baseline, "value", "difference", "95 % interval", "")]
    for entry in content.differences:
        value, interval = shown(entry.metric, entry.difference, signed=True)
        before, after = shown(entry.metric, entry.baseline)[0], shown(entry.metric, entry.value)[0]
        rows.append((entry.set, entry.metric, entry.label, before, after, value, interval, entry.verdict))
    return "\n".join([aligned(rows, left=3), *(printable(f"Note: {note}") for note in content.notes)])
