"""No completion, however hostile, hangs a verifier, executes anything, is judged correct, or harms the pool."""

import os
from collections.abc import Iterator

import psutil
import pytest

from asymgrpo_app.rewards import (
    CountdownVerifier,
    ExactMatch,
    MathVerifier,
    MultipleChoice,
    NumericMatch,
    RegexMatch,
    Status,
    Verdict,
    Verifier,
)
from asymgrpo_app.rewards.pool.pool import VerifierPool, VerifierPoolConfig
from tests.support.hostile import CANARY, CANARY_VARIABLE, attacks
from tests.support.probe_verifiers import Isolated

TIMEOUT_S = 5.0

# A verifier, a row, and a completion that is right for that row.
CASES: dict[str, tuple[Verifier, dict[str, object], str]] = {
    "maths, a number": (MathVerifier(), {"answer": r"\frac{7919}{13}"}, r"So it is \boxed{\frac{15838}{26}}."),
    "maths, a formula": (MathVerifier(), {"answer": r"\sqrt{2}+x^{17}"}, r"So it is \boxed{x^{17}+\sqrt{2}}."),
    "numeric": (NumericMatch(), {"answer": "609.153"}, "The answer is 609.153"),
    "choice": (MultipleChoice(), {"answer": "D"}, "The answer is (D)."),
    "exact": (ExactMatch(), {"answer": "zebra crossing"}, "zebra crossing"),
    "countdown": (CountdownVerifier(), {"numbers": [3, 5, 7], "target": 26}, "3 * 7 + 5"),
}


@pytest.fixture(scope="module")
def pool() -> Iterator[VerifierPool]:
    with VerifierPool(VerifierPoolConfig(workers=2, timeout_s=TIMEOUT_S, memory_gib=1.0)) as pool:
        yield pool


@pytest.fixture(autouse=True)
def nothing_executed() -> Iterator[None]:
    assert not CANARY.exists()
    yield
    assert not CANARY.exists()
    assert CANARY_VARIABLE not in os.environ


def test_there_are_enough_attacks():
    texts = attacks()
    assert len(texts) >= 200
    assert len(set(texts.values())) == len(texts)
    assert sum(str(CANARY) in text for text in texts.values()) >= 80


@pytest.mark.parametrize("case", CASES)
def test_every_attack_on_every_verifier(pool, case):
    verifier, row, right = CASES[case]
    texts = attacks()
    if not verifier.isolated:
        verifier = Isolated(verifier)  # whose promise that its work is bounded is put to the test here
    verdicts = pool.score([verifier] * len(texts), list(texts.values()), [row] * len(texts))
    judged = dict(zip(texts, verdicts, strict=True))
    assert [name for name, verdict in judged.items() if verdict.correct] == []
    # The verifiers guard themselves: no attack should need the time limit, or end in an exception.
    assert {name: verdict.detail for name, verdict in judged.items() if verdict.status.failed} == {}
    assert pool.score([verifier], [right], [row]) == [Verdict(correct=True)]


def test_patterns_that_backtrack(pool):
    """A user's own pattern may be as bad as it likes: it takes the time limit and no more."""
    texts = {name: text for name, text in attacks().items() if name.startswith("backtracking: ")}
    row = {"answer": "zebra"}
    with VerifierPool(VerifierPoolConfig(workers=2, timeout_s=0.5)) as hasty:
        verifier = RegexMatch(pattern=r"answer: (\w+)|^(?:\w+\s?)+$")
        verdicts = hasty.score([verifier] * len(texts), list(texts.values()), [row] * len(texts))
        judged = dict(zip(texts, verdicts, strict=True))
        assert {verdict.status for verdict in verdicts} <= {Status.OK, Status.NO_ANSWER, Status.TIMEOUT}
        assert judged["backtracking: a"].status is Status.TIMEOUT
        assert [name for name, verdict in judged.items() if verdict.correct] == []
        assert hasty.score([verifier], ["answer: zebra"], [row]) == [Verdict(correct=True)]


def test_no_process_is_left():
    texts = list(attacks().values())[:50]
    before = set(psutil.Process().children(recursive=True))
    with VerifierPool(VerifierPoolConfig(workers=2, timeout_s=TIMEOUT_S)) as pool:
        pool.score([MathVerifier()] * len(texts), texts, [{"answer": "z"}] * len(texts))
        started = set(psutil.Process().children(recursive=True)) - before
        assert len(started) == 3
    assert not any(process.is_running() for process in started)
