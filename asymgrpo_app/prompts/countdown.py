"""Countdown: reach a target from four numbers, each used exactly once, with + - * and no brackets."""

from collections.abc import Sequence
from itertools import permutations
from math import comb

from asymgrpo_app.prompts.base import Prompt
from asymgrpo_app.prompts.procedural import ProceduralSource, Split, hash_of, split_by_hash
from asymgrpo_app.rewards.countdown import CountdownVerifier, parse_expression

MAX_TARGET = 99
_NUMBERS_PER_PROBLEM = 4
_LARGEST_NUMBER = 9
_OPERATORS = "+-*"
_ORDERS = tuple(permutations(range(_NUMBERS_PER_PROBLEM)))
_MOST_PROBLEMS = comb(_LARGEST_NUMBER + _NUMBERS_PER_PROBLEM - 1, _NUMBERS_PER_PROBLEM) * (MAX_TARGET + 1)


class Countdown(ProceduralSource):
    """Endless procedural problems: four numbers 1 to 9 and a target 0 to 99, written `3 5 2 7 17>`.

    A problem is made from a random expression, so every problem has a solution; most have several, and all of them are
    right. Its identity is its sorted numbers and its target. A hash of the identity puts about one problem in ten on
    the validation side, so the two splits share none. Rows are `{"numbers": [3, 5, 2, 7], "target": 17, "answer":
    "<one right expression>"}`.

    Args:
        split: The side of the split that the problems come from, `train` or `validation`.
    """

    def __init__(self, split: Split = "train") -> None:
        super().__init__(split, _MOST_PROBLEMS)
        self.verifier = CountdownVerifier()

    def at(self, position: int, seed: int) -> Prompt:
        """Problem number `position` of `seed`, a pure function of the two; problems repeat, since they are few.

        Its uid is `countdown/<split>/<seed>/<position>`.
        """
        attempt = 0
        while True:
            numbers, target, expression = _draw(position, seed, attempt)
            if 0 <= target <= MAX_TARGET and split_of(numbers, target) == self.split:
                break
            attempt += 1
        return Prompt(
            uid=f"countdown/{self.split}/{seed}/{position}",
            text=f"{' '.join(map(str, numbers))} {target}>",
            row={"numbers": numbers, "target": target, "answer": expression},
            verifier=self.verifier,
        )

    def identity(self, prompt: Prompt) -> tuple[tuple[int, ...], int]:
        """Its sorted numbers and its target."""
        return tuple(sorted(prompt.row["numbers"])), prompt.row["target"]


def split_of(numbers: Sequence[int], target: int) -> Split:
    """The split of a problem, whatever the order of its numbers: about one in ten is for validation."""
    return split_by_hash(f"countdown split {sorted(numbers)} {target}")


def _draw(position: int, seed: int, attempt: int) -> tuple[list[int], int, str]:
    """Draw a random expression; returns its numbers in a random order, its value and itself."""
    bits = hash_of(f"countdown problem {seed} {position} {attempt}")
    bits, order = divmod(bits, len(_ORDERS))
    numbers: list[int] = []
    expression = ""
    for _ in range(_NUMBERS_PER_PROBLEM):
        if numbers:
            bits, operator = divmod(bits, len(_OPERATORS))
            expression += _OPERATORS[operator]
        bits, number = divmod(bits, _LARGEST_NUMBER)
        numbers.append(number + 1)
        expression += str(number + 1)
    parsed = parse_expression(expression)
    assert parsed is not None
    return [numbers[index] for index in _ORDERS[order]], parsed.value, expression
