"""The interface of verifiers, and their verdicts."""

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import Any, ClassVar


class Status(StrEnum):
    """Status of a verdict: an answer was judged, none was found, or the verifier failed."""

    OK = "ok"
    NO_ANSWER = "no_answer"
    TIMEOUT = "timeout"
    ERROR = "error"

    @property
    def failed(self) -> bool:
        """Whether the verifier itself failed, so that the completion was not judged."""
        return self in (Status.TIMEOUT, Status.ERROR)


@dataclass(frozen=True)
class Verdict:
    """The judgement of one completion.

    Attributes:
        correct: Whether the answer is right. Binary; the group accuracy p depends on it alone.
        status: `ok` if an answer was found and judged, `no_answer` if none was found (then `correct` is False),
            `timeout` or `error` if the verifier itself failed.
        detail: Why the verifier failed, in one line; empty otherwise.
    """

    correct: bool
    status: Status = Status.OK
    detail: str = ""


class Verifier(ABC):
    """Judges completions. Model output is untrusted: a verifier parses text, it never evaluates it.

    Verifiers are sent to worker processes, so they must be picklable: keep plain settings on `self`, and build costly
    objects on first use.
    """

    isolated: ClassVar[bool] = True
    """Whether the verifier runs in a worker process under a time limit. Only a verifier whose work is bounded by its
    own lines (no library, no regular expression that can backtrack) may say False and run in the training process."""

    @classmethod
    def prepare(cls) -> None:
        """Prepare a process for judging, once, e.g. by importing a library.

        Worker processes call it before the first answer, outside its time limit.
        """

    @abstractmethod
    def verify(self, completion: str, row: Mapping[str, Any]) -> Verdict:
        """Judge the text of one completion against its row (a mapping with at least `answer`)."""

    def find_answer(self, completion: str, row: Mapping[str, Any]) -> str | None:
        """Extract the answer of a completion; None if it has none.

        With `equal_answers` this defines equal answers, over which a majority (maj@k) is taken.

        Raises:
            NotImplementedError: The verifier does not define equal answers; evaluations then have no maj@k.
        """
        raise NotImplementedError

    def equal_answers(self, first: str, second: str) -> bool:
        """Whether two answers that `find_answer` found are the same answer."""
        return first == second

    def check_row(self, row: Mapping[str, Any]) -> None:
        """Raise `ValueError` with the reason if no completion could ever be judged against this row.

        Called on every row as it is read, where `verify` runs too: in a worker if the verifier is isolated.
        """


class AnswerVerifier(Verifier):
    """A verifier that finds an answer in the completion, and judges the answer alone."""

    def verify(self, completion: str, row: Mapping[str, Any]) -> Verdict:
        """Judge the answer of one completion; without an answer the status is `no_answer`."""
        answer = self.find_answer(completion, row)
        if answer is None:
            return Verdict(correct=False, status=Status.NO_ANSWER)
        return self.judge(answer, row)

    @abstractmethod
    def judge(self, answer: str, row: Mapping[str, Any]) -> Verdict:
        """Judge an answer that `find_answer` found."""


def visible_answer(row: Mapping[str, Any]) -> str:
    """The reference of a row.

    Raises:
        ValueError: `answer` is missing, not a string, or only white space.
    """
    answer = row.get("answer")
    if not isinstance(answer, str) or not answer.strip():
        raise ValueError('"answer" must be a string with at least one visible character')
    return answer
