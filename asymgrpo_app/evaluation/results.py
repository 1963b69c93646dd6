"""`results.json`: the run, the settings and the results of an evaluation, problem by problem."""

import subprocess
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from hashlib import sha256
from math import inf, isfinite, isnan
from pathlib import Path
from typing import Annotated, Any

from pydantic import BeforeValidator, PlainSerializer, StrictInt

from asymgrpo_app.errors import UserError
from asymgrpo_app.evaluation.files import read_record
from asymgrpo_app.evaluation.intervals import Estimate, mean_over_sets
from asymgrpo_app.evaluation.outcomes import UNITS, Number, Real, estimates
from asymgrpo_app.runtime.console import printable
from asymgrpo_app.version import __version__

ACCURACY = "accuracy"
"""The mean over sets of `avg@n` or `greedy`, where the sets call it differently."""


def _open_end(data: Any) -> Any:
    """Read null as an upper end that nothing bounds: JSON has no infinity."""
    return data | {"high": inf} if isinstance(data, dict) and data.get("high", 0) is None else data


StoredEstimate = Annotated[Estimate, BeforeValidator(_open_end), PlainSerializer(Estimate._asdict)]
"""An estimate that is an object with named fields in a file."""


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

    problems: Number
    samples: Number
    temperature: Real
    top_p: Real
    max_tokens: Number
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
    seed: StrictInt
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
    metrics: dict[str, StoredEstimate]
    uids: list[str]
    values: dict[str, list[Real | None]]


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
    mean: dict[str, StoredEstimate]


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
    metrics = [result.metrics for result in sets.values()]
    shared = [name for name in metrics[0] if all(name in own for own in metrics)]
    means = {name: mean_over_sets([own[name] for own in metrics]) for name in shared}
    accuracies = [accuracy_name(own) for own in metrics]
    if len(set(accuracies)) > 1:
        accuracy = mean_over_sets([own[name] for own, name in zip(metrics, accuracies, strict=True)])
        means = {ACCURACY: accuracy, **means}
    return Results(run, dict(sets), means)


def accuracy_name(names: Iterable[str]) -> str:
    """The name of a set's accuracy among the names of its metrics: `avg@n`, or `greedy`."""
    return next((name for name in names if name == "greedy" or name.startswith("avg@")), ACCURACY)


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
    command = ["git", "-C", str(root), "describe", "--always", "--exclude=*", "--abbrev=40", "--dirty=+changes"]
    try:
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return None


# ---- on disk ----


def read_results(path: Path) -> Results:
    """Read `results.json`.

    Raises:
        UserError: The file cannot be read, or it is no such file.
    """
    content = read_record(Results, path)
    if not content.sets:
        raise UserError(f"{path} has no sets.")
    for name, result in content.sets.items():
        numbers = {result.protocol.problems, len(set(result.uids)), *map(len, result.values.values())}
        if numbers != {len(result.uids)}:
            raise UserError(
                f"{path}, set {name}: it must have as many problems, different names and values of every metric as "
                f"names ({len(result.uids)}), got {sorted(numbers)}."
            )
    return content


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
    blank = [""] * len(metrics)
    cells = zip([name, *blank], metrics.items(), [*remarks, *blank], strict=False)
    return [(first, metric, *shown(metric, estimate), remark) for first, (metric, estimate), remark in cells]


def shown(metric: str, estimate: Estimate, *, signed: bool = False) -> tuple[str, str]:
    """Value and interval as text: in percent for shares, else in the metric's own unit.

    Args:
        metric: Its name.
        estimate: Its value.
        signed: Write a sign, and percentage points (pp); for differences.
    """
    unit = UNITS.get(metric, "pp" if signed else "%")
    scale = 1.0 if metric in UNITS else 100.0
    form = f"{'+' if signed else ''}.{3 if unit == 'nats' else 1}f"
    value, low, high = (format(scale * end, form) if isfinite(end) else "–" for end in estimate[:3])
    return f"{value} {unit}", f"[{low}, {high}]"


def aligned(rows: Sequence[Sequence[str]], left: int = 2) -> str:
    """Rows as aligned columns of text, the first row as the head; the first `left` columns and the last flush left."""
    rows = [[printable(cell) for cell in row] for row in rows]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    ways = ["<"] * left + [">"] * (len(widths) - left - 1) + ["<"]
    form = "  ".join(f"{{:{way}{width}}}" for way, width in zip(ways, widths, strict=True))
    lines = [form.format(*row).rstrip() for row in rows]
    return "\n".join([lines[0], "-" * max(map(len, lines)), *lines[1:]])
