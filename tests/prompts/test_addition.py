import re

import pytest

from asymgrpo_app.errors import UserError
from asymgrpo_app.prompts import Addition
from asymgrpo_app.rewards import Verdict


def pairs(source: Addition, number: int) -> set[str]:
    return {source.identity(source.at(position, seed=1).row) for position in range(number)}


@pytest.mark.parametrize("digits", [1, 2, 5])
def test_the_form_of_a_problem(digits: int) -> None:
    source = Addition(digits=digits)
    for position in range(1_000):
        prompt = source.at(position, seed=3)
        a, b = prompt.row["a"], prompt.row["b"]
        assert 10 ** (digits - 1) <= min(a, b) <= max(a, b) < 10**digits
        assert prompt.text == f"What is {a} + {b}? Answer with just the number."
        assert prompt.row["answer"] == str(a + b)
        source.verifier.check_row(prompt.row)
        assert source.verifier.verify(f"{a} + {b} = {a + b}.", prompt.row) == Verdict(correct=True)
        assert not source.verifier.verify(f"{a + b} is wrong, it is {a + b + 1}", prompt.row).correct


def test_all_numbers_come_and_come_equally_often() -> None:
    """90 values of each number in 18,000 draws: 200 each, standard deviation 14."""
    source = Addition()
    prompts = [source.at(position, seed=0) for position in range(18_000)]
    for name in ("a", "b"):
        counts = [sum(prompt.row[name] == value for prompt in prompts) for value in range(10, 100)]
        assert 130 < min(counts) < 200 < max(counts) < 280


def test_the_splits_share_no_pair_in_either_order() -> None:
    train, validation = pairs(Addition(), 20_000), pairs(Addition(split="validation"), 20_000)
    assert not train & validation
    assert len(train | validation) > 0.99 * 90 * 91 / 2
    assert 0.08 < len(validation) / (90 * 91 / 2) < 0.12


def test_the_stream_does_not_change_between_versions() -> None:
    texts = [Addition().at(position, seed=0).text for position in (0, 1, 10**12)]
    assert [re.findall(r"\d+", text) for text in texts] == [["22", "39"], ["40", "93"], ["16", "16"]]


def test_problems_of_an_evaluation_are_distinct() -> None:
    chosen = Addition(split="validation").fixed(256)
    assert len({Addition().identity(problem.row) for problem in chosen}) == 256


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"split": "test"}, "Addition has no split 'test': use 'train' or 'validation'."),
        ({"digits": 0}, "Addition: digits must lie between 1 and 9, got 0."),
        ({"format": "{a} plus b"}, "Addition: format must contain {a} and {b} once each, got '{a} plus b'."),
    ],
)
def test_what_cannot_be_made(options: dict[str, object], said: str) -> None:
    with pytest.raises(UserError, match=re.escape(said)):
        Addition(**options)


@pytest.mark.parametrize(
    ("limit", "said"),
    [(None, "needs a limit"), (10**9, "ask for fewer"), (600, "ask for fewer")],
)
def test_limits_of_an_evaluation(limit: int | None, said: str) -> None:
    with pytest.raises(UserError, match=said):
        Addition(split="validation").fixed(limit)
