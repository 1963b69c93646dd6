"""The verifier of Countdown: accepts expressions that use each number once and reach the target."""

import re
from collections.abc import Mapping
from typing import Any, ClassVar, Literal

from asymgrpo_app.errors import UserError
from asymgrpo_app.rewards.arithmetic import Arithmetic, parse_arithmetic
from asymgrpo_app.rewards.base import Status, Verdict, Verifier
from asymgrpo_app.rewards.extraction import TAIL_CHARS, after_thinking, last_boxed
from asymgrpo_app.rewards.numbers import last_match

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


_SIGNS = {r"\times": "*", r"\cdot": "*", "×": "*", "·": "*", "⋅": "*", "−": "-", "–": "-", r"\div": "/", "÷": "/",
          "[": "(", "]": ")", "{": "(", "}": ")", "$": " "}  # fmt: skip
_USUAL_SIGN = re.compile("|".join(map(re.escape, _SIGNS)))
_TAGGED = re.compile(r"<answer>([^<>]*)</answer>")
_RESULT = re.compile(r"(?P<expression>[^=]*)=\s*(?P<result>-?[0-9]{1,20})")


def parse_usual(completion: str) -> Arithmetic | None:
    r"""Read an expression as models write it.

    It is the last `<answer>`, else the last `\boxed{}`, else the whole completion behind its thinking. It may hold
    + - * /, brackets of any kind, signs such as `×` and `\times`, and `=` with the result at its end, which must be
    right.

    Returns:
        The expression, or None if it is none.
    """
    text = after_thinking(completion)[-TAIL_CHARS:]
    tagged = last_match(_TAGGED, text)
    text = tagged[1] if tagged else text
    box = last_boxed(text)
    text = (text if box is None else box).strip().removesuffix(".")
    if len(text) > MAX_EXPRESSION_CHARS:
        return None
    text = _USUAL_SIGN.sub(lambda sign: _SIGNS[sign[0]], text)
    result = _RESULT.fullmatch(text.strip())
    expression = parse_arithmetic(result["expression"] if result else text)
    if result and expression is not None and expression.value != int(result["result"]):
        return None
    return expression


class CountdownVerifier(Verifier):
    r"""Accepts an expression that uses each of `row["numbers"]` exactly once and equals `row["target"]`.

    With `forms: exact` the whole completion must be whole numbers with + - * between them, spaces allowed: no brackets,
    no division, no signs, no `= 13`, no tags. With `forms: usual` the expression is looked for in the last
    `<answer>`, else in the last `\boxed{}`, else it is the completion behind its thinking; it may hold brackets,
    division, signs of mathematics (`×`, `\times`, `÷`) and the right result behind `=`.

    A completion that is no expression at all has the status `no_answer`; an expression with the wrong numbers or the
    wrong value is an answer that is not correct.

    Args:
        forms: Which expressions are read: `exact` or `usual`.
    """

    isolated: ClassVar[bool] = False

    def __init__(self, forms: Literal["exact", "usual"] = "exact") -> None:
        if forms not in ("exact", "usual"):
            raise UserError(f'forms must be "exact" or "usual", not {forms!r}')
        self.forms = forms

    def _parsed(self, completion: str) -> Arithmetic | None:
        return parse_expression(completion) if self.forms == "exact" else parse_usual(completion)

    def verify(self, completion: str, row: Mapping[str, Any]) -> Verdict:
        """Judge one completion. The row has `numbers` (whole numbers) and `target` (a whole number)."""
        expression = self._parsed(completion)
        if expression is None:
            return Verdict(correct=False, status=Status.NO_ANSWER)
        uses_numbers_once = sorted(expression.numbers) == sorted(row["numbers"])
        return Verdict(correct=uses_numbers_once and expression.value == row["target"])

    def find_answer(self, completion: str, row: Mapping[str, Any]) -> str | None:
        return None if self._parsed(completion) is None else "".join(completion.split())

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
