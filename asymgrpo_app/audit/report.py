"""What an audit found: rates with intervals and examples, as a table and as a JSON file, and the limits of a CI."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from asymgrpo_app.audit.rewrites import RewriteKind
from asymgrpo_app.evaluation.results import StoredEstimate, aligned
from asymgrpo_app.runtime.console import printable
from asymgrpo_app.version import __version__

_SHOWN_CHARS = 60
_HEADS = {
    RewriteKind.FORM: ("the reference, as it is", "accepted"),
    RewriteKind.EQUAL: ("equal answers", "refused"),
    RewriteKind.NEAR_MISS: ("near misses", "accepted"),
    RewriteKind.HACK: ("reward hacks", "accepted"),
}


@dataclass(frozen=True)
class Example:
    """A verdict that should have been another.

    Attributes:
        uid: The problem.
        answer: Its reference.
        completion: What was judged, shortened.
        status: Status of the verdict.
    """

    uid: str
    answer: str
    completion: str
    status: str


@dataclass(frozen=True)
class Rate:
    """How often one rewrite was judged in one way.

    Attributes:
        name: Name of the rewrite.
        kind: What it makes.
        share: Of near misses and hacks the share of rows of which a completion was accepted, of equal answers of which
            one was refused; of forms the share of rows whose reference was accepted.
        completions: Completions judged.
        wrong: Completions whose verdict should have been another.
        failed: Those on which the verifier failed (timeout or error), which count as refused.
        failure: What the verifier said when it first failed; empty if it never did.
        examples: Of equal answers that were refused, of near misses and hacks that were accepted; a few.
    """

    name: str
    kind: RewriteKind
    share: StoredEstimate
    completions: int
    wrong: int
    failed: int
    failure: str
    examples: list[Example]


@dataclass(frozen=True)
class AuditReport:
    """The result of an audit.

    Attributes:
        verifier: Class of the verifier; several joined by commas.
        source: The data.
        seed: Seed of the rows and of what is drawn.
        rows: Rows that were used.
        left_out: Rows that the verifier's own check refused.
        form: The form in which most references are accepted; None if none is accepted in any.
        rates: The forms, then the rewrites of each kind.
        unused: Names of rewrites that fit no row.
        settings: The parsed options of the command.
        version: Version of this package.
    """

    verifier: str
    source: str
    seed: int
    rows: int
    left_out: int
    form: str | None
    rates: list[Rate]
    unused: list[str]
    settings: dict[str, Any] = field(default_factory=dict)
    version: str = __version__

    def of_kind(self, kind: RewriteKind) -> list[Rate]:
        """The rates of one kind."""
        return [rate for rate in self.rates if rate.kind is kind]


def table(report: AuditReport) -> str:
    """The report as a table for the terminal: one line per rewrite, shares in percent, an example of what is wrong."""
    rows = [("", "rows", "share", "95 % interval", "")]
    for kind, (head, verb) in _HEADS.items():
        if rates := report.of_kind(kind):
            rows += [(f"{head}: {verb}", "", "", "", ""), *map(_line, rates)]
    lines = [
        f"{report.verifier} on {report.rows:,} rows of {report.source}, seed {report.seed}",
        f"answers are given as {_cut(report.form)}"
        if report.form
        else "no form was found in which it accepts a reference",
    ]
    if report.left_out:
        lines.append(f"left out: {report.left_out:,} rows that the verifier's own check refuses")
    if failed := [rate for rate in report.rates if rate.failed]:
        number = sum(rate.failed for rate in failed)
        lines.append(
            f"the verifier failed on {number:,} completions, which count as refused: {printable(failed[0].failure)}"
        )
    return "\n".join([*lines, "", aligned(rows, left=1)])


def _line(rate: Rate) -> tuple[str, str, str, str, str]:
    value, low, high, rows = rate.share
    example = next((f"{_cut(one.completion)} (reference {_cut(one.answer)})" for one in rate.examples), "")
    return f"  {rate.name}", f"{rows:,}", f"{value:.1%}", f"[{100 * low:.1f}, {100 * high:.1f}]", example


def _cut(text: str) -> str:
    shown = ascii(text[: _SHOWN_CHARS + 1]) if not text.strip() else " ".join(text.split())
    return shown if len(shown) <= _SHOWN_CHARS else f"{shown[: _SHOWN_CHARS - 3]}..."


def beyond_limits(report: AuditReport, max_refused: float | None, max_accepted: float | None) -> str | None:
    """What is wrong, in one sentence, if the share of a rewrite is beyond its limit; None if none is.

    Args:
        report: The audit.
        max_refused: Largest share of each equal rewrite that may be refused; None: any.
        max_accepted: Largest share of each near miss and hack that may be accepted; None: any.
    """
    limits: Sequence[tuple[RewriteKind, float | None, str]] = (
        (RewriteKind.EQUAL, max_refused, "--max_refused"),
        (RewriteKind.NEAR_MISS, max_accepted, "--max_accepted"),
        (RewriteKind.HACK, max_accepted, "--max_accepted"),
    )
    found = [
        f"{rate.name} {_HEADS[kind][1]} {rate.share.value:.1%} ({option} {limit:.1%})"
        for kind, limit, option in limits
        for rate in report.of_kind(kind)
        if limit is not None and rate.share.value > limit
    ]
    if not found:
        return None
    return f"{report.verifier}: {len(found)} rewrite{'s are' if len(found) > 1 else ' is'} beyond the limit: " + (
        "; ".join(found) + "."
    )
