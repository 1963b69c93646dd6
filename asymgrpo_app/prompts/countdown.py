"""Countdown: reach a target from four numbers, each used exactly once, with + - * and no brackets."""

from collections.abc import Sequence
from hashlib import blake2b
from itertools import permutations
from math import comb
from typing import Literal, get_args

from asymgrpo_app.errors import UserError
from asymgrpo_app.prompts.base import Prompt, PromptSource
from asymgrpo_app.rewards.countdown import CountdownVerifier, parse_expression

Split = Literal["train", "validation"]

MAX_TARGET = 99
_NUMBERS_PER_PROBLEM = 4
_LARGEST_NUMBER = 9
_OPERATORS = "+-*"
_ORDERS = tuple(permutations(range(_NUMBERS_PER_PROBLEM)))
_FIXED_SEED = 0
_MOST_PROBLEMS = comb(_LARGEST_NUMBER + _NUMBERS_PER_PROBLEM - 1, _NUMBERS_PER_PROBLEM) * (MAX_TARGET + 1)

_SCANNED_PER_FIXED = 20
"""`fixed` gives up after this many positions per problem asked for: a split is finite."""


class Countdown(PromptSource):
    """Endless procedural problems: four numbers 1 to 9 and a target 0 to 99, written `3 5 2 7 17>`.

    A problem is made from a random expression, so every problem has a solution; most have several, and all of them are
    right. Its identity is its sorted numbers and its target. A hash of the identity puts about one problem in ten on
    the validation side, so the two splits share none. Rows are `{"numbers": [3, 5, 2, 7], "target": 17, "answer":
    "<one right expression>"}`.

    Args:
        split: Which side of the split the problems come from.
    """

    def __init__(self, split: Split = "train") -> None:
        if split not in get_args(Split):
            raise UserError(f"Countdown has no split {split!r}: use 'train' or 'validation'.")
        self.split = split
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

    def fixed(self, limit: int | None) -> Sequence[Prompt]:
        """The first `limit` problems of a constant seed that differ in their sorted numbers or their target.

        Raises:
            UserError: `limit` is None, not positive, or (nearly) more than the problems the split has.
        """
        if limit is None or limit < 1:
            raise UserError(f"Countdown is endless and needs a positive limit for evaluation, not {limit}.")
        if limit > _MOST_PROBLEMS:
            raise UserError(
                f"Countdown has fewer than {_MOST_PROBLEMS:,} distinct problems, a limit of {limit} is too large."
            )
        distinct: dict[tuple[tuple[int, ...], int], Prompt] = {}
        for position in range(_SCANNED_PER_FIXED * limit):
            prompt = self.at(position, _FIXED_SEED)
            distinct.setdefault((tuple(sorted(prompt.row["numbers"])), prompt.row["target"]), prompt)
            if len(distinct) == limit:
                return list(distinct.values())
        raise UserError(
            f"Countdown's {self.split} split is too small for a limit of {limit} distinct problems: "
            f"{len(distinct)} were found, ask for fewer."
        )


def split_of(numbers: Sequence[int], target: int) -> Split:
    """The side a problem is on, whatever the order of its numbers: about one in ten is for validation."""
    return "validation" if _hash(f"countdown split {sorted(numbers)} {target}") % 10 == 0 else "train"


def _draw(position: int, seed: int, attempt: int) -> tuple[list[int], int, str]:
    """Draw a random expression; returns its numbers in a random order, its value and itself."""
    # Digits of a hash and not `random`: Python does not promise the same `choice` and `shuffle` in every version.
    bits = _hash(f"countdown problem {seed} {position} {attempt}")
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


def _hash(text: str) -> int:
    return int.from_bytes(blake2b(text.encode(), digest_size=16).digest(), "big")
