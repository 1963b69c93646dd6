"""Formulas as objects of sympy: read by math-verify, bounded in the work they cause, and compared.

Importing sympy takes its time: import this module on first use.
"""

import logging
from fractions import Fraction
from functools import lru_cache
from typing import Any, Final

import math_verify
from latex2sympy2_extended import NormalizationConfig
from sympy import Add, E, Eq, Expr, Pow, Rational, exp, factorial, log

from asymgrpo_app.rewards.latex import Answer, parser_spelling
from asymgrpo_app.rewards.numbers import parse_number

MAX_VALUE_DIGITS: Final = 5_000
"""Powers and factorials of more digits (9^9^9) are never worked out."""

MAX_EXPANDED_POWER: Final = 40
"""Sums of variables to higher powers are not multiplied out."""

MAX_SOLVED_POWER: Final = 4
MAX_SOLVED_OPERATIONS: Final = 60
"""Equations beyond this are not solved: they are right only as a multiple of the reference."""

_AS_IT_IS = NormalizationConfig(basic_latex=False, units=False, malformed_operators=False, nits=False, boxed="last")
_BOXED = math_verify.LatexExtractionConfig(boxed_match_priority=0, normalization_config=_AS_IT_IS)

logging.getLogger("math_verify").setLevel(logging.ERROR)  # it warns that its time limit is off


def equal_formulas(reference: Answer, given: Answer) -> bool:
    """Whether two formulas that passed `refusal` have the same value."""
    left, right = parse_formula(reference.text), parse_formula(given.text)
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
        if _close(*_at_a_point(left, right)) is False:
            return False
    if isinstance(left, Eq) and isinstance(right, Eq) and (_is_costly(left) or _is_costly(right)):
        return _are_multiples(left, right)
    return _library_verdict(left, right)


@lru_cache(maxsize=1024)
def parse_formula(text: str) -> Any | None:
    """The formula as an object of sympy, or None if the library cannot read it or should not work with it.

    The text must have passed `refusal`.
    """
    number = parse_number(text)
    if number is not None and not number.percent:
        return Rational(number.value.numerator, number.value.denominator)
    boxed = rf"\boxed{{{parser_spelling(text)}}}"
    found = math_verify.parse(boxed, [_BOXED], fallback_mode="no_fallback", parsing_timeout=None)
    try:
        if not found or _digits(found[0]) > MAX_VALUE_DIGITS:
            return None
    except OverflowError:
        return None
    if r"\log" not in text:
        return found[0]
    # Quotients of natural logarithms: sympy forgets the base of a logarithm that it has not worked out.
    return found[0].replace(log, lambda value, base=E: log(value) / log(base))


def _digits(expression: Any) -> float:
    """Upper bound on the digits of the value of the expression and of any part of it; large for a huge expansion.

    Raises:
        OverflowError: There are far too many.
    """
    if isinstance(expression, Rational):
        return float(len(str(abs(expression.p))) + len(str(expression.q)) - 1)
    parts = [_digits(part) for part in getattr(expression, "args", ())]
    if isinstance(expression, Pow | exp | factorial):
        power = expression.args[-1]
        size = abs(float(power)) if power.is_Number else 10.0 ** parts[-1]
        if isinstance(expression, factorial):
            return size * parts[-1]
        is_sum = isinstance(expression.args[0], Add) and bool(expression.free_symbols)
        base = parts[0] if isinstance(expression, Pow) else 1.0
        return max(size * (MAX_VALUE_DIGITS / MAX_EXPANDED_POWER if is_sum else base), *parts)
    if isinstance(expression, Expr):
        return max(sum(parts), 1.0)
    return max(parts, default=1.0)  # sets, tuples, matrices, relations


def _equal_values(reference: Answer, left: Any, given: Answer, right: Any) -> bool:
    """Whether two numbers are equal, or one is a decimal to which the other is rounded."""
    for decimal, other in ((reference.number, right), (given.number, left)):
        if decimal and decimal.decimals is not None and not decimal.percent:
            value = other.evalf(40)
            if not (value.is_Float or value.is_Rational):  # not real, or not finite
                return False
            return decimal.value == Fraction(str(value)) or decimal.rounds(Fraction(str(value)))
    close = _close(left, right)
    return _library_verdict(left, right) if close is None else close


def _close(left: Any, right: Any) -> bool | None:
    """Whether two numbers agree to 30 digits; None if that cannot be told (not finite, or both next to 0)."""
    a, b = left.evalf(50), right.evalf(50)
    if not (a.is_finite and b.is_finite and a.is_number and b.is_number):
        return None
    size = max(abs(a), abs(b))
    return None if size < 1e-40 else bool(abs(a - b) <= 1e-30 * size)


def _at_a_point(left: Any, right: Any, shift: int = 0) -> tuple[Any, Any]:
    """The values of two formulas at an arbitrary point of their variables."""
    names = sorted({symbol.name for symbol in left.free_symbols | right.free_symbols})
    point = {name: Rational(1009 + 211 * i + 97 * shift, 757 + 13 * i) for i, name in enumerate(names)}
    first, second = (side.subs({symbol: point[symbol.name] for symbol in side.free_symbols}) for side in (left, right))
    return first.evalf(50), second.evalf(50)


def _is_costly(equation: Any) -> bool:
    """Whether an equation is too costly for the library to solve: all but small polynomials are."""
    if not (isinstance(equation.lhs, Expr) and isinstance(equation.rhs, Expr)):
        return False
    sides = equation.lhs - equation.rhs
    if not sides.free_symbols:
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
    # No time limit of its own: it would use SIGALRM, which works in a main thread only and cannot stop sympy anyway.
    return bool(math_verify.verify(reference, given, allow_set_relation_comp=True, timeout_seconds=None))
