r"""Normalizes answers in LaTeX to one spelling, and guards which ones a parser of mathematics may be given.

Everything here works on text, evaluates nothing and takes time linear (or close to it) in a text that
`MAX_ANSWER_CHARS` bounds.
"""

import re
from dataclasses import dataclass
from functools import cached_property, lru_cache
from itertools import accumulate
from typing import Final

from asymgrpo_app.rewards.numbers import WrittenNumber, parse_number

MAX_ANSWER_CHARS: Final = 1_000
"""Longer answers are not read."""

MAX_FORMULA_CHARS: Final = 400
"""Longer formulas are not given to a parser, which takes seconds for some of them."""

_SIGNS = {
    "−": "-", "–": "-", "×": r"\times ", "·": r"\cdot ", "⋅": r"\cdot ", "÷": r"\div ", "π": r"\pi ", "∞": r"\infty ",
    "≤": r"\leq ", "≥": r"\geq ", "≠": r"\neq ", "\u222a": r"\cup ", "∩": r"\cap ", "∈": r"\in ", "±": r"\pm ",
    "√": r"\sqrt ", "≈": r"\approx ", "°": r"^\circ ", "θ": r"\theta ", "²": "^{2}", "³": "^{3}", "½": r"\frac{1}{2}",
    "∅": r"\emptyset ", "€": "$", "£": "$", "¥": "$", "\u00a0": " ", "\u2009": " ", "\u202f": " ",
}  # fmt: skip
_SIGNS_TABLE = str.maketrans(_SIGNS)
_ALIASES = {
    "dfrac": "frac", "tfrac": "frac", "cfrac": "frac", "dbinom": "binom", "tbinom": "binom", "le": "leq", "ge": "geq",
    "leqslant": "leq", "geqslant": "geq", "ne": "neq", "lbrace": "{", "rbrace": "}", "varnothing": "emptyset",
}  # fmt: skip
_NAME = re.compile(r"\\([A-Za-z]+)")


def _repeating(match: re.Match[str]) -> str:
    r"""The fraction of a repeating decimal such as 0.1\overline{6}."""
    fixed, period = match[1] + match[2] or "0", match[3]
    top = int(fixed + period) - int(fixed)
    return rf"\frac{{{top}}}{{{(10 ** len(period) - 1) * 10 ** len(match[2])}}}"


# Applied in this order. Each replacement keeps the value of the answer.
_SPELLINGS: Final = tuple(
    (re.compile(pattern), replacement)
    for pattern, replacement in (
        (r"(?<!\\)\\!\s*", ""),
        (r"\{,\}(?=[0-9]{3})", ","),
        (r"\\(?:left|right)(?![A-Za-z])\s*\.?", ""),
        (r"\\(?:[bB]igg?[lr]?|displaystyle|textstyle|limits)(?![A-Za-z])", ""),
        (r"(?<=[0-9])\\[,;: ](?=[0-9]{3}(?![0-9]))", ","),  # 1\,234
        (r"(?<![0-9\\])\\[,;: ]|(?<!\\)\\[,;: ](?![0-9])|(?<!\\)\\q?quad(?![A-Za-z])|(?<!\\)~", " "),
        (r"\\(?:math(?:rm|bf|it|sf)|text(?:rm|bf|it|sf|normal)?|[mh]box|operatorname)\s*(?=\{)", r"\\text"),
        (r"\\text\{([^A-Za-z{}\\]*)\}", r"\1"),
        (r"\\log\s*_\s*([0-9A-Za-z])\s*", r"\\log_{\1}"),
        (r"\\(begin|end)\{[bpB]?matrix\}", r"\\\1{pmatrix}"),
        (r"\\phantom\s*(?:\{[^{}]*\}|[^\\{])", ""),
        (r"\s*\^\s*(?:\{\s*\\(?:circ|degree)\s*\}|\\(?:circ|degree)(?![A-Za-z]))|\\degree(?![A-Za-z])", ""),
        (r",?\s*\\text\{\s*,?\s*(?:and|or)\s*\}|,?\s+(?:and|or)\s+", ", "),
        (r",(?:\s*,)+", ","),
        (r"(?<!\\)%", r"\\%"),
        (r"(?<![0-9])([0-9]*)\.([0-9]*)\\overline\{([0-9]{1,40})\}", _repeating),
    )
)

_CURRENCY = re.compile(r"\\?\$")
_UNITS = """
    mm millimeter millimeters millimetre millimetres, cm centimeter centimeters centimetre centimetres,
    m meter meters metre metres, km kilometer kilometers kilometre kilometres, in inch inches, ft foot feet,
    yd yard yards, mi mile miles, s sec second seconds, min mins minute minutes, h hr hour hrs hours, day days,
    week weeks, month months, year years yr yrs, cent cents, dollar dollars usd, g gram grams, kg kilogram kilograms,
    lb lbs pound pounds, degree degrees deg, radian radians rad
"""
_UNIT_WORDS: Final = {word: words.split()[0] for words in _UNITS.split(",") for word in words.split()}
_TEXT_UNIT = re.compile(r"\s*\\text\{\s*([A-Za-z][A-Za-z ./-]*)\}\s*(\^\s?(?:[0-9]|\{[0-9]\}))?[\s.]*$")
_BARE_UNIT = re.compile(r"(?<=[0-9}])\s*([A-Za-z]{2,})(\^\s?(?:[0-9]|\{[0-9]\}))?[\s.]*$")

_TIME = re.compile(r"([0-9]{1,2})((?::[0-9]{2}){1,2})\s*([ap]m)?")
_BASED = re.compile(r"([-+]?)((?=[A-Za-z]*[0-9])[0-9A-Za-z]+)_(?:([0-9])|\{([0-9]{1,2})\})")
_TEXT_GROUP = re.compile(r"\\text\{([^{}\\]*)\}")
_WORDS = re.compile(r"[A-Za-z][A-Za-z .'-]*(?:,\s?\(?[A-Z]\)?)*")
_PHRASE = re.compile(r"\(?[A-Za-z][A-Za-z0-9 .,'()-]*")


@dataclass(frozen=True)
class Answer:
    """An answer in one spelling.

    Attributes:
        text: LaTeX without outer dollars, unit, currency and percent sign; spaces only where they matter.
        kind: `words` (a name, a choice), `time` (2:30), `based` (a number with its base, 4210_5), `formula` (all else,
            numbers included). The first three are right if and only if they are spelled like the reference.
        unit: The unit in one spelling (with its power); empty if there is none or it is not known.
        percent: Whether a percent sign follows.
    """

    text: str
    kind: str
    unit: str = ""
    percent: bool = False

    @cached_property
    def number(self) -> WrittenNumber | None:
        """The answer as one number, with its percent sign; None if it is something else."""
        return parse_number(self.text + (r"\%" if self.percent else ""))


@lru_cache(maxsize=4096)  # the completions of a group share one reference
def read_answer(text: str) -> Answer:
    r"""Normalize an answer of at most `MAX_ANSWER_CHARS` characters to one spelling."""
    text = _unwrap(text.translate(_SIGNS_TABLE))
    text = _NAME.sub(lambda name: "\\" + _ALIASES.get(name[1], name[1]), text)
    for pattern, replacement in _SPELLINGS:
        text = pattern.sub(replacement, text)
    time = _TIME.fullmatch(re.sub(r"\\text|[\s{}.]", "", text.casefold()))
    if time:
        return Answer(f"{int(time[1])}{time[2]}{time[3] or ''}", "time")
    text, unit = _split_unit(_unwrap(text))
    if _CURRENCY.match(text) and not unit:
        unit = "dollar"
    text = _unwrap(_approximated(_CURRENCY.sub("", text)))
    percent = text.endswith(r"\%")
    text = _spaces(_braced_arguments(_unwrap(text.removesuffix(r"\%"))))
    plain = _TEXT_GROUP.sub(r"\1", text).strip()
    based = _BASED.fullmatch(plain)
    if based:
        base = based[3] or based[4]
        digits = f"{based[1].replace('+', '')}{based[2].upper()}"
        return Answer(digits, "formula") if base == "10" else Answer(f"{digits}_{base}", "based")
    words = _as_words(text)
    if words is not None:
        return Answer(words, "words")
    return Answer(text, "formula", unit, percent)


_ENCLOSING = (("$", "$"), (r"\(", r"\)"), (r"\[", r"\]"), (r"\boxed{", "}"), (r"\fbox{", "}"), ("{", "}"))


def _unwrap(text: str) -> str:
    r"""Strip what encloses the whole: white space, dollars, braces, `\(`, `\[`, `\boxed`, a final full stop."""
    while True:
        text = text.strip()
        if not text.endswith("\\"):
            text = text.rstrip(".,;").strip()
        inner = next((inner for pair in _ENCLOSING if (inner := _inside(text, *pair)) is not None), None)
        if inner is None:
            return text
        text = inner


def _inside(text: str, opening: str, closing: str) -> str | None:
    """The text between two delimiters that enclose all of it; None if they do not."""
    inner = text[len(opening) : len(text) - len(closing)]
    if text != opening + inner + closing or inner.endswith("\\"):
        return None
    alone = _balanced(inner) if closing == "}" else closing not in inner
    return inner if alone else None


def _balanced(text: str) -> bool:
    """Whether all braces are matched."""
    return _group_end(f"{{{text}}}") == len(text) + 2


def _split_unit(text: str) -> tuple[str, str]:
    """Split off the unit; returns the rest, and the unit in one spelling if it is known."""
    match = _TEXT_UNIT.search(text)
    if not match:
        match = _BARE_UNIT.search(text)
        if not match or match[1].casefold() not in _UNIT_WORDS:
            return text, ""
    rest = text[: match.start()].rstrip()
    if not re.search(r"[0-9]", rest) or rest[-1] in "+-*/^_=,(":
        return text, ""
    words = match[1].casefold().replace(".", " ").split()
    power = {"square": "^2", "sq": "^2", "cubic": "^3", "cu": "^3"}.get(words[0], "") if words else ""
    name = _UNIT_WORDS.get(" ".join(words[1:] if power else words), "")
    power = power or re.sub(r"[\s{}]", "", match[2] or "")
    return rest, f"{name}{power}" if name else ""


def _approximated(text: str) -> str:
    r"""The exact side of `a \approx b`, or the text after a leading `\approx`."""
    left, sign, right = text.partition(r"\approx")
    return left if left.strip() or not sign else right


def _braced_arguments(text: str) -> str:
    r"""Put braces around the arguments that TeX reads for `\frac` and `\sqrt`, as in `\frac 59` and `\sqrt3`."""
    for command, arguments in ((r"\frac", 2), (r"\sqrt", 1)):
        head, *parts = re.split(rf"{re.escape(command)}(?![A-Za-z])", text)
        text = head + "".join(command + _brace(part, arguments) for part in parts)
    return text


_ARGUMENT = re.compile(r"\s*(\[[^\[\]]*\]\s*(?=[0-9A-Za-z\\{]))?([0-9A-Za-z]|\\[A-Za-z]+)")


def _brace(text: str, arguments: int) -> str:
    """Put the first arguments of a command into braces, as far as they are single characters or commands."""
    done = ""
    for _ in range(arguments):
        match = _ARGUMENT.match(text)
        end = match.end() if match else _group_end(text)
        if not end:
            break
        done += f"{(match[1] or '').strip()}{{{match[2]}}}" if match else text[:end].strip()
        text = text[end:]
    return done + text


def _group_end(text: str) -> int:
    """End of the brace group at the start of a text (after white space and an optional [...]); 0 if there is none."""
    depth = 0
    start = re.match(r"\s*(?:\[[^\[\]]*\]\s*)?\{", text)
    if not start:
        return 0
    for token in re.finditer(r"\\.|[{}]", text[start.end() - 1 :], re.DOTALL):
        depth += {"{": 1, "}": -1}.get(token[0], 0)
        if depth == 0:
            return start.end() - 1 + token.end()
    return 0


def _spaces(text: str) -> str:
    """Remove spaces, except between two letters or digits, and where they tell the list 1, 234 from 1,234."""
    text = re.sub(r"(?<=[0-9]),\s+(?=[0-9]{3}(?![0-9]))", ", ", text.strip())
    return re.sub(r"(?<![A-Za-z0-9,])\s+|(?<=,)\s+(?![0-9]{3}(?![0-9]))|\s+(?![A-Za-z0-9])", "", " ".join(text.split()))


def _as_words(text: str) -> str | None:
    r"""The words of a name or choice (\text{...}, (A), CD, Monday); None for others, such as products of variables."""
    plain = _TEXT_GROUP.sub(r"\1", text).strip("() .,")
    if not (_PHRASE if r"\text" in text else _WORDS).fullmatch(plain):
        return None
    letters = sum(character.isalpha() for character in plain)
    if r"\text" not in text and letters < 4 and plain == plain.lower():
        return None
    parts = [" ".join(part.strip("() .").casefold().split()) for part in plain.split(",")]
    # Several choices are a set; several names may be an order.
    return ",".join(sorted(parts) if all(len(part) == 1 for part in parts) else parts)


# The commands the parser may be given. Letters are variables; no command here computes, loops or names a function.
_COMMAND_NAMES = r"""
    { } \ | frac sqrt binom cdot times div pm leq geq neq lt gt in cup cap emptyset mathbb begin end
    lfloor rfloor lceil rceil lvert rvert vert sin cos tan sec csc cot arcsin arccos arctan sinh cosh tanh log ln exp
    pi infty theta alpha beta delta epsilon lambda mu omega phi psi rho sigma tau
"""
_COMMANDS: Final = frozenset(_COMMAND_NAMES.split())
_COMMAND = re.compile(r"\\([A-Za-z]+|.|$)", re.DOTALL)
_UNREAD: Final = tuple(
    (re.compile(pattern), reason)
    for pattern, reason in (
        (r"[^A-Za-z0-9\s+\-*/^_=<>(){}\[\]|,.;:!&\\]", "it holds characters that are not mathematics"),
        (
            r"\\(?:begin|end)\{(?!pmatrix\})|\\mathbb(?!\{[NZQRC]\})|\\sqrt\[(?!(?:[0-9]{1,2}|[a-z])\])"
            r"|_(?!\{?[0-9A-Za-z]{1,8}(?![0-9A-Za-z]))|[0-9}\])]\s*_",
            "it holds an environment, a root or an index that is not read",
        ),
        (
            r"[0-9] [0-9]|[0-9]{301}|[0-9]\.[0-9]+\.|!\s*!|\^\s*\{?[^{}^]*[0-9]{7}",
            "it holds a number that is not read",
        ),
    )
)
_NESTED_EXPONENT = re.compile(r"(?<![0-9])[0-9A-Za-z]\^(?:[0-9A-Za-z](?![0-9])|\{[0-9A-Za-z]\})")
_MAX_DEPTH = 12
_CELL_END = re.compile(r"&|\\\\")
_MAX_CELLS = 64
_CONNECTIVE = re.compile(r"[=<>|]|\\(?:cup|cap|leq|geq|neq|lt|gt|pm|in)(?![A-Za-z])")
_MAX_CONNECTIVES = 12


def refusal(text: str) -> str | None:
    """The reason why a formula (from `read_answer`) is not given to a parser of mathematics; None if it may be."""
    unknown = next((name for name in _COMMAND.findall(text) if name not in _COMMANDS), None)
    if unknown is not None:
        return f"it holds \\{unknown}, which is not read"
    for pattern, reason in _UNREAD:
        if pattern.search(text):
            return reason
    if r"\binom" in text and re.search(r"[0-9]{5}|[\^!]", text):
        return "it holds a binomial coefficient of large numbers"
    connectives, cells = len(_CONNECTIVE.findall(text)), len(_CELL_END.findall(text))
    if len(text) > MAX_FORMULA_CHARS or connectives > _MAX_CONNECTIVES or cells > _MAX_CELLS:
        return "it is too long a formula"
    if not _balanced(text):
        return "its braces are not balanced"
    if max(accumulate((char in "{([") - (char in "})]") for char in text), default=0) > _MAX_DEPTH:
        return f"it is nested deeper than {_MAX_DEPTH}"
    if any(_is_tower(text[caret.end() :]) for caret in re.finditer(r"\^", text)):
        return "it holds a tower of powers"
    return None


def _is_tower(text: str) -> bool:
    """Whether the exponent that a text begins with is a power or a factorial itself, apart from simple ones."""
    exponent = text[: _group_end(text)]
    if exponent:
        return "!" in exponent or "^" in _NESTED_EXPONENT.sub("", exponent)
    return re.match(r"\s*[0-9A-Za-z]\s*\^|\s*\\", text) is not None


_DECIMAL = re.compile(r"(\^?)(?<![0-9.])([0-9]*)\.([0-9]+)(?![0-9.])")
_JUXTAPOSED = re.compile(r"(?<=[0-9)])(?=\()|(?<=[0-9])(?=\\binom|\{|e\^)|(?<=\))(?=[0-9])")
_MIXED = re.compile(r"(?<=[0-9])(?=\\frac\{([0-9]+)\}\{([0-9]+)\})")
_IMAGINARY = re.compile(r"(?<![A-Za-z\\])i(?![A-Za-z])")


def parser_spelling(text: str) -> str:
    r"""The formula in a spelling that the parser reads without mistakes.

    Otherwise the parser rounds decimals, adds where `2(3)`, `2\binom{3}{1}` or `2\frac{7}{3}` multiply (only
    `2\frac{1}{3}` is a mixed number), and takes i for a variable.
    """
    text = _DECIMAL.sub(_as_fraction, text)
    text = _MIXED.sub(lambda match: "" if int(match[1]) < int(match[2]) else r"\cdot ", text)
    text = _JUXTAPOSED.sub(r"\\cdot ", text)
    return _IMAGINARY.sub("I", text)


def _as_fraction(match: re.Match[str]) -> str:
    fraction = rf"\frac{{{int(match[2] + match[3])}}}{{{10 ** len(match[3])}}}"
    return f"^{{{fraction}}}" if match[1] else fraction
