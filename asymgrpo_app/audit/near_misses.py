"""Near misses: answers that are wrong, and close to the reference or right for another row."""

import re
from collections.abc import Iterator
from fractions import Fraction

from asymgrpo_app.audit.problems import AnswerKind, Problem, letter_of
from asymgrpo_app.audit.rewrites import Make, Rewrite, RewriteKind, spelling
from asymgrpo_app.rewards.arithmetic import parse_arithmetic
from asymgrpo_app.rewards.numbers import parse_number

_LETTERS = "ABCD"
_LAST_DIGITS = re.compile(r"[0-9]+(?=[^0-9]*\Z)")
_LAST_OPERATOR = re.compile(r"[-+*](?=[^-+*]*\Z)")

NUMBER, CHOICE, EXPRESSION, FORMULA, TEXT = (
    AnswerKind.NUMBER,
    AnswerKind.CHOICE,
    AnswerKind.EXPRESSION,
    AnswerKind.FORMULA,
    AnswerKind.TEXT,
)


def _shifted(by: int) -> Make:
    def answers(problem: Problem) -> Iterator[str]:
        if (number := problem.number) is not None and not number.percent:
            yield _decimal(number.value + by, number.decimals)

    return answers


def _decimal(value: Fraction, decimals: int | None) -> str:
    """A value with so many digits after the point; a fraction if it is None."""
    if not decimals:
        return str(value)
    digits = f"{abs(int(value * 10**decimals)):0{decimals + 1}d}"
    return f"{'-' if value < 0 else ''}{digits[:-decimals]}.{digits[-decimals:]}"


def _opposite(problem: Problem) -> Iterator[str]:
    if (number := problem.number) is not None and number.value:
        yield problem.answer[1:] if problem.answer.startswith("-") else f"-{problem.answer}"


def _ten_times(problem: Problem) -> Iterator[str]:
    if re.fullmatch(r"-?[1-9][0-9]*", problem.answer):
        yield f"{problem.answer}0"


def _last_digit(problem: Problem) -> Iterator[str]:
    found = _LAST_DIGITS.search(problem.answer)
    # A digit in an exponent may belong to a unit, one in a text to words: what they count for is the verifier's affair.
    if found is None or r"\text" in problem.answer or problem.answer[: found.start()].endswith(("^", "^{")):
        return
    by = problem.draw("last digit").randrange(1, 10)
    place = found.end() - 1
    changed = f"{problem.answer[:place]}{(int(problem.answer[place]) + by) % 10}{problem.answer[place + 1 :]}"
    number, other = parse_number(problem.answer), parse_number(changed)
    if number is None or (other is not None and other.value != number.value):
        yield changed


def _other_letters(problem: Problem) -> list[str]:
    right = letter_of(problem.answer)
    return [problem.answer.replace(right, letter) for letter in _LETTERS if letter != right]


def _other_operator(problem: Problem) -> Iterator[str]:
    right = parse_arithmetic(problem.answer)
    for operator in "+-*":
        changed = _LAST_OPERATOR.sub(operator, problem.answer)
        read = parse_arithmetic(changed)
        if read is not None and right is not None and read.value != right.value:
            yield changed
            return


def _number_left_out(problem: Problem) -> Iterator[str]:
    head = _LAST_OPERATOR.split(problem.answer)[0]
    if head != problem.answer:
        yield head


def _number_twice(problem: Problem) -> Iterator[str]:
    last = re.split(r"[-+*]", problem.answer)[-1].strip()
    yield f"{problem.answer}+{last}-{last}"


def _target(problem: Problem) -> Iterator[str]:
    if len(problem.row["numbers"]) > 1:
        yield str(problem.row["target"])


def _letter_changed(problem: Problem) -> Iterator[str]:
    places = [index for index, char in enumerate(problem.answer) if char.isalpha()]
    if places:
        place = problem.draw("letter").choice(places)
        new = "x" if problem.answer[place].lower() != "x" else "y"
        yield f"{problem.answer[:place]}{new}{problem.answer[place + 1 :]}"


def _word_left_out(problem: Problem) -> Iterator[str]:
    if len(words := problem.answer.split()) > 1:
        yield " ".join(words[:-1])


def _near(name: str, make: Make, *answers: AnswerKind) -> Rewrite:
    return spelling(name, RewriteKind.NEAR_MISS, make, *answers)


NEAR_MISSES: tuple[Rewrite, ...] = (
    _near("1 more", _shifted(1), NUMBER),
    _near("1 less", _shifted(-1), NUMBER),
    _near("opposite sign", _opposite, NUMBER),
    _near("ten times", _ten_times, NUMBER),
    _near("another letter", _other_letters, CHOICE),
    _near("another operator", _other_operator, EXPRESSION),
    _near("a number left out", _number_left_out, EXPRESSION),
    _near("a number used again", _number_twice, EXPRESSION),
    _near("the target alone", _target, EXPRESSION),
    _near("another last digit", _last_digit, NUMBER, FORMULA),
    _near("a letter changed", _letter_changed, TEXT),
    _near("a word left out", _word_left_out, TEXT),
    _near("another row's answer", lambda problem: [problem.other] if problem.other else []),
)


def wrong_answers(problem: Problem) -> list[str]:
    """Up to two different answers that are wrong for a problem: one near the reference, and another row's or a second.

    Args:
        problem: The problem; its own `wrong` is not looked at.
    """
    near = [text for rewrite in NEAR_MISSES for text in rewrite.texts(problem)]
    chosen = [*near[:1], problem.other or next(iter(near[1:]), "")]
    return [text for text in dict.fromkeys(chosen) if text]
