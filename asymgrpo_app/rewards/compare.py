"""Compares answers that were read as trees: lists, sets, pairs, intervals, relations and values."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from sympy import Expr, Integer, Rational, oo

from asymgrpo_app.rewards.formulas import at_point, equal_values, is_rounded, parse_formula
from asymgrpo_app.rewards.numbers import equal_written, parse_number
from asymgrpo_app.rewards.structure import Congruence, Items, Leaf, Node, Operation, Relation, is_name

_FLIPPED = {"<": ">", ">": "<", r"\leq": r"\geq", r"\geq": r"\leq", "=": "=", r"\neq": r"\neq"}


@dataclass(frozen=True)
class Interval:
    """A piece of the real line; its ends are values of sympy."""

    low: Any
    high: Any
    closed_low: bool
    closed_high: bool


def equal_nodes(reference: Node, given: Node) -> bool:
    """Whether two answers are the same; the reference decides which form is asked for."""
    if isinstance(reference, Relation) and isinstance(given, Relation):
        if _equal_relations(reference, given):
            return True
        names = _name(reference), _name(given)
        if all(names) and names[0] != names[1]:
            return False
    reference, given = _value(reference), _value(given)
    if isinstance(given, Items) and given.brackets == "" and not _is_list(reference):
        given = _collapsed(given)
    if isinstance(reference, Leaf) and isinstance(given, Leaf):
        return _equal_leaves(reference, given)
    if isinstance(reference, Items) and isinstance(given, Items) and _equal_items(reference, given):
        return True
    if isinstance(reference, Congruence) or isinstance(given, Congruence):
        return _equal_congruences(reference, given)
    return _equal_operations(reference, given) or _equal_regions(reference, given)


def _equal_operations(reference: Node, given: Node) -> bool:
    if not (isinstance(reference, Operation) and isinstance(given, Operation) and reference.sign == given.sign):
        return False
    if reference.sign == r"\setminus":
        return len(reference.parts) == len(given.parts) and all(map(equal_nodes, reference.parts, given.parts))
    return _matched(reference.parts, given.parts, equal_nodes)


def _is_list(node: Node) -> bool:
    return isinstance(node, Items) and node.brackets in ("", "{}")


def _value(node: Node) -> Node:
    r"""The value of `x = 5`, `5 = x` and `\frac{1}{2} = 0.5`; other relations as they are."""
    if not isinstance(node, Relation) or set(node.signs) != {"="}:
        return node
    parts = [part for part in node.parts if not _is_named(part)]
    # x = y = 5 says nothing more than y = 5; 2x = 5 and 3 = 4 are no values
    if not parts or len(parts) < len(node.parts) - 1 or (parts != [*node.parts[-len(parts) :]] and len(node.parts) > 2):
        return node
    if (len(parts) == len(node.parts) or not _is_named(node.parts[0])) and any(_symbols(part) for part in parts):
        return node
    first = parts[0]
    return first if all(equal_nodes(first, part) or equal_nodes(part, first) for part in parts[1:]) else node


def _is_named(node: Node) -> bool:
    return isinstance(node, Leaf) and node.number is None and is_name(node.text)


def _name(node: Node) -> str:
    if isinstance(node, Relation) and set(node.signs) == {"="}:
        names = [part for part in (node.parts[0], node.parts[-1]) if _is_named(part)]
        return names[0].text if len(names) == 1 and isinstance(names[0], Leaf) else ""
    return ""


def _symbols(node: Node) -> bool:
    formula = parse_formula(node.text) if isinstance(node, Leaf) else None
    return formula is None or bool(formula.free_symbols)


def _collapsed(given: Items) -> Node:
    r"""The value of a list that writes one value in several ways, as in `\frac{1}{2} or 0.5`."""
    first = given.parts[0]
    same = all(isinstance(part, Leaf | Relation) and equal_nodes(first, part) for part in given.parts[1:])
    return _value(first) if same else given


def _equal_leaves(reference: Leaf, given: Leaf) -> bool:
    if reference.unit.differs(given.unit):
        return False
    if reference.number and given.number:
        return equal_written(reference.number, given.number)
    if reference.text == given.text and reference.unit.scale == given.unit.scale:
        return reference.percent == given.percent or reference.percent
    if reference.unit.factors and reference.number and _with_unit(reference, given):
        return True
    left, right = parse_formula(reference.text), parse_formula(given.text)
    if left is None or right is None or reference.percent != given.percent:
        return _equal_percent(left, right, reference)
    return _equal_parsed(reference, left, given, right)


def _with_unit(reference: Leaf, given: Leaf) -> bool:
    """Whether the given one is the reference with its unit as one letter, as in 10 L and 3 h."""
    name, power = reference.unit.factors[0]
    if len(reference.unit.factors) > 1 or power != 1 or len(name) != 1:
        return False
    number = given.text.strip()
    written = parse_number(number[:-1]) if number[-1:].casefold() == name else None
    return bool(written and reference.number and equal_written(reference.number, written))


def _equal_percent(left: Any, right: Any, reference: Leaf) -> bool:
    if left is None or right is None or not isinstance(left, Expr) or not isinstance(right, Expr):
        return False
    if reference.percent:
        return equal_values(left, right) or equal_values(left / 100, right)
    return equal_values(left, right / 100) or (equal_values(left, right) and bool(right.is_number and right > 1))


def _equal_parsed(reference: Leaf, left: Any, given: Leaf, right: Any) -> bool:
    for decimal, exact in ((reference.number, right), (given.number, left)):
        if decimal is not None and decimal.decimals is not None and is_rounded(decimal, exact):
            return True
    return equal_values(left, right)


def _matched(reference: Sequence[Any], given: Sequence[Any], equal: Callable[[Any, Any], bool]) -> bool:
    """Whether each of one is equal to another one of the others."""
    rest = list(given)
    for part in reference:
        found = next((other for other in rest if equal(part, other)), None)
        if found is None:
            return False
        rest.remove(found)
    return not rest


def _equal_elements(reference: Node, given: Node) -> bool:
    return equal_nodes(reference, given)


def _equal_items(reference: Items, given: Items) -> bool:
    ours, theirs = reference.brackets, given.brackets
    if ours == theirs == "":
        return _matched(_spread(reference.parts), _spread(given.parts), _equal_elements)
    if "{}" in (ours, theirs) and {ours, theirs} <= {"", "{}"}:
        return _matched(_distinct(reference.parts), _distinct(given.parts), equal_nodes)
    if len(reference.parts) != len(given.parts) or "{}" in (ours, theirs):
        return False
    if ours != theirs and {ours, theirs} != {"()", ""}:
        return False
    return all(_equal_elements(one, other) for one, other in zip(reference.parts, given.parts, strict=True))


def _spread(parts: Sequence[Node]) -> list[Node]:
    r"""The parts, with those of `x = \pm 2` one by one."""
    found: list[Node] = []
    for part in parts:
        value = _value(part)
        found += list(value.parts) if isinstance(value, Items) and value.brackets == "" else [part]
    return found


def _distinct(parts: Sequence[Node]) -> list[Node]:
    found: list[Node] = []
    for part in _spread(parts):
        if not any(equal_nodes(known, part) for known in found):
            found.append(part)
    return found


def _equal_congruences(reference: Node, given: Node) -> bool:
    if not (isinstance(reference, Congruence) and isinstance(given, Congruence)):
        return False
    moduli = [_integer(node.modulus) for node in (reference, given)]
    residues = [[_integer(part) for part in node.residues] for node in (reference, given)]
    if reference.name != given.name or moduli[0] != moduli[1] or not moduli[0] or None in residues[0] + residues[1]:
        return False
    first, second = ({part % moduli[0] for part in own if part is not None} for own in residues)
    return first == second


def _integer(node: Node) -> int | None:
    number = node.number if isinstance(node, Leaf) else None
    return int(number.value) if number and number.value.denominator == 1 and not number.percent else None


def _equal_relations(reference: Relation, given: Relation) -> bool:
    ours, theirs = _links(reference), _links(given)
    return bool(ours) and _matched(ours, theirs, _equal_links)


def _links(relation: Relation) -> list[tuple[str, Any, Any]]:
    """Each sign of a chain with the formulas beside it, turned so that the larger one stands on the left."""
    found = []
    for sign, left, right in zip(relation.signs, relation.parts[:-1], relation.parts[1:], strict=True):
        sides: list[Any] = [parse_formula(part.text) if isinstance(part, Leaf) else None for part in (left, right)]
        if any(side is None or not isinstance(side, Expr) for side in sides):
            return []
        if sign in ("<", r"\leq"):
            sign, sides = _FLIPPED[sign], sides[::-1]
        found.append((sign, sides[0], sides[1]))
    return found


def _equal_links(reference: tuple[str, Any, Any], given: tuple[str, Any, Any]) -> bool:
    if reference[0] != given[0]:
        return False
    if equal_values(reference[1], given[1]) and equal_values(reference[2], given[2]):
        return True
    one, other = reference[1] - reference[2], given[1] - given[2]
    if not one.free_symbols or {symbol.name for symbol in one.free_symbols} != {s.name for s in other.free_symbols}:
        return False
    return _are_multiples(one, other, positive=reference[0] in (">", r"\geq")) or (
        reference[0] == "=" and (_solves(reference, other) or _solves(given, one))
    )


def _are_multiples(one: Any, other: Any, *, positive: bool) -> bool:
    """Whether one formula is a number times the other, judged at points."""
    try:
        ratio = None
        for number in range(4):
            above, below = at_point(one, other, number)
            quotient = above / below
            if ratio is not None and not equal_values(ratio, quotient):
                return False
            ratio = quotient
        value = ratio.evalf(30) if ratio is not None else None
        return value is not None and value.is_finite and abs(value) > 1e-25 and (not positive or bool(value > 0))
    except (ArithmeticError, AttributeError, TypeError, ValueError):
        return False


def _solves(solved: tuple[str, Any, Any], other: Any) -> bool:
    """Whether `name = formula` is what the other equation, linear in the name, is solved for."""
    for symbol, formula in ((solved[1], solved[2]), (solved[2], solved[1])):
        if not symbol.is_Symbol or symbol in formula.free_symbols or symbol not in other.free_symbols:
            continue
        at = [other.xreplace({symbol: Integer(value)}) for value in (2, 3, 4)]
        linear = equal_values(at[0] + at[2], 2 * at[1]) and not equal_values(at[0], at[1])
        if linear and equal_values(other.xreplace({symbol: formula}), Integer(0)):
            return True
    return False


def _equal_regions(reference: Node, given: Node) -> bool:
    left, right = _region(reference), _region(given)
    if left is None or right is None or (left[0] and right[0] and left[0] != right[0]):
        return False
    return len(left[1]) == len(right[1]) and all(map(_equal_intervals, left[1], right[1]))


def _equal_intervals(left: Interval, right: Interval) -> bool:
    closed = (left.closed_low, left.closed_high) == (right.closed_low, right.closed_high)
    return closed and equal_values(left.low, right.low) and equal_values(left.high, right.high)


def _region(node: Node) -> tuple[str, list[Interval]] | None:
    """The variable (or an empty text) and the sorted intervals of a set of real numbers; None for other nodes."""
    try:
        found = _pieces(node)
        return None if found is None else (found[0], _merged(found[1]))
    except (ArithmeticError, AttributeError, TypeError, ValueError):
        return None


def _pieces(node: Node) -> tuple[str, list[Interval]] | None:
    if isinstance(node, Relation):
        return _solution(node)
    if isinstance(node, Leaf):
        return ("", [Interval(-oo, oo, False, False)]) if node.text == r"\mathbb{R}" else None
    if isinstance(node, Items):
        return _pieces_of_items(node)
    if isinstance(node, Operation):
        parts = [_pieces(part) for part in node.parts]
        if any(part is None for part in parts):
            return None
        pieces = [part[1] for part in parts if part]
        if node.sign == r"\cup":
            return "", [piece for part in pieces for piece in part]
        if node.sign == r"\setminus" and all(_is_point(piece) for part in pieces[1:] for piece in part):
            return "", _without(_merged(pieces[0]), [piece.low for part in pieces[1:] for piece in part])
        if node.sign == r"\cap":
            return "", _common(pieces)
    return None


def _pieces_of_items(node: Items) -> tuple[str, list[Interval]] | None:
    if node.brackets in ("", "{}"):
        if node.brackets == "" and all(isinstance(part, Relation) for part in node.parts):
            return _joined([_solution(part) for part in node.parts if isinstance(part, Relation)])
        points = [parse_formula(part.text) if isinstance(part, Leaf) else None for part in node.parts]
        if node.brackets == "" or any(point is None or point.free_symbols for point in points):
            return None
        return "", [Interval(point, point, True, True) for point in points]
    if len(node.parts) != 2:
        return None
    low, high = (parse_formula(part.text) if isinstance(part, Leaf) else None for part in node.parts)
    if low is None or high is None:
        return None
    return "", [Interval(low, high, node.brackets[0] == "[", node.brackets[1] == "]")]


def _joined(parts: list[tuple[str, list[Interval]] | None]) -> tuple[str, list[Interval]] | None:
    """Several conditions on one variable: what they have in common, or if that is nothing, all of them."""
    known = [part for part in parts if part is not None]
    if len(known) < len(parts) or len({name for name, _ in known}) > 1:
        return None
    common = _common([pieces for _, pieces in known])
    return known[0][0], common or [piece for _, pieces in known for piece in pieces]


def _solution(relation: Relation) -> tuple[str, list[Interval]] | None:
    """The intervals of `x < 3`, `3 > x`, `-2 <= x < 7` and `x != 2`."""
    sides: list[Any] = [parse_formula(part.text) if isinstance(part, Leaf) else None for part in relation.parts]
    if any(side is None for side in sides) or len(sides) > 3:
        return None
    names = [position for position, side in enumerate(sides) if side is not None and side.is_Symbol]
    at = 1 if len(sides) == 3 else next((position for position in names), -1)
    if at not in names or any(sides[at] in side.free_symbols for side in sides[:at] + sides[at + 1 :]):
        return None
    pieces = [[Interval(-oo, oo, False, False)]]
    for position, sign in enumerate(relation.signs):
        if sign == "=":
            return None
        towards = sign if position >= at else _FLIPPED[sign]  # sign between the variable and the bound
        bound = sides[position + 1] if position >= at else sides[position]
        pieces.append(_half(towards, bound))
    return sides[at].name, _common(pieces)


def _half(sign: str, bound: Any) -> list[Interval]:
    if sign == r"\neq":
        return [Interval(-oo, bound, False, False), Interval(bound, oo, False, False)]
    closed = sign in (r"\leq", r"\geq")
    return [Interval(-oo, bound, False, closed)] if sign in ("<", r"\leq") else [Interval(bound, oo, closed, False)]


def _is_point(piece: Interval) -> bool:
    return piece.closed_low and piece.closed_high and bool(piece.low == piece.high)


def _less(left: Any, right: Any) -> bool:
    """Whether one end is smaller; ends with variables are in the order that they were written in."""
    difference = (left - right).evalf(30) if left not in (oo, -oo) and right not in (oo, -oo) else None
    if difference is None:
        return bool((left == -oo and right != -oo) or (right == oo and left != oo))
    return bool(difference < -Rational(1, 10**20)) if difference.is_number else True


def _common(parts: list[list[Interval]]) -> list[Interval]:
    found = parts[0]
    for others in parts[1:]:
        found = [piece for one in found for other in others if (piece := _overlap(one, other)) is not None]
    return found


def _overlap(one: Interval, other: Interval) -> Interval | None:
    low, high = (one if _less(other.low, one.low) else other), (one if _less(one.high, other.high) else other)
    if equal_values(one.low, other.low):
        low = one if not one.closed_low else other
    if equal_values(one.high, other.high):
        high = one if not one.closed_high else other
    if _less(high.high, low.low) or (equal_values(low.low, high.high) and not (low.closed_low and high.closed_high)):
        return None
    return Interval(low.low, high.high, low.closed_low, high.closed_high)


def _without(pieces: list[Interval], points: list[Any]) -> list[Interval]:
    for point in points:
        halves = _half(r"\neq", point)
        pieces = _common([pieces, halves])
    return pieces


def _merged(pieces: list[Interval]) -> list[Interval]:
    """The intervals in order, those that touch made one."""
    if any(getattr(end, "free_symbols", None) for piece in pieces for end in (piece.low, piece.high)):
        return pieces
    found: list[Interval] = []
    for piece in sorted(pieces, key=lambda piece: (float(piece.low), float(piece.high))):
        last = found[-1] if found else None
        touches = last is not None and (
            _less(piece.low, last.high)
            or (equal_values(piece.low, last.high) and (piece.closed_low or last.closed_high))
        )
        if last is None or not touches:
            found.append(piece)
        elif _less(last.high, piece.high) or (equal_values(last.high, piece.high) and piece.closed_high):
            found[-1] = Interval(last.low, piece.high, last.closed_low, piece.closed_high)
    return found
