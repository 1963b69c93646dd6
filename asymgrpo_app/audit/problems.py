"""A problem as rewrites see it: its reference, what kind of answer that is, and answers that are wrong."""

import random
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

from asymgrpo_app.prompts.base import Prompt
from asymgrpo_app.rewards.arithmetic import parse_arithmetic
from asymgrpo_app.rewards.numbers import WrittenNumber, parse_number

ANSWER = "{answer}"
"""Stands for the answer in a form and in a template."""

_CHOICE = re.compile(r"\s*\(?([A-Z])[).]?\s*")
_FORMULA = re.compile(r"[\\^_={}]|[0-9]\s*[-+*/(,]|[-+*/(,]\s*[0-9]|\A-?[0-9]*[a-z]\Z")
_MEANINGLESS = re.compile(r"\\(?:left|right|displaystyle|text|mathrm|[!,;: ])|[\s${}]")


class AnswerKind(StrEnum):
    """What kind of answer a reference is, as far as its spelling tells."""

    NUMBER = "number"
    CHOICE = "choice"
    EXPRESSION = "expression"
    FORMULA = "formula"
    TEXT = "text"


@dataclass(frozen=True)
class Problem:
    """A row of the data.

    Attributes:
        prompt: The problem with its row and verifier.
        answer: The reference.
        kind: What kind of answer it is.
        form: How the verifier expects an answer, a text with `{answer}`.
        accepted: Whether it accepts the reference in that form.
        other: The reference of another row, which is wrong here; "" if all rows have the same.
        wrong: Up to two answers that are wrong; the first is near the reference where such a one can be made.
        seed: Seed of what is drawn.
    """

    prompt: Prompt
    answer: str
    kind: AnswerKind
    form: str
    accepted: bool = False
    other: str = ""
    wrong: Sequence[str] = ()
    seed: int = 0

    @property
    def number(self) -> WrittenNumber | None:
        """The reference as a number, if it is one."""
        return parse_number(self.answer) if self.kind is AnswerKind.NUMBER else None

    @property
    def row(self) -> Mapping[str, Any]:
        """The row that the verifier gets."""
        return self.prompt.row

    def written(self, answer: str) -> str:
        """A completion that gives this answer in the form that the verifier expects."""
        return self.form.replace(ANSWER, answer)

    def draw(self, purpose: str) -> random.Random:
        """A generator whose numbers depend on the seed, the row and the purpose alone."""
        return random.Random(f"{self.seed} {self.prompt.uid} {purpose}")


def kind_of(answer: str, row: Mapping[str, Any]) -> AnswerKind:
    """What kind of answer a reference is."""
    if _is_countdown(row) and parse_arithmetic(answer):
        return AnswerKind.EXPRESSION
    if parse_number(answer):
        return AnswerKind.NUMBER
    if _CHOICE.fullmatch(answer):
        return AnswerKind.CHOICE
    return AnswerKind.FORMULA if _FORMULA.search(answer) else AnswerKind.TEXT


def letter_of(answer: str) -> str:
    """The letter of a reference that is a choice."""
    found = _CHOICE.fullmatch(answer)
    assert found is not None
    return found[1]


def other_answers(answers: Sequence[str], rows: Sequence[Mapping[str, Any]], seed: int) -> list[str]:
    """For each of n rows the reference of another row that is another answer; "" where there is none.

    Args:
        answers: [n] references.
        rows: [n] rows.
        seed: Seed of the draw.
    """
    draw = random.Random(seed)
    count = len(answers)
    keys = [_identity(answer, row) for answer, row in zip(answers, rows, strict=True)]
    found = []
    for key in keys:
        first = draw.randrange(count)
        places = ((first + step) % count for step in range(count))
        found.append(next((answers[place] for place in places if keys[place] != key), ""))
    return found


def _identity(answer: str, row: Mapping[str, Any]) -> object:
    """What two references share that may be the same answer: a value, or the spelling without what means nothing."""
    if _is_countdown(row) and (read := parse_arithmetic(answer)) is not None:
        return sorted(read.numbers), read.value
    if (number := parse_number(answer)) is not None:
        return number.value
    if _CHOICE.fullmatch(answer):
        return letter_of(answer).casefold()
    text = answer.replace(r"\dfrac", r"\frac").replace(r"\tfrac", r"\frac")
    return _MEANINGLESS.sub("", text).casefold()


def _is_countdown(row: Mapping[str, Any]) -> bool:
    return "numbers" in row and "target" in row
