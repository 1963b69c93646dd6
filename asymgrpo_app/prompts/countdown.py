"""Countdown: reach a target from four numbers, each used exactly once, with + - * and no brackets."""

from collections.abc import Mapping
from itertools import permutations
from typing import Any

from asymgrpo_app.prompts.procedural import ProceduralSource, Split
from asymgrpo_app.rewards.countdown import CountdownVerifier, parse_expression

MAX_TARGET = 99
_NUMBERS_PER_PROBLEM = 4
_LARGEST_NUMBER = 9
_OPERATORS = "+-*"
_ORDERS = tuple(permutations(range(_NUMBERS_PER_PROBLEM)))


class Countdown(ProceduralSource):
    """Endless procedural problems: four numbers 1 to 9 and a target 0 to 99, written `3 5 2 7 17>`.

    A problem is made from a random expression, so every problem has a solution; most have several, and all of them are
    right. Its identity is its sorted numbers and its target. A hash of the identity puts about one problem in ten on
    the validation side, so the two splits share none. Rows are `{"numbers": [3, 5, 2, 7], "target": 17, "answer":
    "<one right expression>"}`. The uid is `countdown/<split>/<seed>/<position>`; problems repeat, since they are few.

    Args:
        split: The side of the split that the problems come from, `train` or `validation`.
    """

    def __init__(self, split: Split = "train") -> None:
        super().__init__(split, "countdown", "countdown problem", CountdownVerifier())

    def draw(self, bits: int) -> dict[str, Any] | None:
        """A random expression's numbers in a random order, its value and itself."""
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
        shuffled = [numbers[index] for index in _ORDERS[order]]
        row = {"numbers": shuffled, "target": int(parsed.value), "answer": expression}
        return row if 0 <= parsed.value <= MAX_TARGET and self.split_of(row) == self.split else None

    def text(self, row: Mapping[str, Any]) -> str:
        return f"{' '.join(map(str, row['numbers']))} {row['target']}>"

    def identity(self, row: Mapping[str, Any]) -> str:
        return f"countdown split {sorted(row['numbers'])} {row['target']}"
