"""Shaping: small corrections of advantages by form or length, apart from correctness."""

from abc import ABC, abstractmethod

from asymgrpo_app.errors import UserError


class ShapingTerm(ABC):
    """Adds to the advantage of a completion, after p and the sign were taken from correctness alone.

    It is evaluated in the training process, on untrusted text: keep its work linear in the length of the text.
    """

    @abstractmethod
    def value(self, completion: str) -> float:
        """What is added to the advantage, in units of the advantage."""


class FormatPenalty(ShapingTerm):
    """Takes something off completions that do not keep to a form.

    Args:
        required: Texts that must occur, in this order, e.g. `["<think>", "</think>"]`.
        penalty: How much a completion without them loses, > 0.
    """

    def __init__(self, required: list[str], penalty: float = 0.5) -> None:
        if not required or not all(required):
            raise UserError(f"required of FormatPenalty must hold at least one text and no empty one, got {required}.")
        if not 0 < penalty < float("inf"):
            raise UserError(f"penalty of FormatPenalty must be a finite number > 0, got {penalty}.")
        self.required = required
        self.penalty = penalty

    def value(self, completion: str) -> float:
        place = 0
        for text in self.required:
            found = completion.find(text, place)
            if found < 0:
                return -self.penalty
            place = found + len(text)
        return 0.0
