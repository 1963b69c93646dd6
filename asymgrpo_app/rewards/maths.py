"""The verifier for mathematical answers."""

import re
from collections.abc import Mapping
from typing import Any, Literal

from asymgrpo_app.errors import UserError
from asymgrpo_app.rewards.base import AnswerVerifier, Verdict, visible_answer
from asymgrpo_app.rewards.extraction import last_boxed, last_formula
from asymgrpo_app.rewards.latex import MAX_ANSWER_CHARS, Answer, read_answer, refusal
from asymgrpo_app.rewards.numbers import WrittenNumber, parse_number

_SEVERAL = re.compile(r",|;|\\cup|\\infty|\\begin|\\leq|\\geq|[<>]")
_UNPRINTABLE = re.compile(r"[\x00-\x08\x0b\x0c\x0e-\x1f\x7f\ud800-\udfff]")


class MathVerifier(AnswerVerifier):
    r"""Accepts an answer that equals `row["answer"]` in value, whatever its form; both may be LaTeX.

    Numbers, times, numbers with a base, names and choices are compared by rules of our own, everything else (roots,
    sets, intervals, tuples, matrices, equations, formulas) by the library math-verify. The answer is looked for at the
    end of the completion; without one the status is `no_answer`. An answer that is too long, nested too deeply, too
    large to work out, or that holds anything but mathematics is never given to the library: it is right only if it is
    spelled like the reference, otherwise wrong, with the status `ok`.

    Args:
        extract: Where the answer stands: `boxed`, the last complete \boxed{}; `boxed_or_last`, or if there is none the
            last number or formula.
    """

    def __init__(self, extract: Literal["boxed", "boxed_or_last"] = "boxed_or_last") -> None:
        if extract not in ("boxed", "boxed_or_last"):
            raise UserError(f'extract must be "boxed" or "boxed_or_last", not {extract!r}')
        self.extract = extract

    @classmethod
    def prepare(cls) -> None:
        """Import the libraries."""
        cls().verify(r"\boxed{\sqrt{2}+x}", {"answer": r"\sqrt{3}+x"})

    def judge(self, answer: str, row: Mapping[str, Any]) -> Verdict:
        """Judge an answer. The row has `answer`, a string."""
        return Verdict(correct=self.equal_answers(row["answer"], answer))

    def find_answer(self, completion: str, row: Mapping[str, Any]) -> str | None:
        given = last_boxed(completion)
        if given is None and self.extract == "boxed_or_last":
            given = last_formula(completion)
        return None if given is None else given.strip() or None

    def equal_answers(self, first: str, second: str) -> bool:
        """Whether `second` has the value of `first`, the reference."""
        if first.strip() == second.strip():
            return True
        if any(len(answer) > MAX_ANSWER_CHARS or _UNPRINTABLE.search(answer) for answer in (first, second)):
            return False
        return _equal(read_answer(first), read_answer(second))

    def check_row(self, row: Mapping[str, Any]) -> None:
        """Check that the reference can be read.

        Raises:
            ValueError: `answer` is missing, no string, empty or too long, or cannot be read as mathematics or as words.
        """
        answer = visible_answer(row)
        if len(answer) > MAX_ANSWER_CHARS:
            raise ValueError(f'"answer" has {len(answer):,} characters, more than {MAX_ANSWER_CHARS:,}')
        if _UNPRINTABLE.search(answer):
            raise ValueError('"answer" holds control characters or broken Unicode')
        read = read_answer(answer)
        if not read.text:
            raise ValueError(f'"answer" is {answer!r}, which holds no answer')
        if read.kind != "formula" or parse_number(read.text):
            return
        from asymgrpo_app.rewards.formulas import parse_formula

        reason = refusal(read.text)
        if reason or parse_formula(read.text) is None:
            why = f": {reason}" if reason else ""
            raise ValueError(f'"answer" is {answer!r}, which cannot be read as mathematics or as words{why}')


def _equal(reference: Answer, given: Answer) -> bool:
    if "words" in (reference.kind, given.kind):
        return bool(given.text) and reference.text.casefold() == given.text.casefold()
    if reference.kind != given.kind:
        return False
    if reference.kind != "formula":
        # 2:30 pm answers a question whose reference is 2:30, but not the other way round.
        return given.text == reference.text or (given.kind == "time" and given.text[:-2] == reference.text)
    if reference.unit and given.unit and reference.unit != given.unit:
        return False
    if reference.text == given.text:
        return bool(given.text)
    left, right = reference.number, given.number
    if left and right:
        return _equal_numbers(left, right)
    differ = _differ_in_shape(reference, given, one_is_number=bool(left or right))
    if differ or refusal(given.text) or refusal(reference.text):
        return False
    from asymgrpo_app.rewards.formulas import equal_formulas  # sympy takes its time, and most verifiers do without it

    return equal_formulas(reference, given)


def _differ_in_shape(reference: Answer, given: Answer, *, one_is_number: bool) -> bool:
    """Whether the spelling alone shows that two formulas differ: a set and a pair, a number and a list, a matrix."""
    texts = (reference.text, given.text)
    braces = [text.startswith(r"\{") for text in texts]
    if braces[0] != braces[1] and any(text.startswith("(") and text.endswith(")") for text in texts):
        return True
    if one_is_number and any(_SEVERAL.search(text) for text in texts if not parse_number(text)):
        return True
    return (r"\begin" in reference.text) != (r"\begin" in given.text)


def _equal_numbers(left: WrittenNumber, right: WrittenNumber) -> bool:
    if left.percent != right.percent:
        return not set(left.candidates()).isdisjoint(right.candidates())
    return left.value == right.value or left.rounds(right.value) or right.rounds(left.value)
