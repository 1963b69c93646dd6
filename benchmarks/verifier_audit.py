"""The table of docs/audit.md: what every shipped verifier refuses and accepts wrongly, on data of this repository.

    python benchmarks/verifier_audit.py

Takes twenty seconds. ReasoningGymVerifier needs reasoning-gym (the extra `reasoning`).
"""

import argparse
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from asymgrpo_app.audit.audit import audit
from asymgrpo_app.audit.report import AuditReport
from asymgrpo_app.audit.rewrites import RewriteKind
from asymgrpo_app.prompts import Addition, Countdown, JsonLines, PromptSource, ReasoningGym
from asymgrpo_app.rewards import (
    CountdownVerifier,
    ExactMatch,
    FunctionVerifier,
    MathVerifier,
    MultipleChoice,
    NumericMatch,
    ReasoningGymVerifier,
    RegexMatch,
    Verifier,
)
from asymgrpo_app.rewards.pool.pool import VerifierPool, VerifierPoolConfig

ROWS = Path(__file__).parent / "audit_rows"
PAGE = Path(__file__).parent.parent / "docs/audit.md"
BEGIN, END = "<!-- verifiers: begin -->\n", "<!-- verifiers: end -->\n"
HEAD = """
| verifier | rows | answers given as | equal answers refused | near misses accepted | hacks accepted |
| --- | --- | --- | --- | --- | --- |
"""
_COLUMNS = (RewriteKind.EQUAL, RewriteKind.NEAR_MISS, RewriteKind.HACK)


def correct(completions: Sequence[str], answer: Sequence[str], **_: Any) -> list[float]:
    """The reward function that docs/verifiers.md shows."""
    return [1.0 if text.strip() == right else 0.0 for text, right in zip(completions, answer, strict=True)]


@dataclass(frozen=True)
class Case:
    """A verifier with data that it is made for.

    Attributes:
        shown: The verifier and its settings, for the table.
        verifier: Makes the verifier.
        data: The data, for the table.
        source: Makes the source.
    """

    shown: str
    verifier: Callable[[], Verifier]
    data: str
    source: Callable[[], PromptSource]

    def audited(self, rows: int, pool: VerifierPool) -> AuditReport:
        """Audit the verifier."""
        source, verifier = self.source(), self.verifier()
        count = rows if source.size is None else min(rows, source.size)
        prompts = {prompt.uid: prompt for prompt in (source.at(position, 0) for position in range(count))}
        return audit([replace(prompt, verifier=verifier) for prompt in prompts.values()], pool, str(source))


def _file(name: str) -> Callable[[], PromptSource]:
    return lambda: JsonLines(str(ROWS / f"{name}.jsonl"))


def _sums() -> PromptSource:
    return Addition(digits=4)


CASES = (
    Case("MathVerifier", MathVerifier, "maths.jsonl", _file("maths")),
    Case("MathVerifier (`extract: boxed`)", lambda: MathVerifier("boxed"), "maths.jsonl", _file("maths")),
    Case("NumericMatch", NumericMatch, "sums", _sums),
    Case("NumericMatch (`extract: boxed`)", lambda: NumericMatch(extract="boxed"), "sums", _sums),
    Case("NumericMatch (`extract: last`)", lambda: NumericMatch(extract="last"), "sums", _sums),
    Case("MultipleChoice", MultipleChoice, "choices.jsonl", _file("choices")),
    Case("RegexMatch (`<answer>(.*?)</answer>`)", lambda: RegexMatch("<answer>(.*?)</answer>"), "sums", _sums),
    Case("ExactMatch", ExactMatch, "words.jsonl", _file("words")),
    Case("ExactMatch (`extract: boxed`)", lambda: ExactMatch(extract="boxed"), "words.jsonl", _file("words")),
    Case("CountdownVerifier", CountdownVerifier, "Countdown", Countdown),
    Case("FunctionVerifier (`my_rewards.correct`)", lambda: FunctionVerifier(correct), "words.jsonl", _file("words")),
    Case(
        "ReasoningGymVerifier",
        lambda: ReasoningGymVerifier("chain_sum"),
        "chain_sum",
        lambda: ReasoningGym("chain_sum"),
    ),
)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=200, help="rows of each source; all of one that has fewer")
    parser.add_argument("--workers", type=int, default=2, help="worker processes")
    options = parser.parse_args()
    with VerifierPool(VerifierPoolConfig(workers=options.workers)) as pool:
        lines = [line(case, case.audited(options.rows, pool)) for case in CASES]
    text = PAGE.read_text(encoding="utf-8")
    before, _, rest = text.partition(BEGIN)
    after = rest.partition(END)[2]
    PAGE.write_text(f"{before}{BEGIN}{HEAD}{''.join(lines)}\n{END}{after}", encoding="utf-8")


def line(case: Case, report: AuditReport) -> str:
    """The line of the table for one verifier."""
    name, _, settings = case.shown.partition(" ")
    cells = [f"`{name}` {settings}".strip(), f"{report.rows} of {case.data}", f"`{report.form}`"]
    cells += [_cell(report, kind) for kind in _COLUMNS]
    return f"| {' | '.join(cells)} |\n"


def _cell(report: AuditReport, kind: RewriteKind) -> str:
    """The rewrites of one kind that some rows were judged wrongly in, by their share; their number if there is none."""
    rates = report.of_kind(kind)
    by_share: Mapping[str, list[str]] = {}
    for rate in sorted(rates, key=lambda rate: -rate.share.value):
        if rate.share.value:
            by_share = {
                **by_share,
                f"{rate.share.value:.0%}": [*by_share.get(f"{rate.share.value:.0%}", []), rate.name],
            }
    return "; ".join(f"{share}: {', '.join(names)}" for share, names in by_share.items()) or f"none of {len(rates)}"


if __name__ == "__main__":
    main()
