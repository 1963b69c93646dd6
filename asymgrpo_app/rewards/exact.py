"""Verifiers of texts: the whole completion or a box must equal the answer; those of `regex.py` build on them."""

from collections.abc import Mapping
from typing import Any, ClassVar, Literal

from asymgrpo_app.errors import UserError
from asymgrpo_app.rewards.base import AnswerVerifier, Verdict, visible_answer
from asymgrpo_app.rewards.extraction import last_boxed


class TextMatch(AnswerVerifier):
    """Accepts a completion in which `find_answer` finds the text of `row["answer"]`.

    Attributes:
        case_sensitive: Whether `Paris` and `paris` are different answers.
    """

    case_sensitive: bool

    def judge(self, answer: str, row: Mapping[str, Any]) -> Verdict:
        """Judge an answer. The row has `answer`, a string."""
        return Verdict(correct=answer == self.normalized(row["answer"]))

    def check_row(self, row: Mapping[str, Any]) -> None:
        """Check that there is an answer to compare with.

        Raises:
            ValueError: `answer` is missing, not a string, or only white space.
        """
        visible_answer(row)

    def normalized(self, text: str | None) -> str | None:
        """The text without white space around it, and in one case if case does not matter; None if nothing is left."""
        text = (text or "").strip()
        return (text if self.case_sensitive else text.casefold()) or None


class ExactMatch(TextMatch):
    r"""Accepts a completion that equals `row["answer"]`; white space around both is ignored.

    An empty completion, or one without a box where a box is asked for, has the status `no_answer`.

    Args:
        case_sensitive: Whether `Paris` and `paris` are different answers.
        extract: The text that must equal the answer: `whole`, the completion; `boxed`, the content of its last complete
            \boxed{}.
    """

    isolated: ClassVar[bool] = False

    def __init__(self, case_sensitive: bool = True, extract: Literal["whole", "boxed"] = "whole") -> None:
        if extract not in ("whole", "boxed"):
            raise UserError(f'extract must be "whole" or "boxed", not {extract!r}')
        self.case_sensitive = case_sensitive
        self.extract = extract

    def find_answer(self, completion: str, row: Mapping[str, Any]) -> str | None:
        return self.normalized(completion if self.extract == "whole" else last_boxed(completion))
