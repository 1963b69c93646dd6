"""Verifiers that work for some completions, or return something else than a verdict."""

import time
from collections.abc import Mapping
from typing import Any, ClassVar

import numpy as np

from asymgrpo_app.rewards import Verdict, Verifier

RETURNED: dict[str, Any] = {
    "none": None,
    "bool": True,
    "number": 0.5,
    "text": "correct",
    "class": Verdict,
    "graded": Verdict(correct=0.5),  # type: ignore[arg-type]
    "integer": Verdict(correct=1),  # type: ignore[arg-type]
    "nothing": Verdict(correct=None),  # type: ignore[arg-type]
}


class Returns(Verifier):
    """Returns what goes by a name, for all completions or for those without a box."""

    def __init__(self, what: str, boxed: bool = True) -> None:
        self.what, self.boxed = what, boxed

    def verify(self, completion: str, row: Mapping[str, Any]) -> Any:
        if not self.boxed and "boxed" in completion:
            return Verdict(correct=True)
        return RETURNED[self.what]


class ReturnsHere(Returns):
    """In this process."""

    isolated: ClassVar[bool] = False


class OfNumPy(Verifier):
    """Compares arrays, as verifiers do that read numbers."""

    def verify(self, completion: str, row: Mapping[str, Any]) -> Verdict:
        return Verdict(correct=np.char.equal(completion, row["answer"])[()])  # type: ignore[arg-type]


class LastLine(Verifier):
    """Has a mistake that only an empty completion shows."""

    def verify(self, completion: str, row: Mapping[str, Any]) -> Verdict:
        return Verdict(correct=completion.splitlines()[-1] == row["answer"])


class NeedsColumn(Verifier):
    """Reads a column that no row may have."""

    def verify(self, completion: str, row: Mapping[str, Any]) -> Verdict:
        return Verdict(correct=completion in row["tests"])


class Lenient(Verifier):
    """Calls everything right that is short."""

    def verify(self, completion: str, row: Mapping[str, Any]) -> Verdict:
        return Verdict(correct=len(completion) < 5)


class OwnForm(Verifier):
    """Takes answers in a form of its own, which no reference has."""

    def verify(self, completion: str, row: Mapping[str, Any]) -> Verdict:
        return Verdict(correct=completion == f"<answer>{row['answer']}</answer>")


class Hangs(Verifier):
    """Never returns."""

    def verify(self, completion: str, row: Mapping[str, Any]) -> Verdict:
        time.sleep(600)
        return Verdict(correct=True)


class HangsHere(Hangs):
    """In this process."""

    isolated: ClassVar[bool] = False


class LoopsHere(HangsHere):
    """Never returns, and catches what it can."""

    def verify(self, completion: str, row: Mapping[str, Any]) -> Verdict:
        while True:
            try:
                time.sleep(0)
            except Exception:
                continue
