r"""Normalizes answers in LaTeX to one spelling, and guards which ones a parser of mathematics may be given.

Everything here works on text, evaluates nothing and takes time linear (or close to it) in a text that
`MAX_ANSWER_CHARS` bounds.
"""

import re
from functools import lru_cache
from itertools import accumulate
from typing import Final

MAX_ANSWER_CHARS: Final = 1_000
"""Longer answers are not read."""

MAX_FORMULA_CHARS: Final = 400
"""Longer formulas are not given to a parser, which takes seconds for some of them."""

DEGREE: Final = r"\degree "
"""How a degree sign is spelled; it is a unit, or in a function a factor."""

_SIGNS = {
    "−": "-", "–": "-", "×": r"\times ", "·": r"\cdot ", "⋅": r"\cdot ", "÷": r"\div ", "∞": r"\infty ",
    "≤": r"\leq ", "≥": r"\geq ", "≠": r"\neq ", "\u222a": r"\cup ", "∩": r"\cap ", "∈": r"\in ", "±": r"\pm ",
    "≈": r"\approx ", "°": r"^\circ ", "∅": r"\emptyset ", "\u2223": "|", "…": r"\ldots ", "≡": r"\equiv ",
    "\u00a0": " ", "\u2009": " ", "\u202f": " ", "\u2032": "'", "\u2019": "'", "℃": r"\text{celsius}", "∠": r"\angle ",
    "½": r"\frac{1}{2}", "⅓": r"\frac{1}{3}", "⅔": r"\frac{2}{3}", "¼": r"\frac{1}{4}", "¾": r"\frac{3}{4}",
    "⅛": r"\frac{1}{8}", "⟨": r"\langle ", "⟩": r"\rangle ", "\u211d": r"\mathbb{R}", "\u2124": r"\mathbb{Z}",
    "\u2115": r"\mathbb{N}", "\u211a": r"\mathbb{Q}", "\u2102": r"\mathbb{C}", "ϕ": r"\varphi ",
    "ϵ": r"\epsilon ", "。": ".", "、": ",",
}  # fmt: skip
_SMALL_GREEK = """
    alpha beta gamma delta varepsilon zeta eta theta iota kappa lambda mu nu xi omicron pi rho varsigma sigma
    tau upsilon varphi chi psi omega
"""
_CAPITALS = "Gamma Delta Theta Lambda Xi Pi Sigma Phi Psi Omega"
_GREEK = _SMALL_GREEK.split()
_SIGNS_TABLE = (
    {code: chr(code - 0xFEE0) for code in range(0xFF01, 0xFF5F)}  # full width
    | {0x3B1 + i: rf"\{name} " for i, name in enumerate(_GREEK)}
    | {ord(sign): rf"\{name} " for sign, name in zip("ΓΔΘΛΞΠΣΦΨΩ", _CAPITALS.split(), strict=True)}
    | str.maketrans(_SIGNS)
)
_RAISED = str.maketrans("⁰¹²³⁴⁵⁶⁷⁸⁹⁻⁺ⁿ", "0123456789-+n")
_LOWERED = str.maketrans("₀₁₂₃₄₅₆₇₈₉", "0123456789")
_ALIASES = {
    "dfrac": r"\frac", "tfrac": r"\frac", "cfrac": r"\frac", "dbinom": r"\binom", "tbinom": r"\binom", "le": r"\leq",
    "ge": r"\geq", "leqslant": r"\leq", "geqslant": r"\geq", "ne": r"\neq", "lbrace": r"\{", "rbrace": r"\}",
    "varnothing": r"\emptyset", "dots": r"\ldots", "cdots": r"\ldots", "dotsc": r"\ldots", "backslash": r"\setminus",
    "mid": "|", "ast": r"\cdot", "lt": "<", "gt": ">", "lvert": "|", "rvert": "|", "vert": "|", "varphi": r"\phi",
    "varepsilon": r"\epsilon", "vartheta": r"\theta", "colon": ":", "pounds": "£", "euro": "€", "textdollar": "$",
    "mathdollar": "$", "land": r"\text{ and }", "lor": r"\text{ or }", "wedge": r"\text{ and }",
    "vee": r"\text{ or }", "lnot": r"\neg", "imath": " i ", "displaystyle": "", "textstyle": "",
    "overrightarrow": r"\vec",
}  # fmt: skip
_NAME = re.compile(r"\\([A-Za-z]+)")
_FUNCTION_NAMES = """
    arcsin arccos arctan arccot arcsec arccsc arcsinh arccosh arctanh sinh cosh tanh sin cos tan sec csc cot exp
    log ln
"""
FUNCTIONS: Final = tuple(_FUNCTION_NAMES.split())
_FUNCTION = "|".join(FUNCTIONS)


def _repeating(match: re.Match[str]) -> str:
    r"""The fraction of a repeating decimal such as 0.1\overline{6}."""
    fixed, period = match[1] + match[2] or "0", match[3]
    top = int(fixed + period) - int(fixed)
    return rf"\frac{{{top}}}{{{(10 ** len(period) - 1) * 10 ** len(match[2])}}}"


_GROUP = r"(?:[^{}]|\{(?:[^{}]|\{[^{}]*\})*\})*"

# Applied in this order. Each replacement keeps the value of the answer.
_SPELLINGS: Final = tuple(
    (re.compile(pattern), replacement)
    for pattern, replacement in (
        (r"(?<!\\)\\!\s*", ""),
        (r"\{,\}(?=[0-9]{3})", ","),
        (r"\\(?:left|right)(?![A-Za-z])\s*\.?", ""),
        (r"\\(?:[bB]igg?[lrm]?|displaystyle|textstyle|limits|middle|boldsymbol|bm)(?![A-Za-z])", ""),
        (r"(?<=[0-9])\\[,;: ](?=[0-9]{3}(?![0-9/]))", ","),  # 1\,234
        (r"(?<!\\)\\[,;: ]|(?<!\\)\\q?quad(?![A-Za-z])|(?<!\\)~|\\hspace\{[^{}]*\}", " "),
        (r"\\(?:math(?:rm|bf|it|sf)|text(?:rm|bf|it|sf|normal)?|[mh]box|operatorname)\s*(?=\{)", r"\\text"),
        (r"\\text\{\s*\\?\$\s*\}|US\s*\\?\$", r"\\$"),
        (r"\\text\{([^A-Za-z{}\\$]*)\}", r"\1"),
        (r"(\\(?:circ|degree)\s*\}?|\^\\circ)\s*(?:\\text\{\s*)?([CF])(?![A-Za-z])\}?", r"\\text{\2degree}"),
        (r"\\text\{\s*([eiI])\s*\}", lambda match: f" {match[1].lower()} "),
        (r"\\in\s*\\text\{\s*([NZQRC])\s*\}", r"\\in\\mathbb{\1}"),
        (rf"\\text\{{\s*({_FUNCTION})\s*\}}", r"\\\1 "),
        (r"\\log\s*_\s*([0-9A-Za-z])\s*", r"\\log_{\1}"),
        (r"\\begin\{(?:array)\}\s*\{[^{}]*\}", r"\\begin{pmatrix}"),
        (r"\\(begin|end)\{(?:[bpB]?matrix|smallmatrix|array)\}", r"\\\1{pmatrix}"),
        (
            r"[\[(]\s*\\begin\{pmatrix\}((?:(?!\\(?:begin|end)).)*)\\end\{pmatrix\}\s*[\])]",
            r"\\begin{pmatrix}\1\\end{pmatrix}",
        ),
        (r"\\phantom\s*(?:\{[^{}]*\}|[^\\{])", ""),
        (
            r"\^\s*(?:\{\s*\\(?:circ|degree)\s*\}|\\(?:circ|degree)(?![A-Za-z]))|\\degree(?![A-Za-z])",
            lambda _: DEGREE,
        ),
        (r"\\text\{\s*([A-Za-z ]{1,40}?)\s+(?:and|or)\s*\}", r"\\text{\1}, "),
        (r",?\s*\\text\{\s*,?\s*(?:and|or)\s*\}|,?(?:\s+|(?<=[)\]}]))(?:and|or)(?:\s+|(?=[(\[{]))", ", "),
        (r",(?:\s*,)+", ","),
        (r"(?<!\\)%", r"\\%"),
        (r"(?<![0-9])([0-9]*)\.([0-9]*)\\overline\{([0-9]{1,40})\}", _repeating),
        (r"(?<![0-9])([0-9]*)\.([0-9]*)\\dot\s*\{?([0-9])\}?(?!\s*[0-9]*\\dot)", _repeating),
        (
            r"(?<![0-9])([0-9]*)\.([0-9]*)\\dot\s*\{?([0-9])\}?([0-9]*)\\dot\s*\{?([0-9])\}?",
            lambda m: _repeating_span(m),
        ),
        (r"(?<![0-9])([0-9]*)\.([0-9]*?)([0-9]{1,12}?)\3{2,}(?:\.\.\.|\\ldots)", _repeating),
        (r"(?<=[0-9])\.(?=\s*/)", ""),  # -1./3
        (rf"\{{({_GROUP})\\over(?![A-Za-z])({_GROUP})\}}", lambda match: _over(match)),
        (rf"\A({_GROUP})\\over(?![A-Za-z])({_GROUP})\Z", lambda match: _over(match)),
        (r"(?<![0-9.,/^_])([0-9]{1,9})\s+([0-9]{1,9})/([0-9]{1,9})(?![0-9])", lambda match: _mixed(match)),
        (rf"\\({_FUNCTION})\s*\^\s*([0-9])", r"\\\1^{\2}"),
        (r"√\s*([0-9]+(?:\.[0-9]+)?)", r"\\sqrt{\1}"),
        (r"√", r"\\sqrt "),
        (r"(?<![A-Za-z\\])(sqrt|pi)(?![A-Za-z])", r"\\\1 "),
        (rf"(?<![A-Za-z\\])({_FUNCTION})(?=\s*[({{^_\\]|\s+[0-9A-Za-z](?![A-Za-z])|[a-zA-Z0-9](?![A-Za-z]))", r"\\\1 "),
    )
)


def _repeating_span(match: re.Match[str]) -> str:
    r"""The fraction of 0.\dot{1}4\dot{2}, whose period stands between the dots."""
    period = match[3] + match[4] + match[5]
    fixed = match[1] + match[2] or "0"
    top = int(fixed + period) - int(fixed)
    return rf"\frac{{{top}}}{{{(10 ** len(period) - 1) * 10 ** len(match[2])}}}"


def _over(match: re.Match[str]) -> str:
    r"""The fraction that TeX's own command writes, `{1\over 2}`."""
    return rf"\frac{{{match[1].strip()}}}{{{match[2].strip()}}}"


def _mixed(match: re.Match[str]) -> str:
    """The mixed number 11 5/6; 4 10/3 is none."""
    return rf"{match[1]}\frac{{{match[2]}}}{{{match[3]}}}" if int(match[2]) < int(match[3]) else match[0]


@lru_cache(maxsize=4096)
def spell(text: str) -> str:
    r"""One spelling of LaTeX of at most `MAX_ANSWER_CHARS` characters, without what encloses the whole."""
    text = re.sub("[⁻⁺]?[⁰¹²³⁴⁵⁶⁷⁸⁹ⁿ]+", lambda match: f"^{{{match[0].translate(_RAISED)}}}", text)
    text = re.sub("[₀₁₂₃₄₅₆₇₈₉]+", lambda match: f"_{{{match[0].translate(_LOWERED)}}}", text)
    text = re.sub(r"(?<=[0-9])\.{3,}", r"\\ldots ", text)  # before a full stop at the end is left out
    text = unwrap(text.translate(_SIGNS_TABLE))
    text = _NAME.sub(lambda name: _ALIASES.get(name[1], name[0]), text)
    text = _inline(text)
    for pattern, replacement in _SPELLINGS:
        text = pattern.sub(replacement, text)
    return unwrap(_braced_roots(text))


_ENCLOSING = (("$", "$"), (r"\(", r"\)"), (r"\[", r"\]"), (r"\boxed{", "}"), (r"\fbox{", "}"), ("{", "}"))
_INLINE = re.compile(r"(?<!\\)\$([^$]*)(?<!\\)\$")


def _inline(text: str) -> str:
    r"""The text without the dollars around formulas in it, as in `$5$ cm`; a currency sign stands alone."""
    dollars = len(re.findall(r"(?<!\\)\$", text))
    return _INLINE.sub(r" \1 ", text) if dollars and dollars % 2 == 0 else text


def unwrap(text: str) -> str:
    r"""Strip what encloses the whole: white space, dollars, braces, `\(`, `\[`, `\boxed`, a final full stop."""
    while True:
        before = text
        text = re.sub(r"(?:(?<!\\)[.,;\s]|\\[\\,;:! ]|\\q?quad|\\$)+$", "", text)
        text = re.sub(r"^(?:\s|\\[,;:! ]|\\q?quad(?![A-Za-z]))+", "", text)
        inner = next((inner for pair in _ENCLOSING if (inner := _inside(text, *pair)) is not None), None)
        text = text if inner is None else inner
        if text == before:
            return text


def _inside(text: str, opening: str, closing: str) -> str | None:
    """The text between two delimiters that enclose all of it; None if they do not."""
    inner = text[len(opening) : len(text) - len(closing)]
    if text != opening + inner + closing or inner.endswith("\\"):
        return None
    alone = balanced(inner) if closing == "}" else closing not in inner.replace(r"\$", "")
    return inner if alone else None


def balanced(text: str) -> bool:
    """Whether all braces are matched."""
    return _group_end(f"{{{text}}}") == len(text) + 2


def _braced_roots(text: str) -> str:
    r"""Spell `\sqrt(x+1)` as `\sqrt{x+1}`."""
    head, *parts = re.split(r"\\sqrt\s*(?=\()", text)
    for part in parts:
        end = closing(part)
        head += rf"\sqrt{{{part[1 : end - 1]}}}{part[end:]}" if end else rf"\sqrt{part}"
    return head


def closing(text: str) -> int:
    """End of the round brackets that a text begins with; 0 if they are not closed."""
    depth = 0
    for position, character in enumerate(text):
        depth += {"(": 1, ")": -1}.get(character, 0)
        if depth == 0:
            return position + 1
    return 0


def braced_arguments(text: str) -> str:
    r"""Put braces around the arguments that TeX reads for commands, as in `\frac 59`, `\binom52` and `\sqrt3`."""
    for command, arguments in ((r"\frac", 2), (r"\binom", 2), (r"\sqrt", 1)):
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


def compact(text: str) -> str:
    """The text without spaces, except between two letters or digits."""
    return re.sub(r"(?<![A-Za-z0-9])\s+|\s+(?![A-Za-z0-9])", "", " ".join(text.split()))


# The commands the parser may be given. Letters are variables; no command here computes, loops or names a function.
_COMMAND_NAMES = r"""
    { } \ | frac sqrt binom cdot times div pmatrix begin end infty lfloor rfloor lceil rceil sin cos tan sec csc cot
    arcsin arccos arctan arccot arcsec arccsc arcsinh arccosh arctanh sinh cosh tanh log ln exp pi theta alpha beta
    delta epsilon zeta eta iota kappa lambda mu nu xi phi psi rho sigma tau upsilon chi omega gamma Gamma Delta Theta
    Lambda Xi Sigma Phi Psi Omega degree ldots vec overline
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
            r"[0-9] [0-9]|[0-9]{1001}|[0-9]\.[0-9]+\.|!\s*!|\^\s*\{?[^{}^]*[0-9]{7}",
            "it holds a number that is not read",
        ),
    )
)
_NESTED_EXPONENT = re.compile(r"(?<![0-9])[0-9A-Za-z]\^(?:[0-9A-Za-z](?![0-9])|\{[0-9A-Za-z]\})")
_MAX_DEPTH = 12
_CELL_END = re.compile(r"&|\\\\")
_MAX_CELLS = 64


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
    if len(text) > MAX_FORMULA_CHARS or len(_CELL_END.findall(text)) > _MAX_CELLS:
        return "it is too long a formula"
    if not balanced(text):
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
_INDEXED = re.compile(r"\\[A-Za-z]+|([A-Za-z])_(?:\{([0-9A-Za-z,]{1,8})\}|([0-9A-Za-z]))")
_RESERVED = re.compile(r"\\(gamma|Gamma|ldots)(?![A-Za-z])")
_PRIME = re.compile(r"([A-Za-z])('{1,3})")
_ANGLE = re.compile(
    r"([0-9]+(?:\.[0-9]+)?|\\frac\{[0-9]+\}\{[0-9]+\}|(?<![A-Za-z])\\?[A-Za-z]+)\s*\\degree(?![A-Za-z])"
)
_TRIGONOMETRIC = re.compile(r"\\(?:sin|cos|tan|cot|sec|csc)(?![A-Za-z])")


def parser_spelling(text: str) -> str | None:
    r"""The formula in a spelling that the parser reads without mistakes; None if there is none.

    Otherwise the parser rounds decimals, adds where `2(3)`, `2\binom{3}{1}` or `2\frac{7}{3}` multiply (only
    `2\frac{1}{3}` is a mixed number), takes i for a variable, `\gamma` for a constant, and leaves out primes and
    degree signs. It does not read indices of e, E and i.
    """
    if _TRIGONOMETRIC.search(text):
        text = _ANGLE.sub(r"{(\1\\cdot\\frac{\\pi}{180})}", text)
    text = text.replace(r"\degree", "") if not _TRIGONOMETRIC.search(text) else text
    if r"\degree" in text:
        return None
    text = _INDEXED.sub(_indexed, text)
    text = _PRIME.sub(lambda match: rf"\xi_{{{match[1]}p{len(match[2])}}}", text)
    text = _RESERVED.sub(r"\\xi_{\1}", text)
    text = re.sub(r"\\overline\{([A-Za-z]{1,3})\}|\\vec\{?([A-Za-z]{1,2})\}?", r"\\xi_{v\1\2}", text)
    if "'" in text:
        return None
    text = _DECIMAL.sub(_as_fraction, text)
    text = _MIXED.sub(lambda match: "" if int(match[1]) < int(match[2]) else r"\cdot ", text)
    text = _JUXTAPOSED.sub(r"\\cdot ", text)
    return re.sub(r"(?<![A-Za-z\\_])(?<!_\{)i(?![A-Za-z_])", "I", text)


def _indexed(match: re.Match[str]) -> str:
    """A letter with an index as one symbol; a command as it is."""
    index = (match[2] or match[3] or "").replace(",", "v")
    return rf"\xi_{{{match[1]}u{index}}}" if index else match[0]


def _as_fraction(match: re.Match[str]) -> str:
    fraction = rf"\frac{{{int(match[2] + match[3])}}}{{{10 ** len(match[3])}}}"
    return f"^{{{fraction}}}" if match[1] else fraction
