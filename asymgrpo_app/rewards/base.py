"""Verifiers: what judges a completion, and what a judgement is."""

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import Any


class Status(StrEnum):
    """How a verdict came about."""

    OK = "ok"
    NO_ANSWER = "no_answer"
    TIMEOUT = "timeout"
    ERROR = "error"


@dataclass(frozen=True)
class Verdict:
    """A judgement of one completion.

    Attributes:
        correct: Whether the answer is right. Binary: it alone decides the group accuracy p.
        status: `ok` if an answer was found and judged, `no_answer` if none was found (then `correct` is False),
            `timeout` or `error` if the verifier itself failed.
    """

    correct: bool
    status: Status = Status.OK


class Verifier(ABC):
    """Judges completions. Model output is untrusted: a verifier parses text, it never evaluates it."""

    @abstractmethod
    def verify(self, completion: str, row: Mapping[str, Any]) -> Verdict:
        """Judge the text of one completion against its row (a mapping with at least `answer`)."""

    def check_row(self, row: Mapping[str, Any]) -> None:
        """Raise `ValueError` with the reason if no completion could ever be judged against this row.

        Called on every row as it is read, so it must be cheap.
        """
