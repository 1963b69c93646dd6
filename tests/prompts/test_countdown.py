from collections.abc import Sequence
from itertools import product

import pytest

from asymgrpo_app.errors import UserError
from asymgrpo_app.prompts import Countdown, Prompt
from asymgrpo_app.rewards import Verdict

Identity = tuple[tuple[int, ...], int]


def split_of(numbers: Sequence[int], target: int) -> str:
    return Countdown().split_of({"numbers": numbers, "target": target})


def identity(prompt: Prompt) -> Identity:
    return tuple(sorted(prompt.row["numbers"])), prompt.row["target"]


def every_problem() -> set[Identity]:
    """All solvable problems, by a count of its own: sums of products over the eight ways to place the stars."""
    problems = set()
    for a, b, c, d in product(range(1, 10), repeat=4):
        numbers = tuple(sorted((a, b, c, d)))
        for x, y in product((1, -1), repeat=2):
            values = {a * b * c * d, a + x * b * c * d, a * b + x * c * d, a * b * c + x * d}
            values |= {a + x * b + y * c * d, a + x * b * c + y * d, a * b + x * c + y * d}
            values |= {a + x * b + y * c + z * d for z in (1, -1)}
            problems |= {(numbers, value) for value in values if 0 <= value <= 99}
    return problems


def test_the_form_of_a_problem() -> None:
    for position in range(2_000):
        prompt = Countdown().at(position, seed=3)
        numbers, target = prompt.row["numbers"], prompt.row["target"]
        assert len(numbers) == 4
        assert all(1 <= number <= 9 for number in numbers)
        assert 0 <= target <= 99
        assert prompt.text == f"{numbers[0]} {numbers[1]} {numbers[2]} {numbers[3]} {target}>"
        assert prompt.uid == f"countdown/train/3/{position}"


@pytest.mark.parametrize("split", ["train", "validation"])
def test_the_answer_of_every_row_is_right_and_the_row_is_valid(split: str) -> None:
    source = Countdown(split=split)
    for position in range(1_000):
        row = source.at(position, seed=0).row
        source.verifier.check_row(row)
        assert source.verifier.verify(row["answer"], row) == Verdict(correct=True)


def test_a_problem_is_a_pure_function_of_seed_and_position() -> None:
    forwards = [Countdown().at(position, seed=5) for position in range(300)]
    source = Countdown()
    backwards = [source.at(position, seed=5) for position in reversed(range(300))]
    assert backwards[::-1] == forwards


def test_the_stream_does_not_change_between_versions() -> None:
    texts = [Countdown().at(position, seed=0).text for position in (0, 1, 10**12)]
    assert texts == ["5 9 6 2 6>", "6 3 8 3 29>", "2 8 1 9 9>"]
    assert [problem.text for problem in Countdown(split="validation").fixed(2)] == ["2 9 5 1 2>", "3 4 5 5 17>"]


def test_seeds_and_positions_give_different_problems() -> None:
    first = [identity(Countdown().at(position, seed=0)) for position in range(1_000)]
    second = [identity(Countdown().at(position, seed=1)) for position in range(1_000)]
    assert sum(a == b for a, b in zip(first, second, strict=True)) < 10
    assert len(set(first)) > 900


def test_every_number_and_every_place_is_drawn_alike() -> None:
    drawn = [Countdown(split="train").at(position, seed=2).row for position in range(5_000)]
    for place in range(4):
        mean = sum(row["numbers"][place] for row in drawn) / len(drawn)
        assert mean == pytest.approx(sum(sum(row["numbers"]) for row in drawn) / 4 / len(drawn), abs=0.12)
    same_order = sum("".join(map(str, row["numbers"])) == row["answer"][::2] for row in drawn) / len(drawn)
    assert (
        same_order < 0.10
    )  # the prompt must not give away the order of the answer: 1 in 24, more with repeated numbers


def test_there_are_10625_problems_and_a_tenth_is_for_validation() -> None:
    problems = every_problem()
    assert len(problems) == 10_625
    held_out = sum(split_of(numbers, target) == "validation" for numbers, target in problems)
    assert held_out / len(problems) == pytest.approx(0.1, abs=0.01)


def test_train_and_validation_share_no_problem() -> None:
    train = {identity(Countdown(split="train").at(position, seed)) for seed in (0, 1) for position in range(10_000)}
    validation = {
        identity(Countdown(split="validation").at(position, seed)) for seed in (0, 1) for position in range(1_000)
    }
    assert len(train) > 4_000
    assert len(validation) > 500
    assert not train & validation
    assert train | validation <= every_problem()


def test_the_split_does_not_depend_on_the_order_of_the_numbers() -> None:
    for position in range(200):
        row = Countdown(split="validation").at(position, seed=0).row
        assert split_of(sorted(row["numbers"], reverse=True), row["target"]) == "validation"


def test_fixed_problems_are_distinct_and_always_the_same() -> None:
    problems = Countdown(split="validation").fixed(256)
    assert len({identity(problem) for problem in problems}) == 256
    assert len({problem.uid for problem in problems}) == 256
    assert Countdown(split="validation").fixed(256) == problems
    assert Countdown(split="validation").fixed(100) == problems[:100]
    assert all(split_of(*identity(problem)) == "validation" for problem in problems)


def test_fixed_needs_a_limit() -> None:
    with pytest.raises(UserError, match="Countdown is endless and needs a limit for evaluation, not None"):
        Countdown().fixed(None)


def test_fixed_ends_with_an_error_where_the_split_is_too_small(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("asymgrpo_app.prompts.procedural._SCANNED_PER_FIXED", 2)
    with pytest.raises(
        UserError, match=r"validation split of Countdown is too small for a limit of 1000 .* ask for fewer"
    ):
        Countdown(split="validation").fixed(1_000)


def test_an_unknown_split_is_refused() -> None:
    with pytest.raises(UserError, match="no split 'test': use 'train' or 'validation'"):
        Countdown(split="test")
