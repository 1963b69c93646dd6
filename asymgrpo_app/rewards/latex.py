r"""Normalizes answers in LaTeX to one spelling, and guards which ones a parser of mathematics may be given.

Everything here works on text, evaluates nothing and takes time linear (or close to it) in a text that
`MAX_ANSWER_CHARS` bounds.
"""

import re
from dataclasses import dataclass
from typing import Final

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
        (r"\\[dtc]frac(?![A-Za-z])", r"\\frac"),
        (r"\\[dt]binom(?![A-Za-z])", r"\\binom"),
        (r"\\(?:math(?:rm|bf|it|sf)|text(?:rm|bf|it|sf|normal)?|[mh]box|operatorname)\s*(?=\{)", r"\\text"),
        (r"\\text\{([^A-Za-z{}\\]*)\}", r"\1"),
        (r"\\log\s*_\s*([0-9A-Za-z])\s*", r"\\log_{\1}"),
        (r"\\(?:leqslant|le)(?![A-Za-z])", r"\\leq"),
        (r"\\(?:geqslant|ge)(?![A-Za-z])", r"\\geq"),
        (r"\\ne(?![A-Za-z])", r"\\neq"),
        (r"\\lbrace(?![A-Za-z])", r"\\{"),
        (r"\\rbrace(?![A-Za-z])", r"\\}"),
        (r"\\varnothing(?![A-Za-z])", r"\\emptyset"),
        (r"\\(begin|end)\{[bpB]?matrix\}", r"\\\1{pmatrix}"),
        (r"\\phantom\s*(?:\{[^{}]*\}|[^\\{])", ""),
        (r"\s*\^\s*(?:\{\s*\\(?:circ|degree)\s*\}|\\(?:circ|degree)(?![A-Za-z]))|\\degree(?![A-Za-z])", ""),
        (r",?\s*\\text\{\s*,?\s*(?:and|or)\s*\}", ", "),
        (r",?\s+(?:and|or)\s+", ", "),
        (r",(?:\s*,)+", ","),
        (r"(?<!\\)%", r"\\%"),
        (r"(?<![0-9])([0-9]*)\.([0-9]*)\\overline\{([0-9]{1,40})\}", _repeating),
    )
)

_CURRENCY = re.compile(r"\\?\$")
_UNIT_WORDS: Final = {
    alias: unit
    for unit, aliases in {
        "mm": "mm millimeter millimeters millimetre millimetres",
        "cm": "cm centimeter centimeters centimetre centimetres",
        "m": "m meter meters metre metres",
        "km": "km kilometer kilometers kilometre kilometres",
        "in": "in inch inches",
        "ft": "ft foot feet",
        "yd": "yd yard yards",
        "mi": "mi mile miles",
        "s": "s sec second seconds",
        "min": "min mins minute minutes",
        "h": "h hr hrs hour hours",
        "day": "day days",
        "week": "week weeks",
        "month": "month months",
        "year": "yr yrs year years",
        "cent": "cent cents",
        "dollar": "dollar dollars usd",
        "g": "g gram grams",
        "kg": "kg kilogram kilograms",
        "lb": "lb lbs pound pounds",
        "degree": "degree degrees deg",
        "radian": "radian radians rad",
    }.items()
    for alias in aliases.split()
}
_TEXT_UNIT = re.compile(r"\s*\\text\{\s*([A-Za-z][A-Za-z ./-]*)\}\s*(\^\s?(?:[0-9]|\{[0-9]\}))?[\s.]*$")
_BARE_UNIT = re.compile(r"(?<=[0-9}])\s*([A-Za-z]{2,})(\^\s?(?:[0-9]|\{[0-9]\}))?[\s.]*$")
_MERIDIEM = re.compile(r"(?:\\text\{)?\s*([ap])\.?\s?m\.?\s*\}?\s*$", re.IGNORECASE)

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


def read_answer(text: str) -> Answer:
    r"""Normalize an answer of at most `MAX_ANSWER_CHARS` characters to one spelling."""
    text = _unwrap(text.translate(_SIGNS_TABLE))
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


def _unwrap(text: str) -> str:
    r"""Strip what encloses the whole: white space, dollars, braces, `\(`, `\[`, `\boxed`, a final full stop."""
    while True:
        text = text.strip().rstrip(".,;").strip() if not text.rstrip().endswith("\\") else text.strip()
        for opening, closing in (
            ("$", "$"),
            (r"\(", r"\)"),
            (r"\[", r"\]"),
            (r"\boxed{", "}"),
            (r"\fbox{", "}"),
            ("{", "}"),
        ):
            inner = text[len(opening) : len(text) - len(closing)]
            if (
                len(text) >= len(opening) + len(closing)
                and text.startswith(opening)
                and text.endswith(closing)
                and not inner.endswith("\\")
                and (closing != "}" or _balanced(inner))
                and (closing != "$" or "$" not in inner)
            ):
                text = inner
                break
        else:
            return text


def _balanced(text: str) -> bool:
    """Whether all braces are matched."""
    depth = 0
    for token in re.finditer(r"\\.|[{}]", text, re.DOTALL):
        depth += {"{": 1, "}": -1}.get(token[0], 0)
        if depth < 0:
            return False
    return depth == 0


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


_ARGUMENT = re.compile(r"\s*(\[[^\[\]]*\]\s*(?=[0-9A-Za-z\\{]))?(?:([0-9A-Za-z])|(\\[A-Za-z]+))")


def _brace(text: str, arguments: int) -> str:
    """Put the first arguments of a command into braces, as far as they are single characters or commands."""
    done = ""
    for _ in range(arguments):
        match = _ARGUMENT.match(text)
        if match:
            done += f"{(match[1] or '').strip()}{{{match[2] or match[3]}}}"
            text = text[match.end() :]
            continue
        end = _group_end(text)
        if not end:
            break
        done, text = done + text[:end].strip(), text[end:]
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
_COMMANDS: Final = frozenset(
    [
        *(
            "{",
            "}",
            "\\",
            "|",
            "frac",
            "sqrt",
            "binom",
            "cdot",
            "times",
            "div",
            "pm",
            "leq",
            "geq",
            "neq",
            "lt",
            "gt",
            "in",
        ),
        *("cup", "cap", "emptyset", "mathbb", "begin", "end", "lfloor", "rfloor", "lceil", "rceil", "lvert", "rvert"),
        *(
            "vert",
            "sin",
            "cos",
            "tan",
            "sec",
            "csc",
            "cot",
            "arcsin",
            "arccos",
            "arctan",
            "sinh",
            "cosh",
            "tanh",
            "log",
        ),
        *(
            "ln",
            "exp",
            "pi",
            "infty",
            "theta",
            "alpha",
            "beta",
            "delta",
            "epsilon",
            "lambda",
            "mu",
            "omega",
            "phi",
            "psi",
        ),
        *("rho", "sigma", "tau"),
    ]
)
_ALLOWED = re.compile(r"[A-Za-z0-9\s+\-*/^_=<>(){}\[\]|,.;:!&\\]*")
_COMMAND = re.compile(r"\\([A-Za-z]+|.|$)", re.DOTALL)
_ENVIRONMENT = re.compile(r"\\(?:begin|end)\{(?!pmatrix\})|\\mathbb(?!\{[NZQRC]\})|\\sqrt\[(?!(?:[0-9]{1,2}|[a-z])\])")
_SUBSCRIPT = re.compile(r"_(?!\{?[0-9A-Za-z]{1,8}(?![0-9A-Za-z]))|[0-9}\])]\s*_")
_UNREADABLE_NUMBER = re.compile(r"[0-9] [0-9]|[0-9]{301}|[0-9]\.[0-9]+\.|!\s*!")
_BIG_EXPONENT = re.compile(r"\^\s*\{?[^{}^]*[0-9]{7}")
_NESTED_EXPONENT = re.compile(r"(?<![0-9])[0-9A-Za-z]\^(?:[0-9A-Za-z](?![0-9])|\{[0-9A-Za-z]\})")
_MAX_DEPTH = 12
_MAX_CELLS = 64
_CONNECTIVE = re.compile(r"[=<>|]|\\(?:cup|cap|leq|geq|neq|lt|gt|pm|in)(?![A-Za-z])")
_MAX_CONNECTIVES = 12


def refusal(text: str) -> str | None:
    """The reason why a formula (from `read_answer`) is not given to a parser of mathematics; None if it may be."""
    if not _ALLOWED.fullmatch(text):
        return "it holds characters that are not mathematics"
    unknown = next((name for name in _COMMAND.findall(text) if name not in _COMMANDS), None)
    if unknown is not None:
        return f"it holds \\{unknown}, which is not read"
    if _ENVIRONMENT.search(text) or _SUBSCRIPT.search(text):
        return "it holds an environment, a root or an index that is not read"
    if _UNREADABLE_NUMBER.search(text) or _BIG_EXPONENT.search(text):
        return "it holds a number that is not read"
    if r"\binom" in text and re.search(r"[0-9]{5}|[\^!]", text):
        return "it holds a binomial coefficient of large numbers"
    if len(text) > MAX_FORMULA_CHARS or len(_CONNECTIVE.findall(text)) > _MAX_CONNECTIVES:
        return "it is too long a formula"
    if text.count("&") + text.count("\\\\") > _MAX_CELLS:
        return f"it holds a matrix of more than {_MAX_CELLS} cells"
    return _refuse_nesting(text)


def _refuse_nesting(text: str) -> str | None:
    if not _balanced(text):
        return "its braces are not balanced"
    depth = deepest = 0
    for character in text:
        depth += (character in "{([") - (character in "})]")
        deepest = max(deepest, depth)
    if deepest > _MAX_DEPTH:
        return f"it is nested deeper than {_MAX_DEPTH}"
    for caret in re.finditer(r"\^", text):
        end = _group_end(text[caret.end() :])
        exponent = text[caret.end() : caret.end() + end]
        if "!" in exponent or "^" in _NESTED_EXPONENT.sub("", exponent):
            return "it holds a tower of powers"
        if not end and re.match(r"\s*[0-9A-Za-z]\s*\^|\s*\\", text[caret.end() :]):
            return "it holds a tower of powers"
    return None


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
