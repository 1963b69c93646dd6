"""Expressions with + - * / and brackets, read without evaluating text: exact, and bounded in length and depth."""

import re
from dataclasses import dataclass
from fractions import Fraction

MAX_CHARS = 512
MAX_DEPTH = 30
MAX_DIGITS = 9

# [0-9] and not \d: \d also matches other scripts' digits, which int() would happily read.
_TOKEN = re.compile(r"[0-9]+|[-+*/()]")


@dataclass(frozen=True)
class Arithmetic:
    """A parsed expression.

    Attributes:
        numbers: The numbers in the order they were written.
        value: The exact value of the expression.
    """

    numbers: tuple[int, ...]
    value: Fraction


def parse_arithmetic(text: str) -> Arithmetic | None:
    """Read whole numbers in ASCII digits, + - * /, signs, brackets and white space.

    Returns:
        The expression, or None if the text is not one, divides by zero, is longer than `MAX_CHARS`, nested deeper than
        `MAX_DEPTH`, or has a number of more than `MAX_DIGITS` digits.
    """
    if len(text) > MAX_CHARS or _TOKEN.sub("", text).strip(" \t\r\n"):
        return None
    tokens = _TOKEN.findall(text)
    if re.search(r"[0-9][ \t\r\n]+[0-9]", text) or any(len(token) > MAX_DIGITS for token in tokens):
        return None
    try:
        return _Parser(tokens).parse()
    except (SyntaxError, ZeroDivisionError):
        return None


class _Parser:
    """A recursive-descent parser; raises SyntaxError where the tokens are no expression."""

    def __init__(self, tokens: list[str]) -> None:
        self.tokens = [*tokens, ""]
        self.place = 0
        self.numbers: list[int] = []

    def parse(self) -> Arithmetic:
        value = self._sum(0)
        if self._next():
            raise SyntaxError
        return Arithmetic(numbers=tuple(self.numbers), value=value)

    def _next(self) -> str:
        return self.tokens[self.place]

    def _take(self) -> str:
        self.place += 1
        return self.tokens[self.place - 1]

    def _sum(self, depth: int) -> Fraction:
        value = self._product(depth)
        while self._next() in ("+", "-"):
            sign = 1 if self._take() == "+" else -1
            value += sign * self._product(depth)
        return value

    def _product(self, depth: int) -> Fraction:
        value = self._factor(depth)
        while self._next() in ("*", "/"):
            times = self._take() == "*"
            factor = self._factor(depth)
            value = value * factor if times else value / factor
        return value

    def _factor(self, depth: int) -> Fraction:
        if depth > MAX_DEPTH:
            raise SyntaxError
        token = self._take() if self._next() else ""
        if token in ("+", "-"):
            value = self._factor(depth + 1)
            return value if token == "+" else -value
        if token == "(":
            value = self._sum(depth + 1)
            if not self._next() or self._take() != ")":
                raise SyntaxError
            return value
        if not token.isdigit():
            raise SyntaxError
        self.numbers.append(int(token))
        return Fraction(int(token))
