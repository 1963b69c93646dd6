"""Tables of a study from its kept runs: means over seeds, paired differences, and what became of each claim."""

from collections.abc import Sequence
from pathlib import Path
from statistics import fmean, stdev

from asymgrpo_app.errors import UserError
from asymgrpo_app.evaluation.intervals import Estimate, mean_interval
from benchmarks.study.definitions import BASELINE, LABELS, Quantity, Study
from benchmarks.study.figures import write_figures
from benchmarks.study.records import Record

_NAMES: dict[Quantity, str] = {
    "accuracy": "{0}",
    "pass": "{1}",
    "entropy": "entropy",
    "entropy_right": "entropy of right completions",
    "entropy_wrong": "entropy of wrong completions",
    "none_solved": "none-solved groups",
    "all_solved": "all-solved groups",
}
_TAGS: dict[Quantity, str] = {
    "entropy": "actor/entropy",
    "entropy_right": "actor/entropy_pos",
    "entropy_wrong": "actor/entropy_neg",
    "none_solved": "reward/solved_none",
    "all_solved": "reward/solved_all",
}


class Table:
    """Every quantity of every run of a study, and paired differences of methods over its seeds.

    Args:
        study: Which one.
        records: All of its runs.
    """

    def __init__(self, study: Study, records: Sequence[Record]) -> None:
        self.study = study
        self._values = {(own.method, own.seed): own for own in records}

    def values(self, method: str, quantity: Quantity) -> list[float]:
        """One value per seed: validation after the last step, or a mean over the last steps of training."""
        return [self._value(self._values[method, seed], quantity) for seed in self.study.seeds]

    def difference(self, more: str, less: str, quantity: Quantity) -> Estimate:
        """Mean over seeds of `more` minus `less`, with Student's 95 % interval."""
        pairs = zip(self.values(more, quantity), self.values(less, quantity), strict=True)
        return mean_interval([a - b for a, b in pairs])

    def _value(self, record: Record, quantity: Quantity) -> float:
        if quantity in _TAGS:
            return record.last(_TAGS[quantity], self.study.window)
        metric = self.study.metrics[0 if quantity == "accuracy" else 1]
        return record.results.sets[self.study.set].metrics[metric].value


def write_report(study: Study, records: Sequence[Record], docs: Path) -> list[Path]:
    """Put the tables into `<docs>/results.md`, between the study's two marks, and draw the figures.

    Raises:
        UserError: The page or its marks are not there.
    """
    page = docs / "results.md"
    begin, end = (f"<!-- {study.name}: {which} -->\n" for which in ("begin", "end"))
    text = page.read_text() if page.exists() else ""
    if begin not in text or end not in text:
        raise UserError(f"{page} has no lines {begin.strip()} and {end.strip()}: the tables go between them.")
    before, rest = text.split(begin)
    table = Table(study, records)
    made = "\n".join([*_methods(table), "", *_claims(table), "", *_cost(records)])
    page.write_text(f"{before}{begin}\n{made}\n\n{end}{rest.split(end)[1]}")
    return [page, *write_figures(study, records, docs / "figures" / study.name)]


def _methods(table: Table) -> list[str]:
    """Means over seeds, and differences to the baseline."""
    study = table.study
    shown: tuple[Quantity, ...] = ("accuracy", "pass", "entropy", "none_solved")
    names = [_NAMES[quantity].format(*study.metrics) for quantity in shown]
    lines = [
        "| method | " + " | ".join(f"{name} | Δ to {LABELS[BASELINE]}" for name in names) + " |",
        "| --- |" + " --- |" * (2 * len(shown)),
    ]
    for method in study.methods:
        cells = [LABELS[method]]
        for quantity in shown:
            own = table.values(method, quantity)
            cells.append(f"{fmean(own):.3f} ± {stdev(own):.3f}")
            cells.append("–" if method == BASELINE else _difference(table.difference(method, BASELINE, quantity)))
        lines.append("| " + " | ".join(cells) + " |")
    return lines


def _claims(table: Table) -> list[str]:
    lines = [
        "| claim | of | difference | 95 % interval | seeds that agree | verdict |",
        "| --- | --- | --- | --- | --- | --- |",
    ]
    for claim in table.study.claims:
        found = table.difference(claim.more, claim.less, claim.quantity)
        pairs = zip(table.values(claim.more, claim.quantity), table.values(claim.less, claim.quantity), strict=True)
        agree = sum(a > b for a, b in pairs)
        lines.append(
            f"| {LABELS[claim.more]} > {LABELS[claim.less]} | {_NAMES[claim.quantity].format(*table.study.metrics)} | "
            f"{found.value:+.3f} | {found.low:+.3f} to {found.high:+.3f} | {agree} of {found.n} | {verdict(found)} |"
        )
    return lines


def verdict(difference: Estimate) -> str:
    """What an interval says of the claim that the difference is above 0."""
    if difference.low > 0:
        return "reproduced"
    return "not reproduced" if difference.high < 0 else "undecided"


def _difference(found: Estimate) -> str:
    mark = " *" if found.low > 0 or found.high < 0 else ""
    return f"{found.value:+.3f} [{found.low:+.3f}, {found.high:+.3f}]{mark}"


def _cost(records: Sequence[Record]) -> list[str]:
    seconds = [own.seconds * own.cores for own in records]
    commits = sorted({(own.results.run.commit or "unknown")[:12] for own in records})
    return [
        f"{len(records)} runs, {fmean(seconds):.0f} core seconds each on average (start, validation and export "
        f"included), {sum(seconds) / 3600:.1f} core hours in all; code: {', '.join(commits)}."
    ]
