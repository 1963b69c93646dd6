"""The verifier of Countdown: accepts expressions that use each number once and reach the target."""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from math import prod
from typing import Any, ClassVar

from asymgrpo_app.rewards.base import Status, Verdict, Verifier

MAX_EXPRESSION_CHARS = 256
"""Longer completions are no answer. This bounds the work on hostile completions; 16 numbers below 10,000 fit."""

MAX_NUMBERS = 16
MAX_NUMBER = 9_999

# [0-9] and not \d: \d also matches other scripts' digits, which int() would happily read. Spaces may only stand beside
# an operator, so there is one way to match a text and nothing to backtrack over.
_EXPRESSION = re.compile(r"[0-9]+(?: *[-+*] *[0-9]+)*")
_TOKEN = re.compile(r"[0-9]+|[-+*]")


@dataclass(frozen=True)
class Expression:
    """A parsed expression.

    Attributes:
        numbers: The numbers in the order they were written.
        value: The value of the expression, with * before + and -.
    """

    numbers: tuple[int, ...]
    value: int


def parse_expression(text: str) -> Expression | None:
    """Read `number (operator number)*` with whole numbers in ASCII digits and the operators + - *.

    Spaces beside an operator and white space around the whole are allowed; signs, brackets, leading zeros and
    everything else are not.

    Returns:
        The expression, or None if the text is not one or is longer than `MAX_EXPRESSION_CHARS`.
    """
    if len(text) > MAX_EXPRESSION_CHARS:
        return None
    text = text.strip(" \t\r\n")
    if not _EXPRESSION.fullmatch(text):
        return None
    tokens = _TOKEN.findall(text)
    numerals, operators = tokens[::2], tokens[1::2]
    if any(len(numeral) > 1 and numeral.startswith("0") for numeral in numerals):
        return None
    numbers = tuple(int(numeral) for numeral in numerals)
    products = [[numbers[0]]]  # the expression as a sum of signed products
    for operator, number in zip(operators, numbers[1:], strict=True):
        if operator == "*":
            products[-1].append(number)
        else:
            products.append([1 if operator == "+" else -1, number])
    return Expression(numbers=numbers, value=sum(prod(factors) for factors in products))


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
        if not all(_is_whole(number) and 0 <= number <= MAX_NUMBER for number in numbers):
            raise ValueError(f'"numbers" must hold whole numbers from 0 to {MAX_NUMBER} only')
        if not _is_whole(target):
            raise ValueError('"target" must be a whole number')


def _is_whole(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)
