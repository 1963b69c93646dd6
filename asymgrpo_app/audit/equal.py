r"""Rewrites that keep the answer: other spellings of the reference."""

import re
from collections.abc import Iterator
from fractions import Fraction

from asymgrpo_app.audit.problems import AnswerKind, Problem, letter_of
from asymgrpo_app.audit.rewrites import Make, Rewrite, RewriteKind, spelling

_MOST_DECIMALS = 6
_PLAIN = re.compile(r"(?P<sign>-?)(?P<whole>[0-9]{1,3}(?:,[0-9]{3})+|[0-9]+)(?P<rest>\.[0-9]+)?")
_UNIT = re.compile(r"(?<=[0-9])\s*\\(?:text|mathrm)\{\s*([A-Za-z]{2,20})\s*\}")
_TERM = re.compile(r"([0-9*]+)\+([0-9*]+)((?:[-+].*)?)")

NUMBER, CHOICE, EXPRESSION, FORMULA, TEXT = (
    AnswerKind.NUMBER,
    AnswerKind.CHOICE,
    AnswerKind.EXPRESSION,
    AnswerKind.FORMULA,
    AnswerKind.TEXT,
)


def _in_text(problem: Problem) -> Iterator[str]:
    if "\\" not in problem.answer:  # commands do not work in a text
        yield rf"\text{{{problem.answer}}}"


def _leading_plus(problem: Problem) -> Iterator[str]:
    if problem.answer[:1].isdigit():
        yield f"+{problem.answer}"


def _trailing_zeros(problem: Problem) -> Iterator[str]:
    if plain := _PLAIN.fullmatch(problem.answer):
        yield f"{problem.answer}0" if plain["rest"] else f"{problem.answer}.0"
        yield f"{problem.answer}00" if plain["rest"] else f"{problem.answer}.00"


def _leading_zero(problem: Problem) -> Iterator[str]:
    if re.fullmatch(r"-?0\.[0-9]+", problem.answer):
        yield problem.answer.replace("0.", ".", 1)
    elif re.fullmatch(r"-?\.[0-9]+", problem.answer):
        yield problem.answer.replace(".", "0.", 1)


def _separated(sign: str) -> Make:
    def answers(problem: Problem) -> Iterator[str]:
        plain = _PLAIN.fullmatch(problem.answer)
        if plain and len(plain["whole"].replace(",", "")) > 3:
            grouped = f"{int(plain['whole'].replace(',', '')):,}".replace(",", sign)
            yield f"{plain['sign']}{grouped}{plain['rest'] or ''}"

    return answers


def _no_separators(problem: Problem) -> Iterator[str]:
    if _PLAIN.fullmatch(problem.answer):
        yield problem.answer.replace(",", "")


def _minus(problem: Problem) -> Iterator[str]:
    if problem.answer.startswith("-"):
        yield f"−{problem.answer[1:]}"
        yield f"- {problem.answer[1:]}"


def _value(problem: Problem) -> Fraction | None:
    """The exact value of a number that is written without a percent sign; None of all else."""
    number = problem.number
    return None if number is None or number.percent else number.value


def _decimal(problem: Problem) -> Iterator[str]:
    value = _value(problem)
    if value is None or value.denominator == 1 or (10**_MOST_DECIMALS) % value.denominator:
        return
    digits = next(n for n in range(1, _MOST_DECIMALS + 1) if 10**n % value.denominator == 0)
    whole, rest = divmod(abs(value.numerator) * 10**digits // value.denominator, 10**digits)
    yield f"{'-' if value < 0 else ''}{whole}.{rest:0{digits}d}"


def _parts(problem: Problem) -> tuple[str, int, int] | None:
    """Sign, numerator and denominator of a number that is no integer."""
    value = _value(problem)
    if value is None or value.denominator == 1 or value.denominator > 10**_MOST_DECIMALS:
        return None
    return "-" if value < 0 else "", abs(value.numerator), value.denominator


def _latex_fraction(problem: Problem) -> Iterator[str]:
    if parts := _parts(problem):
        yield "{}\\frac{{{}}}{{{}}}".format(*parts)


def _slash(problem: Problem) -> Iterator[str]:
    if parts := _parts(problem):
        yield "{}{}/{}".format(*parts)


def _unreduced(problem: Problem) -> Iterator[str]:
    if parts := _parts(problem):
        sign, top, bottom = parts
        yield f"{sign}\\frac{{{2 * top}}}{{{2 * bottom}}}"


def _fraction_commands(problem: Problem) -> Iterator[str]:
    if r"\frac" in problem.answer:
        yield problem.answer.replace(r"\frac", r"\dfrac")
        yield problem.answer.replace(r"\frac", r"\tfrac")
    elif r"\dfrac" in problem.answer:
        yield problem.answer.replace(r"\dfrac", r"\frac")


def _growing_brackets(problem: Problem) -> Iterator[str]:
    if (
        "(" in problem.answer
        and r"\left" not in problem.answer
        and problem.answer.count("(") == problem.answer.count(")")
    ):
        yield problem.answer.replace("(", r"\left(").replace(")", r"\right)")
    elif r"\left(" in problem.answer and r"\right)" in problem.answer:
        yield problem.answer.replace(r"\left(", "(").replace(r"\right)", ")")


def _spaces_in_formula(problem: Problem) -> Iterator[str]:
    if r"\text" not in problem.answer:
        yield re.sub(r"(?<=[0-9a-z)}])([-+=])(?=[0-9a-z(\\])", r" \1 ", problem.answer)


def _plain_unit(problem: Problem) -> Iterator[str]:
    yield _UNIT.sub(r" \1", problem.answer)


def _unit_in_text(problem: Problem) -> Iterator[str]:
    if found := re.fullmatch(r"([0-9.]+) ?([a-z]{2,20})", problem.answer):
        yield rf"{found[1]}\text{{ {found[2]}}}"


def _choices(problem: Problem) -> list[str]:
    letter = letter_of(problem.answer)
    return [letter, f"({letter})", f"{letter}.", f"{letter})"]


def _choice_in_text(problem: Problem) -> list[str]:
    letter = letter_of(problem.answer)
    return [rf"\text{{{letter}}}", rf"\textbf{{({letter})}}"]


def _swapped(problem: Problem) -> Iterator[str]:
    if found := _TERM.fullmatch(problem.answer.replace(" ", "")):
        yield f"{found[2]}+{found[1]}{found[3]}"


def _equal(name: str, make: Make, *answers: AnswerKind) -> Rewrite:
    return spelling(name, RewriteKind.EQUAL, make, *answers)


EQUAL: tuple[Rewrite, ...] = (
    _equal("spaces around", lambda p: [f"  {p.answer} ", f"\n{p.answer}\n"]),
    _equal("full stop after", lambda p: [f"{p.answer}."], NUMBER, FORMULA, TEXT),
    _equal("between dollars", lambda p: [f"${p.answer}$"], NUMBER, FORMULA),
    _equal(r"\displaystyle", lambda p: [rf"\displaystyle {p.answer}"], NUMBER, FORMULA),
    _equal(r"in \text", _in_text, NUMBER, TEXT),
    _equal("leading plus", _leading_plus, NUMBER),
    _equal("trailing zeros", _trailing_zeros, NUMBER),
    _equal("leading zero", _leading_zero, NUMBER),
    _equal("thousands separators", _separated(","), NUMBER),
    _equal("thousands separators of LaTeX", _separated("{,}"), NUMBER),
    _equal("thin spaces for thousands", _separated(r"\,"), NUMBER),
    _equal("no thousands separators", _no_separators, NUMBER),
    _equal("minus signs", _minus, NUMBER),
    _equal("exact decimal", _decimal, NUMBER),
    _equal(r"as \frac", _latex_fraction, NUMBER),
    _equal("fraction with a slash", _slash, NUMBER),
    _equal("unreduced fraction", _unreduced, NUMBER),
    _equal(r"\dfrac and \tfrac", _fraction_commands, NUMBER, FORMULA),
    _equal(r"\left and \right", _growing_brackets, FORMULA),
    _equal("spaces in a formula", _spaces_in_formula, FORMULA),
    _equal("unit as plain text", _plain_unit, FORMULA),
    _equal(r"unit in \text", _unit_in_text, FORMULA, TEXT),
    _equal("letter in brackets", _choices, CHOICE),
    _equal(r"letter in \text", _choice_in_text, CHOICE),
    _equal("spaces in an expression", lambda p: [re.sub(r"\s*([-+*])\s*", r" \1 ", p.answer)], EXPRESSION),
    _equal("terms swapped", _swapped, EXPRESSION),
    _equal("other case", lambda p: [p.answer.upper(), p.answer.lower()], TEXT),
)
