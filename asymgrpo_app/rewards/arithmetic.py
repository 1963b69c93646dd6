"""Expressions with + - * / and brackets, read without evaluating text: exact, and bounded in length and depth."""

import operator
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from fractions import Fraction
from typing import Any, Final

MAX_CHARS: Final = 512
MAX_DEPTH: Final = 30

# [0-9] and not \d: \d also matches other scripts' digits, which int() would happily read.
_TOKEN = re.compile(r"[0-9]+|[-+*/()]")

# From the weakest to the strongest. Only a division leaves whole numbers.
_OPERATORS: tuple[Mapping[str, Callable[[Any, Any], Any]], ...] = (
    {"+": operator.add, "-": operator.sub},
    {"*": operator.mul, "/": Fraction},
)


@dataclass(frozen=True)
class Arithmetic:
    """A parsed expression.

    Attributes:
        numbers: The numbers in the order they were written.
        value: The exact value of the expression.
    """

    numbers: tuple[int, ...]
    value: int | Fraction


def parse_arithmetic(text: str) -> Arithmetic | None:
    """Read whole numbers in ASCII digits, + - * /, signs, brackets and white space.

    Returns:
        The expression, or None if the text is not one, divides by zero, is longer than `MAX_CHARS` or nested deeper
        than `MAX_DEPTH`.
    """
    if len(text) > MAX_CHARS or _TOKEN.sub("", text).strip(" \t\r\n"):
        return None
    tokens = _TOKEN.findall(text)
    rest = tokens[::-1]
    try:
        value = _read(rest)
    except (IndexError, ValueError, ZeroDivisionError):
        return None
    return None if rest else Arithmetic(tuple(int(token) for token in tokens if token.isdigit()), value)


def _read(rest: list[str], level: int = 0, depth: int = 0) -> int | Fraction:
    """Take the longest expression with operators of this level and above from the end of the reversed tokens.

    Raises:
        IndexError: The tokens end too early.
        ValueError: They are no expression.
    """
    if level == len(_OPERATORS):
        return _read_operand(rest, depth)
    value = _read(rest, level + 1, depth)
    while rest and rest[-1] in _OPERATORS[level]:
        combine = _OPERATORS[level][rest.pop()]
        value = combine(value, _read(rest, level + 1, depth))
    return value


def _read_operand(rest: list[str], depth: int) -> int | Fraction:
    if depth > MAX_DEPTH:
        raise ValueError("nested too deeply")
    token = rest.pop()
    if token in "+-":
        value = _read_operand(rest, depth + 1)
        return value if token == "+" else -value
    if token == "(":
        value = _read(rest, 0, depth + 1)
        if rest.pop() != ")":
            raise ValueError("a bracket is not closed")
        return value
    return int(token)
