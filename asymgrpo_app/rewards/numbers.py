r"""Reading written numbers: `-1,234.5`, `1.5e-3`, `3/4`, `2\frac{1}{3}`, `12.5\%`. Exact, and bounded in work."""

import re
from dataclasses import dataclass
from fractions import Fraction
from typing import Final

MAX_DIGITS: Final = 1_000
MAX_EXPONENT: Final = 1_000
"""Longer numbers and larger powers of ten are not read: a completion may hold megabytes of digits, or 1e999999999."""

MIN_ROUNDED_DIGITS: Final = 6
"""Significant digits from which a decimal equals a number that it is a rounding of (0.333333 for 1/3)."""

# [0-9] and not \d: \d also matches other scripts' digits. A number that a letter or another digit stands directly
# before belongs to a word (x2, GPT4) or to a number that could not be read.
_PLAIN = (
    r"(?:[0-9]{1,3}(?: [0-9]{3}){2,}(?![0-9])"
    r"|[0-9]{1,3}(?:,[0-9]{3})+(?![0-9])(?:\.[0-9]+)?|[0-9]+(?:\.[0-9]+)?|\.[0-9]+)"
)
_POWER = (
    r"(?:[eE][-+]?[0-9]+(?![0-9A-Za-z])|\s?(?:\\times|\\cdot|×|\*)\s?10\s?\^\s?(?:\{\s?[-+]?[0-9]+\s?\}|[-+]?[0-9]+))"
)
_SCALED = rf"{_PLAIN}{_POWER}?"
_FRACTION = (
    r"(?:(?P<whole>[0-9]{1,9})\s?)?"
    rf"\\[dtc]?frac\s?\{{\s?(?P<top>[-+]?{_PLAIN})\s?\}}\s?\{{\s?(?P<bottom>{_PLAIN})\s?\}}"
)
_RAISED = (
    r"(?P<base>[0-9]{1,1000})\s?\^\s?"
    r"(?:\{\s?(?P<braced>[-+]?[0-9]{1,4})\s?\}|(?P<exponent>[0-9]{1,4}))(?![0-9^])"
)
_SLASH = rf"(?P<left>{_SCALED})\s?/\s?(?P<right>[-+]?{_SCALED})"
# In `5-3` and `5 - 3` the last number is 3, in `is -3` and `= - 3` it is -3.
_SIGN = r"(?P<sign>(?<![0-9A-Za-z)\]}.])(?:[-+−]|(?<![0-9)\]}] )[-+−]\s))?"
NUMBER: Final = re.compile(
    rf"(?<![0-9A-Za-z_.]){_SIGN}(?:{_FRACTION}|{_RAISED}|{_SLASH}|(?P<scaled>{_SCALED}))(?P<percent>\s?\\?%)?"
)
_POWER_START = re.compile(r"[eE]|\\times|\\cdot|×|\*")


@dataclass(frozen=True)
class WrittenNumber:
    """A number as it was written.

    Attributes:
        value: Its value; 5 for `5%`, see `percent`.
        percent: Whether a percent sign follows.
        decimals: Digits after the decimal point; None if it is not written with one.
    """

    value: Fraction
    percent: bool = False
    decimals: int | None = None

    def candidates(self) -> tuple[Fraction, ...]:
        """The values it may mean: 5% is 0.05, but an answer in percent is often written without its sign."""
        return (self.value, self.value / 100) if self.percent else (self.value,)

    def rounds(self, exact: Fraction) -> bool:
        """Whether it is a decimal of at least `MIN_ROUNDED_DIGITS` significant digits: the exact value, rounded."""
        if self.decimals is None:
            return False
        unit = Fraction(1, 10**self.decimals)
        return abs(self.value) >= unit * 10 ** (MIN_ROUNDED_DIGITS - 1) and abs(self.value - exact) <= unit / 2


def parse_number(text: str) -> WrittenNumber | None:
    """Read a text that is one number from end to end.

    Returns:
        The number, or None if the text is something else, divides by zero, or has more than `MAX_DIGITS` characters or
        a power of ten beyond `MAX_EXPONENT`.
    """
    text = text.strip()
    match = NUMBER.fullmatch(text) if len(text) <= MAX_DIGITS else None
    if match is None:
        return None
    try:
        value = _magnitude(match)
    except (ArithmeticError, ValueError):
        return None
    decimals = (match["scaled"] or "").partition(".")[2]
    return WrittenNumber(
        value=-value if (match["sign"] or "").strip() in ("-", "−") else value,
        percent=bool(match["percent"]),
        decimals=len(decimals) if decimals.isdigit() else None,
    )


def equal_written(reference: WrittenNumber, given: WrittenNumber) -> bool:
    """Whether two numbers are equal, one is a decimal to which the other is rounded, or a percent sign is left out.

    5% is right for 0.05, and for 5, which then counts per cent; 0.05% is not right for 0.05.
    """
    if reference.percent == given.percent:
        value, other = reference.value, given.value
        return value == other or reference.rounds(other) or given.rounds(value)
    if reference.percent:
        return given.value in reference.candidates()
    return given.value / 100 == reference.value or (given.value == reference.value and abs(given.value) > 1)


def last_match(pattern: re.Pattern[str], text: str) -> re.Match[str] | None:
    """The last match of a pattern that is searched for from the left, or None."""
    last = None
    for last in pattern.finditer(text):  # noqa: B007 (the last one is wanted)
        pass
    return last


_JOINED = re.compile(
    r"[0-9)\]}]\s?(?:\\(?:times|cdot|div)|[-+*/^:×÷·−])\s?[-+]?$|[_^√}]\s?\{\s?$|[_^√]\s?$"
    r"|\\(?!(?:boxed|fbox|text|textbf|mathrm|mathbf|displaystyle)\b)[A-Za-z]+\s?\{?\s?$|[0-9%}]\W{0,9}or\W{0,9}$"
)
_ASKED = re.compile(r"[^.!?\n]{0,200}\?")


def is_asked(text: str, end: int) -> bool:
    """Whether what ends at `end` stands in a question, as in a problem that is repeated: no answer."""
    return _ASKED.match(text, end) is not None


def last_number(text: str) -> str | None:
    """The last number in a text as it is written; None if there is none, or if it is no answer.

    30 is not the number in `10:30`, nor 5 in `3 + 5`; `4 or 5` is no answer, nor is what stands in a question. Takes
    time linear in the length of any realistic text.
    """
    last = last_match(NUMBER, text)
    if last is None or _JOINED.search(text[max(0, last.start() - 40) : last.start()]) or is_asked(text, last.end()):
        return None
    return last[0]


def _magnitude(match: re.Match[str]) -> Fraction:
    if match["base"]:
        base, power = int(match["base"]), int(match["braced"] or match["exponent"])
        if len(match["base"]) * abs(power) > MAX_DIGITS:
            raise OverflowError
        return Fraction(base) ** power
    if match["left"]:
        return _scaled(match["left"]) / _scaled(match["right"])
    if not match["top"]:
        return _scaled(match["scaled"])
    value = _scaled(match["top"]) / _scaled(match["bottom"])
    if match["whole"] and not 0 < value < 1:
        raise ValueError(r"2\frac{7}{3} may be meant as a sum or as a product")
    return int(match["whole"] or 0) + value


def _scaled(text: str) -> Fraction:
    """The value of digits with a power of ten.

    Raises:
        OverflowError: The power of ten is beyond `MAX_EXPONENT`.
    """
    digits, *scale = _POWER_START.split(text, maxsplit=1)
    value = Fraction(digits.strip().replace(",", "").replace(" ", ""))
    if not scale:
        return value
    power = int(scale[0].rpartition("^")[2].strip("{} "))
    if abs(power) > MAX_EXPONENT:
        raise OverflowError
    return value * Fraction(10) ** power
