"""Which completions of a group are right, and which of them count."""

import pytest

from asymgrpo_app.prompts import Countdown
from asymgrpo_app.prompts.base import EncodedPrompt
from asymgrpo_app.rewards import Status, Verdict
from asymgrpo_app.rollout.types import Completion, JudgedCompletion, RolloutBatch, SamplingSettings

RIGHT, RIGHT_BUT_CUT, TIMEOUT, ERROR = (
    JudgedCompletion(Completion([5], [-0.5], truncated), "x", Verdict(correct, status))
    for correct, truncated, status in (
        (True, False, Status.OK),
        (True, True, Status.OK),
        (False, False, Status.TIMEOUT),
        (False, False, Status.ERROR),
    )
)


@pytest.mark.parametrize(
    ("truncated_are_wrong", "failed_are_wrong", "valid"),
    [
        (True, True, [True, True, True, True]),
        (False, True, [True, False, True, True]),
        (True, False, [True, True, False, False]),
        (False, False, [True, False, False, False]),
    ],
)
def test_completions_that_are_left_out_of_their_group(truncated_are_wrong, failed_are_wrong, valid):
    prompt = EncodedPrompt(Countdown().at(0, 0), "rendered", [1])
    group = [RIGHT, RIGHT_BUT_CUT, TIMEOUT, ERROR]
    rollouts = RolloutBatch([prompt], [group], SamplingSettings(1.0, 1, (0,)), truncated_are_wrong, failed_are_wrong)
    assert rollouts.rewards().tolist() == [[1.0, 0.0, 0.0, 0.0]]
    assert rollouts.valid().tolist() == [valid]
