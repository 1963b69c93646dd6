"""Sums of two numbers: a task that a small chat model on a laptop learns within minutes."""

from asymgrpo_app.errors import UserError
from asymgrpo_app.prompts.base import Prompt
from asymgrpo_app.prompts.procedural import ProceduralSource, Split, hash_of, split_by_hash
from asymgrpo_app.rewards.numeric import NumericMatch


class Addition(ProceduralSource):
    """Endless sums `What is A + B?` of two numbers with `digits` digits; right if the last number is the sum.

    A hash of the unordered pair puts about one problem in ten on the validation side, so the two splits share none, not
    even with A and B exchanged. Rows are `{"a": 47, "b": 85, "answer": "132"}`.

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
        number = 9 * 10 ** (digits - 1)
        super().__init__(split, number * (number + 1) // 2)
        self.digits = digits
        self.format = format
        self.verifier = NumericMatch(extract="last")

    def at(self, position: int, seed: int) -> Prompt:
        """Problem number `position` of `seed`, a pure function of the two; problems repeat, since they are few.

        Its uid is `addition/<split>/<seed>/<position>`.
        """
        least, number = 10 ** (self.digits - 1), 9 * 10 ** (self.digits - 1)
        attempt = 0
        while True:
            bits, a = divmod(hash_of(f"addition problem {self.digits} {seed} {position} {attempt}"), number)
            a, b = least + a, least + bits % number
            if self._split_of(a, b) == self.split:
                break
            attempt += 1
        text = self.format.replace("{a}", str(a)).replace("{b}", str(b))
        row = {"a": a, "b": b, "answer": str(a + b)}
        return Prompt(f"addition/{self.split}/{seed}/{position}", text, row, self.verifier)

    def identity(self, prompt: Prompt) -> tuple[int, ...]:
        """Its two numbers, in either order."""
        return tuple(sorted((prompt.row["a"], prompt.row["b"])))

    def _split_of(self, a: int, b: int) -> Split:
        return split_by_hash(f"addition split {self.digits} {min(a, b)} {max(a, b)}")
