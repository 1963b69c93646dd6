"""Groups without a signal are replaced, so many rounds and no more."""

from dataclasses import replace

import pytest

from asymgrpo_app.prompts import Countdown
from asymgrpo_app.prompts.base import EncodedPrompt
from asymgrpo_app.rewards import Verdict
from asymgrpo_app.rollout.dynamic import refill
from asymgrpo_app.rollout.types import Completion, JudgedCompletion, RolloutBatch, SamplingSettings


def group(*correct: bool) -> list[JudgedCompletion]:
    return [JudgedCompletion(Completion([5], [-0.5], False), "x", Verdict(each)) for each in correct]


MIXED, SOLVED, UNSOLVED = group(True, False), group(True, True), group(False, False)


def rollouts(*groups: list[JudgedCompletion]) -> RolloutBatch:
    prompts = [EncodedPrompt(Countdown().at(n, 0), "rendered", [1], index=n) for n in range(len(groups))]
    return RolloutBatch(prompts, list(groups), SamplingSettings(1.0, 1, (0,)))


def costs(means) -> dict[str, float]:
    return {name.removeprefix("dynamic_sampling/"): float(mean.total / mean.weight) for name, mean in means.items()}


@pytest.mark.parametrize("max_rounds", [1, 2, 3])
def test_there_are_no_more_rounds_than_allowed(max_rounds):
    batch, rounds = rollouts(MIXED, SOLVED, UNSOLVED, MIXED), []

    def draw(number, prompts):
        rounds.append((number, [prompt.index for prompt in prompts]))
        return list(prompts), [UNSOLVED for _ in prompts]

    found = costs(refill(batch, draw, max_rounds))
    assert rounds == [(number + 1, [1, 2]) for number in range(max_rounds)]
    assert found == {
        "acceptance_rate": 2 / (4 + 2 * max_rounds),
        "extra_completions": max_rounds * 2 * 2 / 4,
        "unfilled": 0.5,
        "rounds": max_rounds,
    }


def test_each_slot_is_filled_on_its_own():
    batch = rollouts(SOLVED, MIXED, UNSOLVED)

    def draw(number, prompts):
        fresh = [replace(prompt, index=prompt.index + 10 * number) for prompt in prompts]
        return fresh, [MIXED if number == 2 or prompt.index == 0 else SOLVED for prompt in prompts]

    found = costs(refill(batch, draw, 4))
    assert [prompt.index for prompt in batch.prompts] == [10, 1, 32]
    assert batch.groups == [MIXED, MIXED, MIXED]
    assert found == {"acceptance_rate": 3 / 6, "extra_completions": 2.0, "unfilled": 0.0, "rounds": 2}
