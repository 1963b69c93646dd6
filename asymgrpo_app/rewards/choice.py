"""The verifier for multiple choice."""

import re
from collections.abc import Mapping
from typing import Any, ClassVar

from asymgrpo_app.errors import UserError
from asymgrpo_app.rewards.base import AnswerVerifier, Verdict
from asymgrpo_app.rewards.extraction import FORMULA_TAIL_CHARS, after_thinking, last_boxed

_PHRASE = re.compile(
    r"\b(?:answer|option|choice)\b[ \t]{0,4}(?:is\b|:|=)?[ \t]{0,4}(?:\*\*|:|[ \t]){0,4}", re.IGNORECASE
)
_TEXT_COMMAND = re.compile(r"\\(?:text|textbf|mathrm|mathbf|mbox)\{([^{}]*)\}")
_DENIAL = re.compile(
    r"(?:\b(?:not|never|neither|nor|cannot|except)\b|n['\u2019]t\b)"
    r"(?:\s+(?:be|equal|the|an?|option|choice|answer|letter|right|correct|actually|definitely|simply|just))*[^\w]*$",
    re.IGNORECASE,
)
_DENIED = re.compile(
    r"\W*\s(?:(?:is|was|seems|can|could)\s+)?(?:not\b|wrong|"
    r"incorrect|false|ruled out|impossible|never|cannot|\w+n['\u2019]t\b)",
    re.IGNORECASE,
)
_SMALL = re.compile(r"\(?[a-z]\)?\.?|[a-z][.)]\s.*")


class MultipleChoice(AnswerVerifier):
    r"""Accepts a completion that chooses the letter in `row["answer"]`.

    The letter is looked for in this order, and the first place that names any letter decides; if it names several
    different letters (`A or B`), or if there is no such place, the status is `no_answer`:

    1. the last complete \boxed{} in the last 20,000 characters: `C`, `(C)`, `\text{C}`, `C. Paris`;
    2. the last `answer is`, `answer:`, `option` or `choice` that a letter follows, in the last 2,000 characters:
       `Answer: (C)`;
    3. the last line that is not empty, where the letter stands alone: `C`, `(C)`, `**C**`, `C. Paris`.

    In a box and in brackets small letters are accepted, too; elsewhere they are words. A box without a letter is no
    answer.

    Args:
        choices: The letters to choose from, e.g. `ABCD`; two or more different capital letters.
    """

    isolated: ClassVar[bool] = False

    def __init__(self, choices: str = "ABCD") -> None:
        if not re.fullmatch(r"[A-Z]{2,26}", choices) or len(set(choices)) != len(choices):
            raise UserError(f"choices must be two or more different capital letters, not {choices!r}")
        self.choices = choices

    def judge(self, answer: str, row: Mapping[str, Any]) -> Verdict:
        """Judge a letter. The row has `answer`, one of the letters."""
        return Verdict(correct=answer == _letter(row["answer"]))

    def find_answer(self, completion: str, row: Mapping[str, Any]) -> str | None:
        letters = self._chosen(completion)
        return letters.pop() if len(letters) == 1 else None

    def check_row(self, row: Mapping[str, Any]) -> None:
        """Check that the reference is one of the letters.

        Raises:
            ValueError: `answer` is missing, no string, or not one of the choices.
        """
        answer = row.get("answer")
        letter = _letter(answer) if isinstance(answer, str) else ""
        if len(letter) != 1 or letter not in self.choices:
            raise ValueError(f'"answer" must be one of the letters {self.choices}, not {answer!r:.100}')

    def _chosen(self, completion: str) -> set[str]:
        box = last_boxed(completion)
        if box is not None:
            return self._named(_TEXT_COMMAND.sub(r"\1", box[-FORMULA_TAIL_CHARS:]), any_case=True)
        text = after_thinking(completion)[-FORMULA_TAIL_CHARS:]
        said = [text[phrase.end() :].partition("\n")[0] for phrase in _PHRASE.finditer(text)]
        lines = [
            line for line in said if self._standing().match(line) or _SMALL.fullmatch(line.strip("*$ "))
        ] or text.strip().splitlines()
        return self._named(lines[-1]) if lines else set()

    def _named(self, line: str, *, any_case: bool = False) -> set[str]:
        """The different letters that a line names; after `C.` or `C:` at its start, the rest is an explanation."""
        line = line.strip().strip("*$ ")
        if len(line.strip("().")) == 1 if any_case else _SMALL.fullmatch(line):
            line = line[:4].upper()
        start = re.match(rf"\(?([{self.choices}])(?:\)|[.:](?=\s|$))", line)
        if start and not re.match(r"\s*(?:,|or\b|and\b|/)", line[start.end() :]):
            return {start[1]}
        matches = list(self._standing().finditer(line))
        if any(_DENIAL.search(line[: match.start()]) or _DENIED.match(line[match.end() :]) for match in matches[:1]):
            return set()  # "not C" and "C is wrong" rule C out and choose nothing
        return {(match[1] or match[2]).upper() for match in matches}

    def _standing(self) -> re.Pattern[str]:
        """Pattern of a letter alone: in brackets, or a capital that is neither part of a word nor the word A or I."""
        bracketed = rf"\(([{self.choices}{self.choices.lower()}])\)"
        bare = rf"(?<![A-Za-z0-9_'\\(])([{self.choices}])(?![A-Za-z0-9_'])(?!(?<=[AI]) (?!or |and )[a-z])"
        return re.compile(rf"{bracketed}|{bare}")


def _letter(answer: str) -> str:
    return _TEXT_COMMAND.sub(r"\1", answer[:100]).strip("() .\n").upper()
