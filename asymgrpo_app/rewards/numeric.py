"""The verifier for answers that are one number."""

import math
import re
from collections.abc import Mapping
from fractions import Fraction
from typing import Any, ClassVar, Literal

from asymgrpo_app.errors import UserError
from asymgrpo_app.rewards.base import AnswerVerifier, Verdict
from asymgrpo_app.rewards.extraction import FORMULA_TAIL_CHARS, after_thinking, has_box, last_boxed
from asymgrpo_app.rewards.numbers import MAX_DIGITS, WrittenNumber, last_number, parse_number

# Text allowed around the number in a box: a currency sign, `x =`, a unit of at least two letters.
_SPACING = re.compile(r"\\[!,;: ]|\s+")
_UPRIGHT = re.compile(
    r"\\(?:text|textbf|mathrm|mathbf|mbox)\{([^{}]*[0-9][^{}]*)\}|\\(?:display|text)style(?![A-Za-z])"
)
_DECORATION = re.compile(r"\\(?:text|mathrm|mbox)\{[^{}]*\}(?:\^\{?[0-9]\}?)?|\^\{?\\circ\}?|\\?\$|[€£¥]")
_NAMED = re.compile(r"\A\s?[A-Za-z]\s?=\s?")
_UNIT = re.compile(r"(?:\s?[A-Za-z]{2,30}(?: [A-Za-z]{2,30}){0,3})?")


class NumericMatch(AnswerVerifier):
    r"""Accepts a number within a tolerance of `row["answer"]`: |given - answer| <= max(abs, rel * |answer|).

    Numbers may have signs, thousands separators, a power of ten (1.5e-3, 1.5 \times 10^{-3}), a percent sign, or be
    fractions (3/4, \frac{3}{4}). With a percent sign on one side only, 5% equals both 0.05 and 5. Arithmetic is exact.
    nan, inf, other scripts' digits, and numbers of more than 1,000 characters or with a power of ten beyond 1,000 are
    never right. Without a number the status is `no_answer`.

    Args:
        rel_tolerance: Allowed difference as a fraction of the answer, 0 or above.
        abs_tolerance: Allowed difference, 0 or above.
        extract: Where the number stands: `boxed`, the last complete \boxed{}, which must hold one number and at most a
            unit; `last`, the last number in the last 2,000 characters; `boxed_or_last`, the box if there is one.
    """

    isolated: ClassVar[bool] = False

    def __init__(
        self,
        rel_tolerance: float = 0.0,
        abs_tolerance: float = 0.0,
        extract: Literal["boxed_or_last", "boxed", "last"] = "boxed_or_last",
    ) -> None:
        for name, value in (("rel_tolerance", rel_tolerance), ("abs_tolerance", abs_tolerance)):
            if not math.isfinite(value) or value < 0:
                raise UserError(f"{name} must be a finite number of 0 or above, not {value!r}")
        if extract not in ("boxed_or_last", "boxed", "last"):
            raise UserError(f'extract must be "boxed_or_last", "boxed" or "last", not {extract!r}')
        self.rel_tolerance = rel_tolerance
        self.abs_tolerance = abs_tolerance
        self.extract = extract

    def judge(self, answer: str, row: Mapping[str, Any]) -> Verdict:
        """Judge a number. The row has `answer`, a string that is a number."""
        return Verdict(correct=self._equal(parse_number(answer), _reference(row)))

    def find_answer(self, completion: str, row: Mapping[str, Any]) -> str | None:
        box = None if self.extract == "last" else last_boxed(completion)
        if box is not None:
            return _only_number(box)
        if self.extract == "boxed" or (self.extract != "last" and has_box(completion)):
            return None
        return last_number(_spelled(after_thinking(completion)[-FORMULA_TAIL_CHARS:]))

    def equal_answers(self, first: str, second: str) -> bool:
        return first == second or self._equal(parse_number(first), parse_number(second))

    def check_row(self, row: Mapping[str, Any]) -> None:
        """Check that the reference is a number.

        Raises:
            ValueError: `answer` is missing, no string, or not one finite number.
        """
        if _reference(row) is None:
            raise ValueError(f'"answer" must be a string that holds one number, not {row.get("answer")!r:.100}')

    def _equal(self, given: WrittenNumber | None, reference: WrittenNumber | None) -> bool:
        if given is None or reference is None:
            return False
        if given.percent == reference.percent:
            return self._close(given.value, reference.value)
        if reference.percent:
            return any(self._close(given.value, value) for value in reference.candidates())
        # 0.05% is not right for 0.05, where nobody counts per cent
        per_cent = abs(given.value) > 1 and self._close(given.value, reference.value)
        return per_cent or self._close(given.value / 100, reference.value)

    def _close(self, given: Fraction, reference: Fraction) -> bool:
        allowed = max(Fraction(self.abs_tolerance), Fraction(self.rel_tolerance) * abs(reference))
        return abs(given - reference) <= allowed


def _reference(row: Mapping[str, Any]) -> WrittenNumber | None:
    answer = row.get("answer")
    written = _only_number(answer) if isinstance(answer, str) else None
    return parse_number(written) if written else None


_FRACTIONS = {"½": r"\frac{1}{2}", "¼": r"\frac{1}{4}", "¾": r"\frac{3}{4}", "⅓": r"\frac{1}{3}", "⅔": r"\frac{2}{3}"}
_FRACTION_TABLE = str.maketrans(_FRACTIONS)


_LATEX_THOUSANDS = re.compile(r"(?<=[0-9])(?:\{,\}|\\,)(?=[0-9]{3}(?![0-9]))")


def _spelled(text: str) -> str:
    """A text whose numbers are written in one way: `10{,}098` as `10,098`, `½` as a fraction."""
    return _LATEX_THOUSANDS.sub(",", text.translate(_FRACTION_TABLE))


def _only_number(text: str) -> str | None:
    """The number in a text that holds nothing else but white space, a name and `=` before it and a unit after it."""
    if len(text) > 2 * MAX_DIGITS:
        return None
    text = _SPACING.sub(lambda match: " " if match[0].isspace() else "", _spelled(text))
    text = _DECORATION.sub("", _UPRIGHT.sub(r"\1", text)).replace("{,}", ",").strip().rstrip(".").strip()
    text = _NAMED.sub("", text)
    written = last_number(text)
    if written is None or text.count(written) != 1 or not text.startswith(written):
        return None
    return written if _UNIT.fullmatch(text, len(written)) else None
