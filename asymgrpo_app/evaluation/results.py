"""`results.json`: the run, the settings and the results of an evaluation, problem by problem."""

import subprocess
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from hashlib import sha256
from math import inf, isfinite, isnan, nan
from pathlib import Path
from typing import Any

from asymgrpo_app.errors import UserError
from asymgrpo_app.evaluation.files import from_plain, read_json, readable_json, to_plain, write_whole
from asymgrpo_app.evaluation.intervals import Estimate, mean_over_sets
from asymgrpo_app.evaluation.outcomes import UNBOUNDED, estimates
from asymgrpo_app.version import __version__

_FORMAT = 1
ACCURACY = "accuracy"
"""The mean over sets of `avg@n` or `greedy`, where the sets call it differently."""


@dataclass(frozen=True)
class EvaluationProtocol:
    """How a set was evaluated.

    Attributes:
        problems: Size of the set.
        samples: Completions per problem.
        temperature: Sampling temperature; 0 is greedy.
        top_p: Nucleus size in (0, 1].
        max_tokens: Longest completion in tokens.
        template: The template of the prompts, in words or as a class name; empty if not known.
        digest: `problems_digest` of the set; empty if not known.
    """

    problems: int
    samples: int
    temperature: float
    top_p: float
    max_tokens: int
    template: str = ""
    digest: str = ""


@dataclass(frozen=True)
class EvaluationRun:
    """The policy that was evaluated, and the program and seed that did it.

    Attributes:
        model: Folder or hub id of the policy.
        checkpoint: Checkpoint whose weights were used; None for those of `model`.
        seed: Seed of sampling.
        version: Version of this package.
        commit: Its git commit, with `+changes` if files differ from it; None outside of a checkout.
    """

    model: str
    checkpoint: str | None
    seed: int
    version: str = __version__
    commit: str | None = None


@dataclass(frozen=True)
class SetResult:
    """The results of one set.

    Attributes:
        protocol: How it was evaluated.
        metrics: Mean over problems by the metric's name.
        uids: Names of the problems.
        values: For each metric, its value for every problem in the order of `uids`; None where there is none.
    """

    protocol: EvaluationProtocol
    metrics: dict[str, Estimate]
    uids: list[str]
    values: dict[str, list[float | None]]


@dataclass(frozen=True)
class Results:
    """The results of one evaluation.

    Attributes:
        run: The policy, seed and program of the evaluation.
        sets: Result of each set by its name.
        mean: Means over sets of the metrics that all of them have, all sets with the same weight.
    """

    run: EvaluationRun
    sets: dict[str, SetResult]
    mean: dict[str, Estimate]


def set_result(protocol: EvaluationProtocol, uids: Sequence[str], values: Mapping[str, Sequence[float]]) -> SetResult:
    """The results of one set from the values of its problems.

    Args:
        protocol: How it was evaluated; the number of problems is taken from `uids`.
        uids: [P] names of the problems. A repeated name gets a number, as in `a#2`.
        values: [P] values by metric; NaN where a problem has none.
    """
    stored = {name: [None if isnan(value) else value for value in per_problem] for name, per_problem in values.items()}
    return SetResult(replace(protocol, problems=len(uids)), estimates(values), distinct(uids), stored)


def results(run: EvaluationRun, sets: Mapping[str, SetResult]) -> Results:
    """The results of one evaluation, with the means over its sets (at least one)."""
    return Results(run, dict(sets), _means([result.metrics for result in sets.values()]))


def _means(sets: Sequence[Mapping[str, Estimate]]) -> dict[str, Estimate]:
    shared = [name for name in sets[0] if all(name in metrics for metrics in sets)]
    means = {name: mean_over_sets([metrics[name] for metrics in sets]) for name in shared}
    accuracies = [accuracy_name(metrics) for metrics in sets]
    if None in accuracies or len(set(accuracies)) == 1:
        return means
    chosen = [metrics[name] for metrics, name in zip(sets, accuracies, strict=True) if name is not None]
    return {ACCURACY: mean_over_sets(chosen), **means}


def accuracy_name(names: Iterable[str]) -> str | None:
    """The name of a set's accuracy among the names of its metrics: `avg@n`, or `greedy`."""
    return next((name for name in names if name == "greedy" or name.startswith("avg@")), None)


def distinct(uids: Sequence[str]) -> list[str]:
    """Names of problems, with a number added to repeated ones."""
    seen: dict[str, int] = {}
    names = []
    for uid in uids:
        seen[uid] = seen.get(uid, 0) + 1
        names.append(uid if seen[uid] == 1 else f"{uid}#{seen[uid]}")
    return names


def problems_digest(texts: Iterable[str]) -> str:
    """Digest of a set of problems in 16 hexadecimal digits; it does not depend on their order, template or file."""
    marks = sorted(sha256(" ".join(text.split()).encode(errors="surrogatepass")).digest() for text in texts)
    return sha256(b"".join(marks)).hexdigest()[:16]


def code_commit() -> str | None:
    """The git commit of this package's own checkout, `+changes` added if tracked files differ from it."""
    root = Path(__file__).resolve().parents[2]
    if not (root / ".git").exists():  # installed: a repository further up is somebody else's
        return None
    try:
        commit, changes = (
            subprocess.run(["git", "-C", root, *command], capture_output=True, text=True, check=True).stdout.strip()
            for command in (["rev-parse", "HEAD"], ["status", "--porcelain", "--untracked-files=no"])
        )
    except (OSError, subprocess.CalledProcessError):
        return None
    return f"{commit}+changes" if changes else commit


# ---- on disk ----


def write_results(path: Path, content: Results, *, overwrite: bool = False) -> None:
    """Write `results.json`, whole or not at all.

    Raises:
        UserError: The file exists, and `overwrite` is not set.
        RunError: It cannot be written.
    """
    text = readable_json({"format": _FORMAT, **_without_infinities(to_plain(content))})
    write_whole(path, f"{text}\n".encode(), overwrite=overwrite)


def _without_infinities(value: Any) -> Any:
    """Replace infinite numbers by null: JSON has no infinity, and an interval may have an unbounded end."""
    if isinstance(value, dict):
        return {key: _without_infinities(entry) for key, entry in value.items()}
    return None if isinstance(value, float) and not isfinite(value) else value


def read_results(path: Path) -> Results:
    """Read `results.json`.

    Raises:
        UserError: The file cannot be read, or it is no such file.
    """
    data = read_json(path)
    if not isinstance(data, dict) or "format" not in data:
        raise UserError(f"{path} is no results file of asymgrpo: it has no field 'format'.")
    if data.pop("format") != _FORMAT:
        raise UserError(f"{path} was written by another version of asymgrpo: evaluate again, or read it with that one.")
    for estimates_of in (data.get("mean"), *(result.get("metrics") for result in _objects(data.get("sets")))):
        for estimate in _objects(estimates_of):
            for end, infinite in (("low", -inf), ("high", inf)):
                if end in estimate and estimate[end] is None:
                    estimate[end] = infinite
    content = from_plain(Results, data, str(path))
    if not content.sets:
        raise UserError(f"{path} has no sets.")
    for name, result in content.sets.items():
        _check_lengths(result, f"{path}, set {name}")
    return content


def _objects(value: Any) -> list[dict[str, Any]]:
    return [entry for entry in value.values() if isinstance(entry, dict)] if isinstance(value, dict) else []


def _check_lengths(own: SetResult, where: str) -> None:
    if len(set(own.uids)) != len(own.uids):
        raise UserError(f"{where}: two problems have the same name.")
    for name, numbers in {
        "protocol.problems": own.protocol.problems,
        **{n: len(v) for n, v in own.values.items()},
    }.items():
        if numbers != len(own.uids):
            raise UserError(f"{where}: {name} counts {numbers} problems, but there are {len(own.uids)} names.")


# ---- on the terminal ----


def table(content: Results) -> str:
    """The results as a table for the terminal: one line per set and metric, shares in percent."""
    rows = [("set", "metric", "value", "95 % interval", "")]
    for name, result in content.sets.items():
        rows += _block(name, _description(result.protocol), result.metrics)
    if len(content.sets) > 1:
        rows += _block(f"mean of {len(content.sets)} sets", ["each set counts the same"], content.mean)
    return aligned(rows)


def _description(protocol: EvaluationProtocol) -> list[str]:
    samples = f"{protocol.samples} sample{'s' if protocol.samples > 1 else ''}"
    return [
        f"{protocol.problems} problem{'s' if protocol.problems > 1 else ''} × {samples}",
        f"temperature {protocol.temperature:g}, top-p {protocol.top_p:g}",
        f"at most {protocol.max_tokens} tokens",
    ]


def _block(name: str, remarks: Sequence[str], metrics: Mapping[str, Estimate]) -> list[tuple[str, str, str, str, str]]:
    """Table rows of one set: its name beside the first metric, remarks beside the first few metrics."""
    lines = []
    for number, (metric, estimate) in enumerate(metrics.items()):
        remark = remarks[number] if number < len(remarks) else ""
        lines.append((name if number == 0 else "", metric, *shown(metric, estimate), remark))
    return lines


def shown(metric: str, estimate: Estimate, *, signed: bool = False) -> tuple[str, str]:
    """Value and interval as text: in percent for shares, else in the metric's own unit.

    Args:
        metric: Its name.
        estimate: Its value.
        signed: Write a sign, and percentage points (pp); for differences.
    """
    scale, unit, digits = 100.0, " pp" if signed else " %", 1
    if metric in UNBOUNDED:
        scale, unit, digits = 1.0, {"length": " tokens"}.get(metric, " nats"), 1 if metric == "length" else 3
    low, value, high = (
        f"{scale * number:{'+' if signed else ''}.{digits}f}" if isfinite(number) else "–"
        for number in (estimate.low, estimate.value, estimate.high)
    )
    return f"{value}{unit}", f"[{low}, {high}]"


def aligned(rows: Sequence[Sequence[str]], left: int = 2) -> str:
    """Rows as aligned columns of text, the first row as the head; the first `left` columns and the last flush left."""
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    last = len(widths) - 1
    lines = []
    for row in rows:
        cells = [
            cell.rjust(width) if left <= column < last else cell.ljust(width)
            for column, (cell, width) in enumerate(zip(row, widths, strict=True))
        ]
        lines.append("  ".join(cells).rstrip())
    return "\n".join([lines[0], "-" * max(map(len, lines)), *lines[1:]])


def values_of(own: SetResult, metric: str) -> list[float]:
    """The values of a metric problem by problem, NaN where there is none."""
    return [nan if value is None else value for value in own.values[metric]]
