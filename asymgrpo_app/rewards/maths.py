"""The verifier for mathematical answers."""

import logging
import re
from collections.abc import Mapping
from fractions import Fraction
from functools import lru_cache
from typing import Any, Final, Literal

from asymgrpo_app.errors import UserError
from asymgrpo_app.rewards.base import Status, Verdict, Verifier
from asymgrpo_app.rewards.extraction import last_boxed, last_formula
from asymgrpo_app.rewards.latex import MAX_ANSWER_CHARS, Answer, parser_spelling, read_answer, refusal
from asymgrpo_app.rewards.numbers import WrittenNumber, parse_number

MAX_VALUE_DIGITS: Final = 5_000
"""Powers and factorials of more digits (9^9^9) are never worked out."""

MIN_ROUNDED_DIGITS: Final = 6
"""Significant digits from which a decimal equals a number that it is a rounding of (0.333333 for 1/3)."""

MAX_EXPANDED_POWER: Final = 40
"""Sums of variables to higher powers are not multiplied out."""

MAX_SOLVED_POWER: Final = 4
MAX_SOLVED_OPERATIONS: Final = 60
"""Equations beyond this are not solved: they are right only as a multiple of the reference."""

_SEVERAL = re.compile(r",|;|\\cup|\\infty|\\begin|\\leq|\\geq|[<>]")
_UNPRINTABLE = re.compile(r"[\x00-\x08\x0b\x0c\x0e-\x1f\x7f\ud800-\udfff]")


class MathVerifier(Verifier):
    r"""Accepts an answer that equals `row["answer"]` in value, whatever its form; both may be LaTeX.

    Numbers, times, numbers with a base, names and choices are compared by rules of our own, everything else (roots,
    sets, intervals, tuples, matrices, equations, formulas) by the library math-verify. The answer is looked for at the
    end of the completion; without one the status is `no_answer`. An answer that is too long, nested too deeply, too
    large to work out, or that holds anything but mathematics is never given to the library: it is right only if it is
    spelled like the reference, otherwise wrong, with the status `ok`.

    Args:
        extract: Where the answer stands: `boxed`, the last complete \boxed{}; `boxed_or_last`, or if there is none the
            last number or formula.
    """

    def __init__(self, extract: Literal["boxed", "boxed_or_last"] = "boxed_or_last") -> None:
        if extract not in ("boxed", "boxed_or_last"):
            raise UserError(f'extract must be "boxed" or "boxed_or_last", not {extract!r}')
        self.extract = extract

    @classmethod
    def prepare(cls) -> None:
        """Import the libraries."""
        cls().verify(r"\boxed{\sqrt{2}+x}", {"answer": r"\sqrt{3}+x"})

    def verify(self, completion: str, row: Mapping[str, Any]) -> Verdict:
        """Judge one completion. The row has `answer`, a string."""
        given = self.find_answer(completion, row)
        if given is None:
            return Verdict(correct=False, status=Status.NO_ANSWER)
        return Verdict(correct=self.equal_answers(row["answer"], given))

    def find_answer(self, completion: str, row: Mapping[str, Any]) -> str | None:
        given = last_boxed(completion)
        if given is None and self.extract == "boxed_or_last":
            given = last_formula(completion)
        return None if given is None else given.strip() or None

    def equal_answers(self, first: str, second: str) -> bool:
        """Whether `second` has the value of `first`, the reference."""
        if first.strip() == second.strip():
            return True
        if any(len(answer) > MAX_ANSWER_CHARS or _UNPRINTABLE.search(answer) for answer in (first, second)):
            return False
        return _equal(_read(first), _read(second))

    def check_row(self, row: Mapping[str, Any]) -> None:
        """Check that the reference can be read.

        Raises:
            ValueError: `answer` is missing, no string, empty or too long, or cannot be read as mathematics or as words.
        """
        answer = row.get("answer")
        if not isinstance(answer, str) or not answer.strip():
            raise ValueError('"answer" must be a string with at least one visible character')
        if len(answer) > MAX_ANSWER_CHARS:
            raise ValueError(f'"answer" has {len(answer):,} characters, more than {MAX_ANSWER_CHARS:,}')
        if _UNPRINTABLE.search(answer):
            raise ValueError('"answer" holds control characters or broken Unicode')
        read = _read(answer)
        if not read.text:
            raise ValueError(f'"answer" is {answer!r}, which holds no answer')
        if read.kind != "formula" or parse_number(read.text):
            return
        reason = refusal(read.text)
        if reason:
            raise ValueError(f'"answer" is {answer!r}, which cannot be read as mathematics or as words: {reason}')
        if _parsed(read.text) is None:
            raise ValueError(f'"answer" is {answer!r}, which cannot be read as mathematics or as words')


@lru_cache(maxsize=4096)  # the completions of a group share one reference
def _read(text: str) -> Answer:
    return read_answer(text)


def _equal(reference: Answer, given: Answer) -> bool:
    if reference.kind == "words" or given.kind == "words":
        return bool(given.text) and reference.text.casefold() == given.text.casefold()
    if reference.kind != given.kind:
        return False
    if reference.kind != "formula":
        # 2:30 pm answers a question whose reference is 2:30, but not the other way round.
        return given.text == reference.text or (given.kind == "time" and given.text[:-2] == reference.text)
    if reference.unit and given.unit and reference.unit != given.unit:
        return False
    if reference.text == given.text:
        return bool(given.text)
    left, right = _number(reference), _number(given)
    if left and right:
        return _equal_numbers(left, right)
    if _differ_in_shape(reference, given, one_is_number=bool(left or right)):
        return False
    if refusal(given.text) or refusal(reference.text):
        return False
    return _equal_formulas(reference, given)


def _differ_in_shape(reference: Answer, given: Answer, *, one_is_number: bool) -> bool:
    """Whether the spelling alone shows that two formulas differ: a set and a pair, a number and a list, a matrix."""
    texts = (reference.text, given.text)
    braces = [text.startswith(r"\{") for text in texts]
    if braces[0] != braces[1] and any(text.startswith("(") and text.endswith(")") for text in texts):
        return True
    if one_is_number and any(_SEVERAL.search(text) for text in texts if not parse_number(text)):
        return True
    return (r"\begin" in reference.text) != (r"\begin" in given.text)


def _number(answer: Answer) -> WrittenNumber | None:
    return parse_number(answer.text + (r"\%" if answer.percent else ""))


def _equal_numbers(left: WrittenNumber, right: WrittenNumber) -> bool:
    if left.percent != right.percent:
        return not set(left.candidates()).isdisjoint(right.candidates())
    return left.value == right.value or _is_rounding(left, right.value) or _is_rounding(right, left.value)


def _is_rounding(decimal: WrittenNumber, exact: Fraction) -> bool:
    """Whether a decimal of at least `MIN_ROUNDED_DIGITS` significant digits is an exact value, correctly rounded."""
    if decimal.decimals is None:
        return False
    unit = Fraction(1, 10**decimal.decimals)
    return abs(decimal.value) >= unit * 10 ** (MIN_ROUNDED_DIGITS - 1) and abs(decimal.value - exact) <= unit / 2


def _equal_formulas(reference: Answer, given: Answer) -> bool:
    from sympy import Eq, Expr

    left, right = _parsed(reference.text), _parsed(given.text)
    if left is None or right is None:
        return False
    if isinstance(left, Eq) and isinstance(right, Eq) and left.lhs == right.lhs:
        left, right = left.rhs, right.rhs
    elif isinstance(left, Eq) and isinstance(right, Expr) and (left.lhs.is_Symbol or left.lhs.is_Function):
        left = left.rhs
    elif isinstance(left, Expr) and isinstance(right, Eq):
        right = right.rhs
    if isinstance(left, Expr) and isinstance(right, Expr):
        if not left.free_symbols and not right.free_symbols:
            return _equal_values(reference, left, given, right)
        # Working out a difference can take for ever; most wrong answers show it at one point.
        if _agree_at_a_point(left, right) is False:
            return False
    if isinstance(left, Eq) and isinstance(right, Eq) and (_is_costly(left) or _is_costly(right)):
        return _are_multiples(left, right)
    return _library_verdict(left, right)


def _equal_values(reference: Answer, left: Any, given: Answer, right: Any) -> bool:
    for decimal, other in ((_number(reference), right), (_number(given), left)):
        if decimal and decimal.decimals is not None and not decimal.percent:
            value = _real_value(other)
            return value is not None and (value == decimal.value or _is_rounding(decimal, value))
    close = _close(left, right)
    return _library_verdict(left, right) if close is None else close


def _agree_at_a_point(left: Any, right: Any) -> bool | None:
    """Whether two formulas have the same value at an arbitrary point of their variables; None if it cannot be told."""
    return _close(*_at_a_point(left, right))


def _at_a_point(left: Any, right: Any, shift: int = 0) -> tuple[Any, Any]:
    from sympy import Rational

    names = sorted({symbol.name for symbol in left.free_symbols | right.free_symbols})
    point = {name: Rational(1009 + 211 * i + 97 * shift, 757 + 13 * i) for i, name in enumerate(names)}
    first, second = (side.subs({symbol: point[symbol.name] for symbol in side.free_symbols}) for side in (left, right))
    return first.evalf(50), second.evalf(50)


def _is_costly(equation: Any) -> bool:
    """Whether an equation is too costly for the library to solve: all but small polynomials are."""
    from sympy import Pow

    sides = (
        equation.lhs - equation.rhs if hasattr(equation.lhs, "as_poly") and hasattr(equation.rhs, "as_poly") else None
    )
    if sides is None or not sides.free_symbols:
        return False
    small = all(power.exp.is_Integer and abs(power.exp) <= MAX_SOLVED_POWER for power in sides.atoms(Pow))
    return not small or not sides.is_rational_function(*sides.free_symbols) or sides.count_ops() > MAX_SOLVED_OPERATIONS


def _are_multiples(left: Any, right: Any) -> bool:
    """Whether one equation is a multiple of the other, judged at three points."""
    one, other = left.lhs - left.rhs, right.lhs - right.rhs
    if {symbol.name for symbol in one.free_symbols} != {symbol.name for symbol in other.free_symbols}:
        return False
    ratios = []
    for shift in (1, 2, 3):
        above, below = _at_a_point(one, other, shift)
        if not (above.is_number and below.is_number and below.is_finite and abs(below) > 1e-40):
            return False
        ratios.append(above / below)
    return all(bool(abs(ratio - ratios[0]) <= 1e-30 * abs(ratios[0])) for ratio in ratios)


def _library_verdict(reference: Any, given: Any) -> bool:
    import math_verify

    # No time limit of its own: it would use SIGALRM, which works in a main thread only and cannot stop sympy anyway.
    return bool(math_verify.verify(reference, given, allow_set_relation_comp=True, timeout_seconds=None))


@lru_cache(maxsize=1024)
def _parsed(text: str) -> Any | None:
    """The formula as an object of sympy, or None if the library cannot read it or should not work with it.

    The text must have passed `refusal`.
    """
    import math_verify
    from latex2sympy2_extended import NormalizationConfig
    from sympy import Rational

    number = parse_number(text)
    if number is not None and not number.percent:
        return Rational(number.value.numerator, number.value.denominator)
    logging.getLogger("math_verify").setLevel(logging.ERROR)  # it warns once that its time limit is off
    asis = NormalizationConfig(basic_latex=False, units=False, malformed_operators=False, nits=False, boxed="last")
    found = math_verify.parse(
        rf"\boxed{{{parser_spelling(text)}}}",
        [math_verify.LatexExtractionConfig(boxed_match_priority=0, normalization_config=asis)],
        fallback_mode="no_fallback",
        parsing_timeout=None,
    )
    if not found or _exceeds(found[0]):
        return None
    return _with_natural_logarithms(found[0]) if r"\log" in text else found[0]


def _with_natural_logarithms(expression: Any) -> Any:
    """Replace logarithms to a base by quotients: sympy forgets the base of a logarithm that it has not worked out."""
    from sympy import log

    return expression.replace(
        lambda part: isinstance(part, log) and len(part.args) == 2, lambda part: log(part.args[0]) / log(part.args[1])
    )


def _exceeds(expression: Any) -> bool:
    """Whether working it out could take numbers of more than `MAX_VALUE_DIGITS` digits or a huge expansion."""
    try:
        return _digits(expression) > MAX_VALUE_DIGITS
    except OverflowError:
        return True


def _digits(expression: Any) -> float:
    """Upper bound on the digits of the value of the expression and of any part of it."""
    from sympy import Add, Expr, Pow, Rational, exp, factorial

    if isinstance(expression, Rational):
        return float(len(str(abs(expression.p))) + len(str(expression.q)) - 1)
    parts = [_digits(part) for part in getattr(expression, "args", ())]
    if isinstance(expression, Pow | exp | factorial):
        power = expression.args[-1]
        size = abs(float(power)) if power.is_Number else 10.0 ** parts[-1]
        if isinstance(expression, factorial):
            return size * parts[-1]
        is_sum = isinstance(expression.args[0], Add) and bool(expression.free_symbols)
        base = MAX_VALUE_DIGITS / MAX_EXPANDED_POWER if is_sum else parts[0] if len(parts) > 1 else 1.0
        return max(base * size, *parts)
    if isinstance(expression, Expr):
        return max(sum(parts), 1.0)
    return max(parts, default=1.0)  # sets, tuples, matrices, relations


def _real_value(expression: Any) -> Fraction | None:
    """The value of a number to 40 digits, or None if it is not real or not finite."""
    value = expression.evalf(40)
    return Fraction(str(value)) if value.is_Float or value.is_Rational else None


def _close(left: Any, right: Any) -> bool | None:
    """Whether two numbers agree to 30 digits; None if that cannot be told (not finite, or both next to 0)."""
    a, b = left.evalf(50), right.evalf(50)
    if not (a.is_finite and b.is_finite and a.is_number and b.is_number):
        return None
    difference, size = abs(a - b), max(abs(a), abs(b))
    if size < 1e-40:
        return None
    return bool(difference <= 1e-30 * size)
