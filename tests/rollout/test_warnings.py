"""What a run says of a step from which nothing can be learned."""

import pytest

from asymgrpo_app.prompts import Countdown
from asymgrpo_app.prompts.base import EncodedPrompt
from asymgrpo_app.rewards import Status, Verdict
from asymgrpo_app.rollout.types import Completion, JudgedCompletion, RolloutBatch, SamplingSettings
from asymgrpo_app.rollout.warnings import DegenerateWarnings

RIGHT, WRONG = Verdict(True), Verdict(False)
FAILED = Verdict(False, Status.ERROR, "no")
CUT = True
HARD = (
    "wrong, so the step taught nothing: the verifier may not find the answers (the samples in TensorBoard show them), "
    "or the problems are too hard for the policy."
)
EASY = "right, so the step taught nothing: these problems are too easy for the policy."


def said(capsys, *group: tuple[Verdict, bool], cut_is_wrong: bool = True, failed_is_wrong: bool = True) -> list[str]:
    judged = [JudgedCompletion(Completion([1], [0.0], cut), "text", verdict) for verdict, cut in group]
    prompt = EncodedPrompt(Countdown().at(0, 0), "rendered", [1])
    settings = SamplingSettings(1.0, 1_000, (1,))
    batch = RolloutBatch([prompt], [judged], settings, cut_is_wrong, failed_is_wrong)
    warnings = DegenerateWarnings()
    for step in (7, 8):
        warnings.look_at(batch, step, lambda own: [own, own])
    return capsys.readouterr().out.splitlines()


def test_a_step_with_both_says_nothing(capsys):
    assert said(capsys, (RIGHT, False), (WRONG, False)) == []


@pytest.mark.parametrize(("verdict", "why"), [(WRONG, HARD), (RIGHT, EASY)])
def test_all_alike(verdict, why, capsys):
    assert said(capsys, (verdict, False), (verdict, False)) == [
        f"WARNING: all 4 completions of step 7 were judged {why}"
    ]


@pytest.mark.parametrize(
    ("wrong", "what"), [(True, "is never right"), (False, "is left out (rollout.truncated: exclude)")]
)
def test_what_becomes_of_completions_that_are_cut(wrong, what, capsys):
    group = [(WRONG, CUT), (RIGHT, CUT), (RIGHT, False), (WRONG, False), (WRONG, CUT)]
    assert said(capsys, *group, cut_is_wrong=wrong) == [
        "WARNING: 6 of the 10 completions of step 7 were cut at rollout.max_completion_tokens (1,000), and a "
        f"completion that is cut {what}. Raise the limit, or ask for shorter answers in the template."
    ]


def test_those_that_are_left_out_are_not_called_wrong(capsys):
    group = [(RIGHT, False), (WRONG, CUT), (FAILED, False)]
    assert said(capsys, *group, cut_is_wrong=False, failed_is_wrong=False) == [
        f"WARNING: all 2 completions of step 7 that were not left out, of 6, were judged {EASY}"
    ]
    assert said(capsys, *group, cut_is_wrong=True, failed_is_wrong=True) == []


def test_nothing_is_left(capsys):
    assert said(capsys, (WRONG, CUT), (RIGHT, CUT), cut_is_wrong=False)[1:] == [
        "WARNING: all 4 completions of step 7 were left out (rollout.truncated or rollout.verifier_failure: exclude), "
        "so the step taught nothing."
    ]
