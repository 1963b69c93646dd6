"""Sums of two numbers: a task that a small chat model on a laptop learns within minutes."""

from collections.abc import Mapping
from typing import Any

from asymgrpo_app.errors import UserError
from asymgrpo_app.prompts.procedural import ProceduralSource, Split
from asymgrpo_app.rewards.numeric import NumericMatch


class Addition(ProceduralSource):
    """Endless sums `What is A + B?` of two numbers with `digits` digits; right if the last number is the sum.

    A hash of the unordered pair puts about one problem in ten on the validation side, so the two splits share none, not
    even with A and B exchanged. Rows are `{"a": 47, "b": 85, "answer": "132"}`. The uid is
    `addition/<split>/<seed>/<position>`; problems repeat, since they are few.

    Args:
        split: The side of the split that the problems come from, `train` or `validation`.
        digits: Digits of each number, 1 to 9; there is no leading zero.
        format: The problem's text, with `{a}` and `{b}`.
    """

    def __init__(
        self,
        split: Split = "train",
        digits: int = 2,
        format: str = "What is {a} + {b}? Answer with just the number.",  # noqa: A002 - as in templates
    ) -> None:
        if not 1 <= digits <= 9:
            raise UserError(f"Addition: digits must lie between 1 and 9, got {digits}.")
        if format.count("{a}") != 1 or format.count("{b}") != 1:
            raise UserError(f"Addition: format must contain {{a}} and {{b}} once each, got {format!r}.")
        super().__init__(split, "addition", f"addition problem {digits}", NumericMatch(extract="last"))
        self.digits = digits
        self.format = format

    def draw(self, bits: int) -> dict[str, Any] | None:
        least, number = 10 ** (self.digits - 1), 9 * 10 ** (self.digits - 1)
        bits, first = divmod(bits, number)
        a, b = least + first, least + bits % number
        row = {"a": a, "b": b, "answer": str(a + b)}
        return row if self.split_of(row) == self.split else None

    def text(self, row: Mapping[str, Any]) -> str:
        return self.format.replace("{a}", str(row["a"])).replace("{b}", str(row["b"]))

    def identity(self, row: Mapping[str, Any]) -> str:
        a, b = sorted((row["a"], row["b"]))
        return f"addition split {self.digits} {a} {b}"
