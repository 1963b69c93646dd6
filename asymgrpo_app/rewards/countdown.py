"""The verifier of Countdown: accepts expressions that use each number once and reach the target."""

import re
from collections.abc import Mapping
from typing import Any, ClassVar

from asymgrpo_app.rewards.arithmetic import Arithmetic, parse_arithmetic
from asymgrpo_app.rewards.base import Status, Verdict, Verifier

MAX_EXPRESSION_CHARS = 256
"""Longer completions are no answer. This bounds the work on hostile completions; 16 numbers below 10,000 fit."""

MAX_NUMBERS = 16
MAX_NUMBER = 9_999

# [0-9] and not \d: \d also matches other scripts' digits. Spaces may only stand beside an operator, so there is one way
# to match a text and nothing to backtrack over.
_NUMBER = "(?:0|[1-9][0-9]*)"
_EXPRESSION = re.compile(rf"{_NUMBER}(?: *[-+*] *{_NUMBER})*")


def parse_expression(text: str) -> Arithmetic | None:
    """Read `number (operator number)*` with whole numbers in ASCII digits and the operators + - *.

    Spaces beside an operator and white space around the whole are allowed; signs, brackets, leading zeros and
    everything else are not.

    Returns:
        The expression, or None if the text is not one or is longer than `MAX_EXPRESSION_CHARS`.
    """
    if len(text) > MAX_EXPRESSION_CHARS:
        return None
    text = text.strip(" \t\r\n")
    return parse_arithmetic(text) if _EXPRESSION.fullmatch(text) else None


class CountdownVerifier(Verifier):
    """Accepts an expression with + - * that uses each of `row["numbers"]` exactly once and equals `row["target"]`.

    A completion that is no expression at all has the status `no_answer`; an expression with the wrong numbers or the
    wrong value is an answer that is not correct.
    """

    isolated: ClassVar[bool] = False

    def verify(self, completion: str, row: Mapping[str, Any]) -> Verdict:
        """Judge one completion. The row has `numbers` (whole numbers) and `target` (a whole number)."""
        expression = parse_expression(completion)
        if expression is None:
            return Verdict(correct=False, status=Status.NO_ANSWER)
        uses_numbers_once = sorted(expression.numbers) == sorted(row["numbers"])
        return Verdict(correct=uses_numbers_once and expression.value == row["target"])

    def find_answer(self, completion: str, row: Mapping[str, Any]) -> str | None:
        return None if parse_expression(completion) is None else "".join(completion.split())

    def check_row(self, row: Mapping[str, Any]) -> None:
        """Check the types and ranges of `numbers` and `target`.

        Raises:
            ValueError: `numbers` is not a list of 1 to 16 whole numbers from 0 to 9,999, or `target` no whole number.
        """
        numbers, target = row.get("numbers"), row.get("target")
        if not isinstance(numbers, list | tuple) or not 1 <= len(numbers) <= MAX_NUMBERS:
            raise ValueError(f'"numbers" must be a list of 1 to {MAX_NUMBERS} whole numbers')
        if not all(type(number) is int and 0 <= number <= MAX_NUMBER for number in numbers):
            raise ValueError(f'"numbers" must hold whole numbers from 0 to {MAX_NUMBER} only')
        if type(target) is not int:  # not isinstance: True is no number
            raise ValueError('"target" must be a whole number')
