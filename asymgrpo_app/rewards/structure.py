r"""Reads answers in LaTeX as trees: lists, sets, pairs and intervals, relations, and numbers or formulas with units.

Text alone is looked at; what a formula is worth is the matter of `formulas.py`. A text is read whole or not at all.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction
from functools import lru_cache
from typing import Final

from asymgrpo_app.rewards.latex import braced_arguments, compact, spell, unwrap
from asymgrpo_app.rewards.numbers import WrittenNumber, parse_number
from asymgrpo_app.rewards.units import NO_UNIT, Unit, currency, read_unit

MAX_PARTS: Final = 64
"""Lists and chains of more parts, or nested deeper than `MAX_DEPTH`, are not read."""

MAX_DEPTH: Final = 6


@dataclass(frozen=True)
class Leaf:
    r"""A number or a formula.

    Attributes:
        text: LaTeX without unit, currency and percent sign.
        number: The number that it is, with its scale and percent sign; None if it is something else.
        unit: What it measures or counts.
    """

    text: str
    number: WrittenNumber | None
    unit: Unit = NO_UNIT

    @property
    def percent(self) -> bool:
        """Whether it says per cent."""
        return self.unit.percent


@dataclass(frozen=True)
class Items:
    r"""Parts in brackets: `()` or `[)` a pair or an interval, `{}` a set, and an empty text a plain list."""

    brackets: str
    parts: tuple["Node", ...]


@dataclass(frozen=True)
class Relation:
    r"""Parts with a sign between each two: `=`, `<`, `>`, `\leq`, `\geq`, `\neq`."""

    signs: tuple[str, ...]
    parts: tuple["Node", ...]


@dataclass(frozen=True)
class Operation:
    r"""Sets with `\cup`, `\cap` or `\setminus` between them."""

    sign: str
    parts: tuple["Node", ...]


@dataclass(frozen=True)
class Congruence:
    """Numbers that are equal modulo another."""

    name: str
    residues: tuple["Node", ...]
    modulus: "Node"


@dataclass(frozen=True)
class Words:
    """Words, in one case."""

    text: str


Node = Leaf | Items | Relation | Operation | Congruence | Words


@dataclass(frozen=True)
class Answer:
    r"""An answer as it was read.

    Attributes:
        kind: `words` (a name, a choice), `time` (2:30), `based` (a number with its base, 4210_5), `formula` (all else,
            numbers included). The first three are right if and only if they are spelled like the reference.
        text: The answer in one spelling.
        node: The formula as a tree; None for another kind, or what is not read.
        condition: What it is said to hold for, as in `k \in \mathbb{Z}`.
    """

    kind: str
    text: str
    node: Node | None = None
    condition: str = ""


_TIME = re.compile(r"([0-9]{1,2})((?::[0-9]{2}){1,2})\s*([ap]m)?")
_BASED = re.compile(r"([-+]?)((?=[A-Za-z]*[0-9])[0-9A-Za-z]+)_(?:([0-9])|\{([0-9]{1,2})\})")
_TEXT_GROUP = re.compile(r"\\text\{([^{}\\]*)\}")
_WORDS = re.compile(r"[A-Za-z][A-Za-z .'-]*(?:,\s?\(?[A-Z]\)?)*")
_PHRASE = re.compile(r"\(?[A-Za-z][A-Za-z0-9 .,'()-]*")
_NUMBER_WORDS = """
    zero one two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen sixteen
    seventeen eighteen nineteen twenty
"""
_NUMERALS: Final = {word: str(value) for value, word in enumerate(_NUMBER_WORDS.split())}
_SOLUTION = re.compile(r"^solution is:?\s*", re.IGNORECASE)
_CONDITION = re.compile(
    r"(?P<rest>.*[^\s,(;])(?:\s*[,;]\s*|\s+|\s*\(\s*|\s*,?\s*\\text\{\s*(?:for|where|with)[^{}]*\}\s*)"
    r"(?:\\text\{\s*(?:for|where|with|and)[^{}]*\}\s*)?"
    r"(?P<condition>[a-z](?:\s*,\s*[a-z])?\s*\\in\s*(?:\\mathbb\{[NZQRC]\}|[NZQR])\s*(?:\^?[*+]|\^\{[*+]\}|_\+)?|[a-z]\s*\\neq\s*-?[0-9]+)\s*\)?",
    re.DOTALL,
)


@lru_cache(maxsize=4096)  # the completions of a group share one reference
def read_answer(text: str) -> Answer:
    """Read an answer of at most `MAX_ANSWER_CHARS` characters."""
    raw = text
    text = _SOLUTION.sub("", spell(text))
    plain = _TEXT_GROUP.sub(r"\1", text).strip()
    time = _TIME.fullmatch(re.sub(r"[\s{}.]", "", plain.casefold()))
    if time:
        return Answer("time", f"{int(time[1])}{time[2]}{time[3] or ''}")
    based = _BASED.fullmatch(compact(plain))
    if based:
        base = based[3] or based[4]
        digits = f"{based[1].replace('+', '')}{based[2].upper()}"
        return _formula(digits) if base == "10" else Answer("based", f"{digits}_{base}")
    words = _as_words(compact(text))
    if words in _NUMERALS:
        return _formula(_NUMERALS[words])
    if words is not None:
        node = _read(compact(plain), 0) if re.fullmatch("[A-Z]{2,3}", plain) and r"\text" not in raw else None
        return Answer("words", words, node)
    return _formula(text)


def _formula(text: str) -> Answer:
    match = _CONDITION.fullmatch(text)
    condition = ""
    if match and not re.fullmatch(r"\\\{.*", text.strip(), re.DOTALL) and _closed(match["rest"]):
        text, condition = match["rest"], compact(match["condition"]).replace(r"\mathbb", "").strip("{}")
        condition = re.sub(r"[{}]", "", condition)
    try:
        node = _read(text, 0)
    except _UnreadError:
        node = None
    return Answer("formula", compact(braced_arguments(_thousands(text, inside=False))), node, condition)


def _closed(text: str) -> bool:
    return text.count("(") + text.count("[") == text.count(")") + text.count("]")


class _UnreadError(Exception):
    """A text is not read."""


def _read(text: str, depth: int) -> Node:
    text = unwrap(text)
    if depth > MAX_DEPTH or not text:
        raise _UnreadError
    parts = _split(text, r";")
    if len(parts) == 1:
        parts = _split(_thousands(text, inside=depth > 0), r",")
    if len(parts) > 1:
        return Items("", _all(parts, depth + 1))
    text = parts[0]
    for reader in (_congruence, _relation, _operation, _bracketed):
        node = reader(text, depth)
        if node is not None:
            return node
    return _leaf(text, depth)


def _all(parts: Sequence[str], depth: int) -> tuple[Node, ...]:
    if len(parts) > MAX_PARTS:
        raise _UnreadError
    return tuple(_read(part, depth) for part in parts)


_DEPTH = re.compile(r"\\begin\{|\\end\{|\\\{|\\\}|\\lfloor|\\rfloor|\\lceil|\\rceil|\\langle|\\rangle|[()\[\]{}]")
_OPENING = (r"\begin{", r"\{", r"\lfloor", r"\lceil", r"\langle", "(", "[", "{")


def _split(text: str, pattern: str) -> list[str]:
    """The parts of a text between what matches the pattern outside all brackets."""
    return [part for part, _ in _split_signs(text, pattern)]


def _split_signs(text: str, pattern: str) -> list[tuple[str, str]]:
    """As `_split`; each part with what matched behind it, the last one with an empty text."""
    found: list[tuple[str, str]] = []
    depth = start = 0
    for token in re.finditer(rf"(?P<bracket>{_DEPTH.pattern})|(?P<sign>{pattern})|\\[A-Za-z]+|\\.", text, re.DOTALL):
        if token["bracket"]:
            depth += _change(token[0])
        elif token["sign"] and depth == 0:
            found.append((text[start : token.start()], token["sign"].strip()))
            start = token.end()
    return [*found, (text[start:], "")]


_GROUPED = re.compile(r"(?<![0-9.,])[0-9]{1,3}(?:,[0-9]{3})+(?![0-9])")

_GROUPED_IN_BRACKETS = re.compile(r"[(\[{][^()\[\]]*[0-9]{1,3},[0-9]{3}")


def _thousands(text: str, *, inside: bool) -> str:
    """The text without the commas of 1,234; in brackets they separate, unless commas with spaces do."""
    if (inside or _GROUPED_IN_BRACKETS.search(text)) and not re.search(r",\s", text):
        return text
    return _GROUPED.sub(lambda match: match[0].replace(",", ""), text)


_CONGRUENT = re.compile(
    r"(?P<left>.*?)\\equiv(?P<right>.*?)(?:\\pmod\s*\{?|\\?\(?\s*(?:\\(?:mod|bmod)|\\text\{\s*mod\s*\})\s*\{?)(?P<by>[^{}()]*)\}?\s*\)?",
    re.DOTALL,
)


def _congruence(text: str, depth: int) -> Node | None:
    match = _CONGRUENT.fullmatch(text)
    if not match:
        return None
    return Congruence(
        compact(match["left"]), _all(_split(match["right"].strip(" ("), ","), depth + 1), _read(match["by"], depth + 1)
    )


_SIGN = r"\\(?:leq|geq|neq|approx|in|ni|equiv|subset|sim|Rightarrow|implies|iff|rightarrow)(?![A-Za-z])|[=<>]"


def _relation(text: str, depth: int) -> Node | None:
    pairs = _split_signs(text, _SIGN)
    if len(pairs) == 1:
        return None
    parts, signs = [part for part, _ in pairs], [sign for _, sign in pairs[:-1]]
    if set(signs) <= {"=", r"\approx"} and r"\approx" in signs:
        # What stands before the sign is the exact value, or the name of what stands behind it.
        at = signs.index(r"\approx")
        if not parts[0].strip() or (at == 0 and is_name(parts[0])):
            return _read(parts[1], depth + 1)
        return _read(text[: text.index(r"\approx")], depth + 1)
    if signs == [r"\in"] and is_name(parts[0]):
        return _read(parts[1], depth + 1)
    if signs[-1] == r"\in" and len(signs) == 1 and re.fullmatch(r"\s*[a-z](\s*,\s*[a-z])*\s*", parts[0]):
        return _read(parts[1], depth + 1)
    if not set(signs) <= {"=", "<", ">", r"\leq", r"\geq", r"\neq"} or len(parts) > 12:
        raise _UnreadError
    nodes = [_named(part) if is_name(part) and set(signs) == {"="} else _read(part, depth + 1) for part in parts]
    return Relation(tuple(signs), tuple(nodes))


def _named(text: str) -> Leaf:
    """A name, whose words are no unit and no words."""
    return Leaf(compact(braced_arguments(_TEXT_GROUP.sub(_without_text, text))), None)


_OPERATIONS = r"\\(?:cup|cap|setminus)(?![A-Za-z])"


def _operation(text: str, depth: int) -> Node | None:
    pairs = _split_signs(text, _OPERATIONS)
    if len(pairs) == 1:
        pairs = _split_signs(text, r"(?<=\})-(?=\\\{)")  # R - {0}
        pairs = [(part, sign and r"\setminus") for part, sign in pairs]
    if len(pairs) == 1:
        return None
    signs = {sign for _, sign in pairs[:-1]}
    if len(signs) > 1:
        raise _UnreadError
    return Operation(signs.pop(), _all([part for part, _ in pairs], depth + 1))


_BRACKETS = re.compile(r"(\\\{|\\langle|[(\[])(.*)(\\\}|\\rangle|[)\]])", re.DOTALL)
_PLAIN_BRACKET = {r"\{": "{", r"\}": "}", r"\langle": "(", r"\rangle": ")"}


def _bracketed(text: str, depth: int) -> Node | None:
    match = _BRACKETS.fullmatch(text)
    if not match or not _encloses(text):
        return None
    brackets = "".join(_PLAIN_BRACKET.get(bracket, bracket) for bracket in (match[1], match[3]))
    inner = match[2]
    if brackets == "{}":
        builder = re.fullmatch(
            r"\s*\(?[a-z](?:\s*,\s*[a-z]\s*\))?\s*(?:\\in\s*\\mathbb\{R\}\s*)?(?:\||:)(.*)", inner, re.DOTALL
        )
        if builder:
            return _read(builder[1], depth + 1)
    elif brackets[0] == "{" or brackets[1] == "}":
        raise _UnreadError
    parts = _split(inner, ";")
    if len(parts) == 1:
        parts = _split(_thousands(inner, inside=True), ",")
    if len(parts) == 1 and brackets != "{}":
        return None if brackets == "()" and not _has_sign(inner) else _read(inner, depth + 1)
    if len(parts) == 1 and not inner.strip():
        return Items("{}", ())
    return Items(brackets, _all(parts, depth + 1))


def _has_sign(text: str) -> bool:
    return len(_split_signs(text, _SIGN)) > 1


def _change(bracket: str) -> int:
    r"""What a bracket adds to the depth; with `\begin{` the environment and a brace open."""
    return {r"\begin{": 2, r"\end{": 0}.get(bracket, 1 if bracket in _OPENING else -1)


def _encloses(text: str) -> bool:
    """Whether the bracket at the start closes at the end."""
    depth = 0
    for token in _DEPTH.finditer(text):
        depth += _change(token[0])
        if depth == 0 and token.end() < len(text):
            return False
    return depth == 0


_TRIG = r"\\(?:sin|cos|tan|cot|sec|csc)"
_ANGLE = r"(?:\\angle\s*)?(?:\\(?:alpha|beta|gamma|theta|phi|psi|omega)|[A-Z]{1,3})"
_NAME = re.compile(
    rf"(?:\(\s*[a-z](?:\s*,\s*[a-z])+\s*\)|{_TRIG}\s*(?:{_ANGLE}|\(\s*{_ANGLE}\s*\))|\|\s*(?:[A-Z]{{2}}|\\vec\s*\{{?[A-Za-z]{{1,2}}\}}?)\s*\|"
    r"|(?:\\(?:angle|bigtriangleup|triangle|Delta|frac\{d)\s*)?"
    r"(?:\\text\{[^{}]*\}|\\(?:vec|overline|bar|hat|tilde)\s*\{?\s*[A-Za-z]{1,3}\s*\}?"
    r"|\\(?:alpha|beta|gamma|delta|epsilon|theta|lambda|mu|nu|xi|rho|sigma|tau|phi|chi|psi|omega|Delta|Omega|eta|kappa)|[A-Z]{2,4}|[A-Za-z])"
    r"(?:_(?:[0-9A-Za-z]|\{[^{}=]{1,20}\}|\\(?:text)\{[^{}]*\}|\{\\text\{[^{}]*\}\}))?'{0,3}(?:\^\{?-1\}?|\^\{\([a-z0-9]\)\})?(?:\([^()]{0,40}\))?)"
)


def is_name(text: str) -> bool:
    r"""Whether a text names a quantity: `x`, `a_n`, `P(A)`, `f^{-1}(x)`, `\angle ABC`, `\text{Area}`, `\sin\theta`."""
    return _NAME.fullmatch(text.strip()) is not None


_CURRENCY = re.compile(r"\\?([$€£¥₹])\s*")
_BEHIND_TEXT = re.compile(
    r"(.*?[0-9}!)\]\s.])((?:\\text\s*\{[^{}]*\}|\([A-Za-z ]+\)|[^\x00-\x7f]|\\?[A-Za-z]+\.?\s*)(?:.*))", re.DOTALL
)
_NUMBER_FIRST = re.compile(
    r"\s*(-?\s*(?:[0-9][0-9,]*(?:\.[0-9]+)?|\.[0-9]+)(?:\\frac\{[0-9]+\}\{[0-9]+\}|/[0-9]+)?"
    r"|-?\s*\\frac\{[0-9]+\}\{[0-9]+\})\s*(?=[^\s0-9.,/^_])"
)
_TEXT_START = re.compile(r"\\text\s*\{")


def _leaf(text: str, depth: int) -> Node:
    plus_minus = _plus_minus(text)
    if plus_minus:
        return Items("", _all(plus_minus, depth + 1))
    ratio = _split(text, ":")
    if len(ratio) > 1:
        raise _UnreadError if not all(part.strip() for part in ratio) else _RatioError(ratio)
    text, unit = _split_currency(text)
    text, behind = _split_unit(text.strip())
    if behind is not None:
        unit = Unit(behind.factors or unit.factors, behind.scale, behind.percent)
    if text.endswith(r"\%"):
        text, unit = text.removesuffix(r"\%").strip(), Unit(unit.factors, unit.scale, percent=True)
    if text.endswith(r"\degree") and not re.search(_TRIG, text):
        text, unit = text.removesuffix(r"\degree"), Unit(unit.factors or (("degree", 1),), unit.scale, unit.percent)
    text = compact(braced_arguments(_TEXT_GROUP.sub(_without_text, unwrap(text))))
    if not text:
        raise _UnreadError
    number = parse_number(text)
    if number is not None and (unit.scale > 1 or unit.percent):
        decimals = number.decimals if unit.scale == 1 else None
        number = WrittenNumber(number.value * unit.scale, unit.percent, decimals)
    elif unit.scale > 1:
        text = rf"({text})\cdot {unit.scale}"
    return Leaf(text, number, unit)


def _split_currency(text: str) -> tuple[str, Unit]:
    """Split off a sign of currency before or behind a number."""
    behind_minus = re.match(r"-\s*\\?([$€£¥₹])", text)
    if behind_minus:
        return "-" + text[behind_minus.end() :], currency(behind_minus[1])
    money = _CURRENCY.match(text) or _CURRENCY.search(text, max(0, len(text) - 3))
    if money and (money.start() == 0 or money.end() == len(text)):
        return (text[: money.start()] + text[money.end() :]).strip(), currency(money[1])
    return text, NO_UNIT


class _RatioError(_UnreadError):
    """A ratio in a list or a formula, which is not read there."""


def _without_text(match: re.Match[str]) -> str:
    """The letters of a symbol that is set upright; other words stay, and make the formula one that is not read."""
    return match[1].strip() if re.fullmatch(r"\s*[A-Za-z0-9]?[0-9]*\s*", match[1]) else match[0]


def _plus_minus(text: str) -> list[str]:
    r"""The values that `a \pm b` stands for; empty if there is no such sign."""
    if r"\mp" in text or not re.search(r"\\pm(?![A-Za-z])", text):
        return []
    if text.count(r"\pm") > 2:
        raise _UnreadError
    texts = [text]
    for _ in range(text.count(r"\pm")):
        texts = [re.sub(r"\\pm(?![A-Za-z])", sign, part, count=1) for part in texts for sign in ("+", "-")]
    return [part.strip().removeprefix("+") for part in texts]


def _split_unit(text: str) -> tuple[str, Unit | None]:
    """Split off the unit behind a number or a formula; the unit is None if there is none."""
    if not re.search(r"[0-9]|\\pi|\\sqrt", text):
        return text, None
    start = _TEXT_START.search(text)
    while start:
        rest = text[: start.start()].rstrip()
        if rest and rest[-1] not in "+-*/^_=,({" and _balanced_braces(rest):
            unit = read_unit(text[start.start() :], bare=False)
            if unit is not None:
                return rest, unit
        start = _TEXT_START.search(text, start.end())
    first = _NUMBER_FIRST.match(text)
    if first and first.end() < len(text):
        spaced = text[first.end() - 1].isspace() or text[first.end()] == "("
        unit = read_unit(text[first.end() :], bare=True)
        if unit is not None and (spaced or _is_written_together(text[first.end() :], unit)):
            return first[1], unit
    return text, None


def _is_written_together(text: str, unit: Unit) -> bool:
    """Whether a unit may stand directly behind the digits: known ones, those of other scripts, and long words."""
    return not text[0].isascii() or unit.percent or unit.scale > 1 or (bool(unit.factors) and unit.known)


def _balanced_braces(text: str) -> bool:
    return text.replace(r"\{", "").replace(r"\}", "").count("{") == text.replace(r"\{", "").replace(r"\}", "").count(
        "}"
    )


def _as_words(text: str) -> str | None:
    r"""The words of a name or choice (\text{...}, (A), CD, Monday); None for others, such as products of variables."""
    plain = _TEXT_GROUP.sub(r"\1", text).strip("() .,")
    if not (_PHRASE if r"\text" in text else _WORDS).fullmatch(plain):
        return None
    letters = sum(character.isalpha() for character in plain)
    if r"\text" not in text and letters < 4 and plain == plain.lower():
        return None
    parts = [" ".join(part.strip("() .").casefold().split()) for part in plain.split(",")]
    parts = [re.sub(r"^(no \w+?)s$", r"\1", part) for part in parts]
    # Several choices are a set; several names may be an order.
    return ",".join(sorted(parts) if all(len(part) == 1 for part in parts) else parts)


_CHOICE = re.compile(r"\(?([A-Z])(?:\)|\.|:|\)\.)(?=\s|$|[0-9\\$])(.*)", re.DOTALL)


def read_choice(text: str) -> str | None:
    r"""The letter of `\textbf{(A)}\ 12` or `A. 12`, with an explanation that names no other choice; or None."""
    plain = _TEXT_GROUP.sub(r"\1", spell(text)).strip()
    match = _CHOICE.fullmatch(plain)
    if not match or re.search(r"\([A-Z]\)|\b(?:or|and|not|wrong|[B-Z])\b", match[2]):
        return None
    return match[1].casefold()


def read_ratio(text: str) -> tuple[Fraction, ...] | None:
    """The terms of a ratio such as 2:3; None for what is none."""
    terms = [parse_number(compact(part)) for part in spell(text).split(":")]
    if not 2 <= len(terms) <= 8 or any(term is None or term.percent for term in terms):
        return None
    return tuple(term.value for term in terms if term)
