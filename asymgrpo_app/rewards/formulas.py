"""Values of formulas: read by the library's grammar of LaTeX, bounded in the work they cause, and compared exactly.

Importing sympy takes its time: import this module on first use.
"""

import hashlib
import math
from fractions import Fraction
from functools import lru_cache
from typing import Any, Final

from latex2sympy2_extended.latex2sympy2 import ConversionConfig, latex2sympy
from sympy import (
    Abs,
    Add,
    E,
    Expr,
    Function,
    Integer,
    MatrixBase,
    MatrixExpr,
    Mul,
    Pow,
    Rational,
    Symbol,
    binomial,
    ceiling,
    exp,
    factorial,
    floor,
    log,
    nan,
    oo,
    zoo,
)

from asymgrpo_app.rewards.latex import parser_spelling, refusal
from asymgrpo_app.rewards.numbers import WrittenNumber, parse_number

MAX_VALUE_DIGITS: Final = 5_000
"""Powers and factorials of more digits (9^9^9) are never worked out."""

MAX_PRECISION: Final = 8_000
"""Digits to which two values are compared at most; what would need more is different."""

MAX_NODES: Final = 400
_POINTS: Final = 4
_MAX_POINT_DIGITS: Final = 2_000

_CONVERSION = ConversionConfig(lowercase_symbols=False)
_FAILURES = (
    ArithmeticError,
    AttributeError,
    RecursionError,
    TypeError,
    ValueError,
    KeyError,
    IndexError,
    NotImplementedError,
)


@lru_cache(maxsize=2048)
def parse_formula(text: str) -> Any | None:
    """The formula as an object of sympy, or None if it is not read as a whole, or is too large to work with."""
    number = parse_number(text)
    if number is not None and not number.percent:
        return Rational(number.value.numerator, number.value.denominator)
    spelled = None if refusal(text) else parser_spelling(text)
    if spelled is None:
        return None
    try:
        # Its grammar ends with the end of the text: nothing is left over.
        found = latex2sympy(spelled, normalization_config=None, conversion_config=_CONVERSION)
    except Exception:
        return None
    if not isinstance(found, Expr | MatrixBase | MatrixExpr):
        return None
    try:
        if _digits(found) > MAX_VALUE_DIGITS or _size(found) > MAX_NODES:
            return None
        found = _with_bases(found)
    except _FAILURES:
        return None
    return None if found.has(nan, zoo) else found


def _with_bases(found: Any) -> Any:
    """Quotients of natural logarithms: sympy forgets the base of a logarithm that it has not worked out."""
    if isinstance(found, Expr) and found.has(log):
        return found.replace(log, lambda value, base=E: log(value) / log(base))
    return found


def _size(found: Any) -> int:
    return 1 + sum(_size(part) for part in _parts(found))


def _parts(found: Any) -> tuple[Any, ...]:
    return tuple(found) if isinstance(found, MatrixBase) else tuple(getattr(found, "args", ()))


def _digits(found: Any) -> float:
    """Upper bound on the digits of the value of the expression and of any part of it; large for a huge expansion.

    Raises:
        OverflowError: There are far too many.
    """
    if isinstance(found, Rational):
        return float(len(str(abs(found.p))) + len(str(found.q)) - 1)
    parts = [_digits(part) for part in _parts(found)]
    if isinstance(found, Pow | exp | factorial) and not found.free_symbols:
        power = found.args[-1]
        size = abs(float(power)) if power.is_Number else 10.0 ** min(parts[-1], 300.0)
        if isinstance(found, factorial):
            return max(size * parts[-1], *parts)
        base = parts[0] if isinstance(found, Pow) else 1.0
        return max(size * base, *parts)
    if isinstance(found, Pow) and found.exp.is_Number:
        return max(abs(float(found.exp)) * 0.5, *parts)
    return max(sum(parts), 1.0) if isinstance(found, Expr) else max(parts, default=1.0)


def equal_values(left: Any, right: Any) -> bool:
    """Whether two formulas have the same value, at every point if they hold variables."""
    try:
        if isinstance(left, MatrixBase | MatrixExpr) or isinstance(right, MatrixBase | MatrixExpr):
            return _equal_matrices(left, right)
        left, right = _one_case(left, right)
        if left == right:
            return not left.has(nan, zoo)
        if not left.free_symbols and not right.free_symbols:
            return _equal_numbers(left, right)
        return all(_equal_at(left, right, number) for number in range(_POINTS))
    except _FAILURES:
        return False


def is_rounded(decimal: WrittenNumber, exact: Any) -> bool:
    """Whether a decimal is the value of a formula, rounded."""
    try:
        if decimal.decimals is None or decimal.percent or exact.free_symbols:
            return False
        value = exact.evalf(40)
        if not (value.is_Float or value.is_Rational):  # not real, or not finite
            return False
        return decimal.rounds(Fraction(str(value)))
    except _FAILURES:
        return False


def _equal_matrices(left: Any, right: Any) -> bool:
    left, right = left.doit(), right.doit()
    if not (isinstance(left, MatrixBase) and isinstance(right, MatrixBase)) or left.shape != right.shape:
        return False
    return all(equal_values(one, other) for one, other in zip(left.flat(), right.flat(), strict=True))


def _one_case(left: Any, right: Any) -> tuple[Any, Any]:
    """Both without capital letters, unless a letter occurs in both cases, where R and r are different."""
    names = {symbol.name for symbol in left.free_symbols | right.free_symbols}
    for side in (left, right):
        own = {symbol.name for symbol in side.free_symbols}
        if len({name.casefold() for name in own}) < len(own):
            return left, right
    if len({name.casefold() for name in names}) == len(names):
        return left, right
    lower = {symbol: Symbol(symbol.name.casefold()) for symbol in left.free_symbols | right.free_symbols}
    return left.xreplace(lower), right.xreplace(lower)


def _equal_numbers(left: Any, right: Any) -> bool:
    """Whether two numbers are equal: exactly if they are rational, otherwise to more digits than their size tells."""
    left, right = _worked_out(left), _worked_out(right)
    if isinstance(left, Rational) and isinstance(right, Rational):
        return bool(left == right)
    if left in (oo, -oo) or right in (oo, -oo):
        return bool(left == right)
    first = _close(left, right, 50)
    if not first:
        return False
    digits = 30 + 4 * int(_digits(left) + _digits(right))
    depth = max(_depth(left), _depth(right))
    digits *= 2 ** max(0, depth - 1)
    return digits <= MAX_PRECISION and _close(left, right, max(digits, 60))


def _depth(found: Any) -> int:
    """How deep functions stand in functions: each may make a small number smaller."""
    inner = max((_depth(part) for part in _parts(found)), default=0)
    return inner + (isinstance(found, Function | exp | log) and not isinstance(found, Abs))


def _worked_out(found: Any) -> Any:
    """A number with its rational parts worked out."""
    if not getattr(found, "args", ()):
        return found
    parts = [_worked_out(part) for part in found.args]
    if all(isinstance(part, Rational) for part in parts):
        return _rational(found, parts)
    if isinstance(found, Pow) and isinstance(parts[1], Rational) and not isinstance(parts[0], Rational):
        return found.func(*parts, evaluate=False)
    if isinstance(found, Add | Mul):
        rational = [part for part in parts if isinstance(part, Rational)]
        rest = [part for part in parts if not isinstance(part, Rational)]
        together = _rational(found, rational) if rational else None
        if isinstance(found, Mul) and together == 0 and not any(part.has(oo, -oo, zoo, nan) for part in rest):
            return Integer(0)
        return found.func(*([] if together is None else [together]), *rest, evaluate=False)
    return found.func(*parts, evaluate=False) if isinstance(found, Function) else found.func(*parts)


def _rational(found: Any, parts: list[Any]) -> Any:
    if isinstance(found, Add):
        return Rational(0) + sum(parts, Integer(0))
    if isinstance(found, Mul):
        return math.prod(parts, start=Integer(1))
    if isinstance(found, Pow):
        if parts[0] == 0 and parts[1] <= 0:
            return nan if parts[1] == 0 else zoo
        return Pow(parts[0], parts[1])
    if isinstance(found, factorial | binomial | floor | ceiling | Abs):
        return found.func(*parts)
    return found.func(*parts, evaluate=False) if isinstance(found, Function) else found.func(*parts)


def _close(left: Any, right: Any, digits: int) -> bool:
    a, b = left.evalf(digits), right.evalf(digits)
    if not (a.is_number and b.is_number and a.is_finite and b.is_finite):
        return False
    size = max(abs(a), abs(b))
    tiny = Rational(1, 10 ** (digits - 20))
    return bool(abs(a - b) <= tiny * size) or bool(size <= tiny)


def _equal_at(left: Any, right: Any, number: int) -> bool:
    """Whether two formulas are equal at a point that depends on both, so that no formula is made for it."""
    a, b = at_point(left, right, number)
    return _equal_numbers(a, b)


def at_point(left: Any, right: Any, number: int) -> tuple[Any, Any]:
    """Two formulas with the same numbers put for their variables."""
    symbols = sorted({symbol.name for symbol in left.free_symbols | right.free_symbols})
    seed = hashlib.sha256(f"{number}|{left}|{right}".encode(errors="replace")).digest()
    point = {}
    for position, name in enumerate(symbols):
        draw = int.from_bytes(hashlib.sha256(seed + name.encode()).digest()[:4], "big")
        value = Rational(100 + draw % 397, 101 + (draw // 397) % 89)
        point[name] = -value if number % 2 and (position + number // 2) % 2 == 0 else value
    both = tuple(side.xreplace({symbol: point[symbol.name] for symbol in side.free_symbols}) for side in (left, right))
    if any(_digits(side) > _MAX_POINT_DIGITS for side in both):
        raise OverflowError("too large to work out")
    return both
