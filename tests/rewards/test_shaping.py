"""Terms by form: what they take off, and that they decide nothing else."""

import pytest

from asymgrpo_app.errors import UserError
from asymgrpo_app.rewards.shaping import FormatPenalty


@pytest.mark.parametrize(
    ("completion", "value"),
    [
        ("<think>1</think>2", 0.0),
        ("x<think></think>", 0.0),
        ("</think><think>", -0.25),
        ("<think>1", -0.25),
        ("", -0.25),
    ],
)
def test_texts_must_occur_in_order(completion, value):
    assert FormatPenalty(["<think>", "</think>"], penalty=0.25).value(completion) == value


def test_the_same_text_twice_needs_two_places():
    assert FormatPenalty(["a", "a"]).value("a") == -0.5
    assert FormatPenalty(["a", "a"]).value("aa") == 0.0


@pytest.mark.parametrize(("required", "penalty"), [([], 0.5), (["a", ""], 0.5), (["a"], 0.0), (["a"], float("inf"))])
def test_settings_that_mean_nothing(required, penalty):
    with pytest.raises(UserError, match="FormatPenalty"):
        FormatPenalty(required, penalty)
