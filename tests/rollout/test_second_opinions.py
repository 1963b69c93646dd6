"""Which answers get a second opinion, and what is counted of them."""

from dataclasses import replace

import pytest

from asymgrpo_app.metrics import StepMetrics
from asymgrpo_app.prompts.base import EncodedPrompt, Prompt
from asymgrpo_app.rewards import ExactMatch, NumericMatch, Status, Verdict, Verifier
from asymgrpo_app.rewards.pool.pool import VerifierPool, VerifierPoolConfig
from asymgrpo_app.rollout.second_opinion import Opinions, SecondOpinion, of_all, second_opinions
from asymgrpo_app.rollout.types import Completion, JudgedCompletion, RolloutBatch, SamplingSettings
from tests.support.trial_verifiers import Hangs

SETTINGS = SamplingSettings(1.0, 10, ())
ALL = SecondOpinion(NumericMatch(), share=1.0)


def judged(text: str, *, correct: bool = True, truncated: bool = False) -> JudgedCompletion:
    return JudgedCompletion(Completion([1], [0.0], truncated), text, Verdict(correct))


def rollouts(*groups: list[JudgedCompletion], answer: str = "4", first: int = 0) -> RolloutBatch:
    """One problem for each group, its index counted from `first`."""
    prompts = [
        EncodedPrompt(Prompt(f"mine/{n}", "2+2>", {"answer": answer}, ExactMatch()), "2+2>", [1], index=n)
        for n in range(first, first + len(groups))
    ]
    return RolloutBatch(prompts, list(groups), SETTINGS)


def opinions(batch: RolloutBatch, config: SecondOpinion = ALL, step: int = 0, seed: int = 0) -> Opinions:
    with VerifierPool() as pool:
        return second_opinions(config, batch, seed, step, pool)


def of(batch: RolloutBatch, prompts: slice) -> RolloutBatch:
    return replace(batch, prompts=batch.prompts[prompts], groups=batch.groups[prompts])


def test_only_accepted_answers_get_one():
    found = opinions(rollouts([judged("4"), judged("5", correct=False), judged("5", truncated=True), judged("5")]))
    assert (found.accepted, found.drawn, found.refused, found.failed) == (2, 2, 0, 0)
    assert found.disagreed == {0: [False, True]}
    assert found.shares == [0.5]
    assert found.examples == {
        0: "ExactMatch right, NumericMatch wrong at mine/0, problem '2+2>', reference '4', completion ending in '5'"
    }


def test_the_draw_is_that_of_seed_step_problem_and_number_alone():
    half = SecondOpinion(NumericMatch(), share=0.5)
    batch = rollouts(*([judged("5") for _ in range(8)] for _ in range(50)))
    whole = opinions(batch, half)
    assert 160 < whole.drawn < 240
    ranks = [opinions(of(batch, slice(rank, None, 2)), half) for rank in range(2)]
    together = of_all(ranks)
    assert together == whole
    assert together.shares == whole.shares
    assert len(whole.examples) == 3
    assert opinions(batch, half, step=1).disagreed != whole.disagreed
    assert opinions(batch, half, seed=1).disagreed != whole.disagreed


def test_a_row_that_the_second_verifier_cannot_judge_gets_none():
    found = opinions(rollouts([judged("four"), judged("four")], answer="four"))
    assert (found.accepted, found.drawn, found.refused, found.disagreed) == (2, 2, 2, {})


class Fails(Verifier):
    isolated = False

    def __init__(self, what: object) -> None:
        self.what = what

    def verify(self, completion, row):
        if isinstance(self.what, Exception):
            raise self.what
        return self.what


def test_a_failure_is_no_disagreement():
    for what in (ValueError("no"), Verdict(False, Status.TIMEOUT, "slow")):
        found = opinions(rollouts([judged("4"), judged("4")]), SecondOpinion(Fails(what), share=1.0))
        assert (found.drawn, found.failed, found.disagreed, found.examples) == (2, 2, {}, {})
        assert found.failure.startswith(("Fails error (ValueError: no) at mine/0", "Fails timeout (slow) at mine/0"))
        assert found.no_verdict == ""
    found = opinions(rollouts([judged("4")]), SecondOpinion(Fails(True), share=1.0))
    assert "True (bool), not a Verdict" in found.no_verdict


def test_one_that_hangs_is_ended_by_the_pool_and_has_not_disagreed():
    with VerifierPool(VerifierPoolConfig(workers=2, timeout_s=0.2)) as pool:
        hangs = SecondOpinion(Hangs(), share=1.0)
        found = second_opinions(hangs, rollouts([judged("4"), judged("5")]), 0, 0, pool)
    assert (found.drawn, found.failed, found.disagreed) == (2, 2, {})
    assert found.failure.startswith("Hangs timeout (took longer than 1 s, 5 times its 0.2 CPU seconds) at mine/0")


def test_an_answer_that_is_not_found_is_called_wrong():
    found = opinions(rollouts([judged("no number")]))
    assert found.disagreed == {0: [True]}
    assert "NumericMatch wrong (no_answer) at" in found.examples[0]


def test_scalars_are_shares_of_what_stands_before_them():
    found = Opinions(accepted=10, drawn=5, refused=1, failed=1)
    found.disagreed.update({0: [True, False], 3: [False]})
    metrics = StepMetrics()
    found.record(metrics)
    assert metrics.combined(lambda own: [own]) == {
        "second_opinion/drawn": 0.5,
        "second_opinion/refused": 0.2,
        "second_opinion/failed": 0.25,
        "second_opinion/disagreement": pytest.approx(1 / 3),
    }
    nothing = StepMetrics()
    opinions(rollouts([judged("5", correct=False)])).record(nothing)
    assert nothing.combined(lambda own: [own]) == {}


def test_what_is_shown_of_an_answer_is_one_short_line():
    found = opinions(rollouts([judged("\n\x1b" * 10_000 + "end")]))
    (shown,) = found.examples.values()
    assert shown.endswith("\\n\\x1bend'")
    assert len(shown) < 400
    assert shown.isprintable()
