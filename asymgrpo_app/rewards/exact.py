"""The verifier for short answers that have one spelling."""

from collections.abc import Mapping
from typing import Any

from asymgrpo_app.rewards.base import Status, Verdict, Verifier


class ExactMatch(Verifier):
    """Accepts a completion that equals `row["answer"]`, white space around both left out.

    An empty completion has the status `no_answer`.

    Args:
        case_sensitive: Whether `Paris` and `paris` are different answers.
    """

    def __init__(self, case_sensitive: bool = True) -> None:
        self.case_sensitive = case_sensitive

    def verify(self, completion: str, row: Mapping[str, Any]) -> Verdict:
        """Judge one completion. The row has `answer`, a string."""
        given = self._normalise(completion)
        if not given:
            return Verdict(correct=False, status=Status.NO_ANSWER)
        return Verdict(correct=given == self._normalise(row["answer"]))

    def check_row(self, row: Mapping[str, Any]) -> None:
        """Check that there is an answer to compare with.

        Raises:
            ValueError: `answer` is missing, not a string, or only white space.
        """
        answer = row.get("answer")
        if not isinstance(answer, str) or not answer.strip():
            raise ValueError('"answer" must be a string with at least one visible character')

    def _normalise(self, text: str) -> str:
        text = text.strip()
        return text if self.case_sensitive else text.casefold()
