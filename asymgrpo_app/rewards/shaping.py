"""Shaping: small corrections of advantages by form or length, apart from correctness."""

from abc import ABC, abstractmethod

from asymgrpo_app.errors import UserError


class ShapingTerm(ABC):
    """A term added to the advantage of a completion; p and the sign come from correctness alone.

    It is evaluated in the training process, on untrusted text: keep its work linear in the length of the text.
    """

    @abstractmethod
    def value(self, completion: str) -> float:
        """The amount added to the advantage, in units of the advantage."""


class FormatPenalty(ShapingTerm):
    """Subtracts a penalty from the advantage of completions that do not keep to a form.

    Args:
        required: Texts that must occur, in this order, e.g. `["<think>", "</think>"]`.
        penalty: The amount that a completion without them loses, > 0.
    """

    def __init__(self, required: list[str], penalty: float = 0.5) -> None:
        if not required or not all(required):
            raise UserError(f"required of FormatPenalty must hold at least one text and no empty one, got {required}.")
        if not 0 < penalty < float("inf"):
            raise UserError(f"penalty of FormatPenalty must be a finite number > 0, got {penalty}.")
        self.required = required
        self.penalty = penalty

    def value(self, completion: str) -> float:
        start = 0
        for text in self.required:
            found = completion.find(text, start)
            if found < 0:
                return -self.penalty
            start = found + len(text)
        return 0.0
