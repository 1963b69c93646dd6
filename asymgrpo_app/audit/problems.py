"""A problem as rewrites see it: its reference, what kind of answer that is, and an answer that is wrong."""

import random
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

from asymgrpo_app.prompts.base import Prompt
from asymgrpo_app.rewards.arithmetic import parse_arithmetic
from asymgrpo_app.rewards.numbers import WrittenNumber, parse_number

FORMS = (
    "{answer}",
    r"\boxed{{answer}}",
    "The answer is {answer}",
    "<answer>{answer}</answer>",
    "#### {answer}",
    r"Step by step this gives the final answer $\boxed{{answer}}$.",
)
"""The ways in which verifiers expect an answer, looked through in this order for one that the verifier takes."""

ANSWER = "{answer}"

_CHOICE = re.compile(r"\s*\(?([A-Z])[).]?\s*")
_FORMULA = re.compile(r"[\\^_={}]|[0-9]\s*[-+*/(,]|[-+*/(,]\s*[0-9]")
_DIFFERENT_SPELLING = re.compile(r"\\(?:left|right|displaystyle|text|mathrm|[!,;: ])|[\s${}]")


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
        wrong: Other answers, all of them wrong: the first is near the reference where there is one that is.
        other: The reference of another row, which is wrong here; "" if all rows have the same.
        seed: Seed of what is drawn for this row.
    """

    prompt: Prompt
    answer: str
    kind: AnswerKind
    form: str
    wrong: Sequence[str] = ()
    other: str = ""
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
    if "numbers" in row and "target" in row and parse_arithmetic(answer):
        return AnswerKind.EXPRESSION
    if parse_number(answer):
        return AnswerKind.NUMBER
    if _CHOICE.fullmatch(answer):
        return AnswerKind.CHOICE
    return AnswerKind.FORMULA if _FORMULA.search(answer) else AnswerKind.TEXT


def letter_of(answer: str) -> str:
    """The letter of a choice."""
    found = _CHOICE.fullmatch(answer)
    assert found is not None
    return found[1]


def same_spelling(answer: str, row: Mapping[str, Any]) -> object:
    """What two references share that may be the same answer: a value, or a spelling without what does not count."""
    if (number := parse_number(answer)) is not None:
        return number.value
    if "numbers" in row and (read := parse_arithmetic(answer)) is not None:
        return sorted(read.numbers), read.value
    text = answer.replace(r"\dfrac", r"\frac").replace(r"\tfrac", r"\frac")
    return _DIFFERENT_SPELLING.sub("", text).casefold()


def other_answers(answers: Sequence[str], rows: Sequence[Mapping[str, Any]], seed: int) -> list[str]:
    """For each of n rows the reference of another row that is another answer; "" where there is none.

    Args:
        answers: [n] references.
        rows: [n] rows.
        seed: Seed of the draw.
    """
    draw = random.Random(seed)
    keys = [same_spelling(answer, row) for answer, row in zip(answers, rows, strict=True)]
    found = []
    for key in keys:
        first = draw.randrange(len(answers))
        places = (*range(first, len(answers)), *range(first))
        found.append(next((answers[place] for place in places if keys[place] != key), ""))
    return found
