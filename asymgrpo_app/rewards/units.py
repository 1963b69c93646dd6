r"""Units, currencies and counted things behind a number: `5\text{ m/s}^2`, `\$5`, `5 apples`, `2.5\text{ million}`."""

import re
from dataclasses import dataclass
from typing import Final

_KNOWN = """
    mm millimeter millimetre, cm centimeter centimetre, dm decimeter decimetre, m meter metre, km kilometer kilometre,
    in inch inches, ft foot feet, yd yard, mi mile, s sec second, ms millisecond, min minute, h hr hour, day, week,
    month, year yr, cent, dollar usd, euro eur, gbp, yen, rupee, yuan rmb, mg milligram, g gram, kg kilogram kilo,
    oz ounce, lb pound, ton tonne, l liter litre, ml milliliter millilitre, gal gallon, pint, quart, cup, degree deg,
    radian rad, celsius, fahrenheit, k kelvin, n newton, j joule, kj kilojoule, w watt, kw kilowatt, v volt, a ampere
    amp, hz hertz, pa pascal, mol mole, c coulomb, ohm, acre, hectare
"""
_NAMES: Final = {name: names.split()[0] for names in _KNOWN.split(",") for name in names.split()}
_COMPOUND: Final = {"mph": "mi/h", "kph": "km/h", "kmh": "km/h", "fps": "ft/s", "sqft": "ft^2"}
_POWERS: Final = {"square": 2, "squared": 2, "sq": 2, "cubic": 3, "cubed": 3, "cu": 3}
_NEUTRAL: Final = frozenset({"unit"})
SCALES: Final = {
    "hundred": 10**2, "thousand": 10**3, "million": 10**6, "billion": 10**9, "trillion": 10**12, "dozen": 12,
}  # fmt: skip
_CURRENCIES: Final = {
    "$": "dollar", "€": "euro", "£": "gbp", "¥": "yen", "₹": "rupee", "元": "yuan", "美元": "dollar", "円": "yen",
}  # fmt: skip

# What stands behind a number is what it counts, unless one of these says that it is something else.
_STATEMENTS = """
    a about all almost also always an and any approximately are as at be because been both but by can cannot
    could different does either else equal equals error every except exactly fail false few for from greater had
    has have hence how however if impossible in infinite infinity into invalid is it know least less many may
    maybe might minus mod modulo more most must negative neither never no nor none not nothing of off one only
    or other otherwise over plus possibly probably several should since so some than that the then there these
    this those thus times to true undefined under unknown unless until valid was were what when where which
    while will with without would two three four five six seven eight nine ten zero half third quarter twice
    double triple sin cos tan cot sec csc log ln exp sqrt max min gcd lcm lim arcsin arccos arctan sinh cosh
    tanh
"""
_NO_NOUN: Final = frozenset(_STATEMENTS.split())
_JUDGEMENTS: Final = frozenset({"right", "wrong", "correct", "incorrect", "half", "best", "possible"})
_ARTICLES: Final = frozenset({"of", "the", "in", "per", "a", "an", "different", "all", "total"})

_TOKEN = re.compile(
    r"\\?/|\\?(?:cdot|times|[,;:! ])(?![A-Za-z])|\^\s*\{?\s*(-?[0-9])\s*\}?|[A-Za-z]+\.?|[\s.,~-]|[^\x00-\x7f]"
)


@dataclass(frozen=True)
class Unit:
    """What a number counts or measures.

    Attributes:
        factors: The units with their powers, in the order of their names; empty if there is none.
        scale: What the number is multiplied with: 1,000,000 for `million`.
        percent: Whether it says per cent.
    """

    factors: tuple[tuple[str, int], ...] = ()
    scale: int = 1
    percent: bool = False

    def differs(self, other: "Unit") -> bool:
        """Whether both are given and are different; nothing is converted."""
        ours, theirs = self.measured(), other.measured()
        return bool(ours and theirs and ours != theirs)

    @property
    def known(self) -> bool:
        """Whether all are units of measurement."""
        return all(name in _NAMES.values() for name, _ in self.factors)

    def measured(self) -> tuple[tuple[str, int], ...]:
        """The factors without words that say nothing (`units`)."""
        return tuple(factor for factor in self.factors if factor[0] not in _NEUTRAL)


NO_UNIT: Final = Unit()


def currency(sign: str) -> Unit:
    """The unit of a currency sign."""
    return Unit(((_CURRENCIES.get(sign, sign), 1),))


def read_unit(text: str, *, bare: bool) -> Unit | None:
    r"""Read what follows a number.

    Args:
        text: LaTeX, such as `\text{ cm}^2`.
        bare: Whether it may be a product of variables: it is then a unit only if it is a known one of two letters or
            more, or looks like a word.

    Returns:
        The unit, or None if the text is none.
    """
    plain = text if bare else re.sub(r"\\text|[{}]", " ", text)
    plain = re.sub(r"\(([A-Za-z ]*)\)", r" \1 ", plain)
    words, powers = _words(plain)
    if words is None:
        return None
    scale = 1
    while words and words[0] in SCALES:
        scale *= SCALES[words.pop(0)]
        powers.pop(0)
    if words in (["percent"], ["pct"], ["percentage"], ["per cent"]):
        return Unit(scale=scale, percent=True)
    if not words:
        return Unit(scale=scale) if scale > 1 else None
    if all(word in _POWERS for word in words):
        return None
    known = all(word in _NAMES or word in _POWERS for word in words)
    if not known and (len(words) > 6 or not _is_noun(words, bare=bare)):
        return None
    if known and bare and len(words) == 1 and len(words[0]) == 1:
        return None
    return Unit(_factors(words, powers, known=known), scale)


def _words(text: str) -> tuple[list[str] | None, list[int]]:
    """The words of a unit with the sign of their power; None if it holds anything else."""
    if _TOKEN.sub("", text).strip():
        return None, []
    words: list[str] = []
    powers: list[int] = []
    sign = 1
    text = re.sub(r"\b(?:mph|kph|kmh|fps|sqft)\b", lambda name: _COMPOUND[name[0]], text.casefold())
    for token in _TOKEN.finditer(text.replace("per cent", "percent")):
        word = token[0].strip(" .,~-")
        if token[1]:
            if not words:
                return None, []
            powers[-1] *= int(token[1])
        elif word.endswith("/") or word == "per":
            sign = -1
        elif word.isalpha():
            words.append(_singular(_CURRENCIES.get(word, word)))
            powers.append(sign)
    return words, powers


def _is_noun(words: list[str], *, bare: bool) -> bool:
    """Whether words count something: not a statement about the number, not a product of variables."""
    if any(word in _NO_NOUN and word not in _ARTICLES for word in words) or any(word in SCALES for word in words):
        return False
    first = words[0]
    if not first.isascii():
        return True
    if words[-1] in _ARTICLES | _JUDGEMENTS or any(word.endswith("ly") and word != "family" for word in words):
        return False
    if not bare:
        return len(first) > 1
    return len(first) > 2 and re.search(r"[aeiouy]", first) is not None and first != "".join(sorted(first))


def _factors(words: list[str], powers: list[int], *, known: bool) -> tuple[tuple[str, int], ...]:
    if not known:
        return ((words[-1] if words[1:2] != ["of"] else words[0], 1),)
    found: dict[str, int] = {}
    power, last = 1, ""
    for word, sign in zip(words, powers, strict=True):
        if word in _POWERS and not word.endswith("d"):
            power = _POWERS[word]
        elif word in _POWERS:
            found[last] = found.get(last, 1) * _POWERS[word]
        else:
            last = _NAMES[word]
            found[last] = found.get(last, 0) + sign * power
            power = 1
    return tuple(sorted((name, power) for name, power in found.items() if power))


def _singular(word: str) -> str:
    if word in _NAMES or word in _POWERS or len(word) < 3:
        return word
    for ending, instead in (("ies", "y"), ("ches", "ch"), ("s", "")):
        if word.endswith(ending) and not word.endswith(("ss", "us", "is")):
            shorter = word.removesuffix(ending) + instead
            return shorter if ending != "ies" or len(word) > 4 else word
    return word
