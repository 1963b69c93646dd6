"""The base of sources that generate their problems: two splits by a hash, and a fixed set for evaluation."""

from abc import abstractmethod
from collections.abc import Mapping, Sequence
from hashlib import blake2b
from itertools import count
from typing import Any, Literal, get_args

from asymgrpo_app.errors import UserError
from asymgrpo_app.prompts.base import Prompt, PromptSource
from asymgrpo_app.rewards.base import Verifier

Split = Literal["train", "validation"]

_TRIES = 500  # a draw is on the validation side with probability 1/10, so all of these fail in 1 of 10^22 cases
_FIXED_SEED = 0
_SCANNED_PER_FIXED = 20
"""`fixed` gives up at this many positions per problem found: a split is finite."""


class ProceduralSource(PromptSource):
    """An endless source with two splits that share no problem.

    A problem is a pure function of (settings, split, seed, position), in every process and every version of Python. A
    hash of its identity puts about one in ten on the validation side. Problems may repeat.

    Args:
        split: The side of the split that the problems come from, `train` or `validation`.
        name: First part of the uids, which are `<name>/<split>/<seed>/<position>`.
        stream: Name of the stream of draws.
        verifier: Judges the completions.
    """

    def __init__(self, split: Split, name: str, stream: str, verifier: Verifier) -> None:
        if split not in get_args(Split):
            raise UserError(f"{type(self).__name__} has no split {split!r}: use 'train' or 'validation'.")
        self.split = split
        self.verifier = verifier
        self.last_failure = ""
        """Why the last draw gave no problem, in brackets; empty if nothing is known."""
        self._name = name
        self._stream = stream

    @abstractmethod
    def draw(self, bits: int) -> dict[str, Any] | None:
        """The row of the problem drawn by 128 random bits; None if it is none of this split or cannot be used."""

    @abstractmethod
    def text(self, row: Mapping[str, Any]) -> str:
        """The text of a problem."""

    @abstractmethod
    def identity(self, row: Mapping[str, Any]) -> str:
        """A text that two problems share if and only if they are the same."""

    def split_of(self, row: Mapping[str, Any]) -> Split:
        """The split that a problem belongs to."""
        return "validation" if _hash(self.identity(row)) % 10 == 0 else "train"

    def at(self, position: int, seed: int) -> Prompt:
        """Problem number `position` of `seed`.

        Raises:
            UserError: The split has (nearly) no problem: the settings leave too few.
        """
        for attempt in range(_TRIES):
            row = self.draw(_hash(f"{self._stream} {seed} {position} {attempt}"))
            if row is not None:
                uid = f"{self._name}/{self.split}/{seed}/{position}"
                return Prompt(uid, self.text(row), row, self.verifier)
        raise UserError(
            f"{self} gave no problem for the {self.split} split in {_TRIES} tries: its settings leave too few "
            f"different ones, or none whose own answer is right{self.last_failure}."
        )

    def fixed(self, limit: int | None) -> Sequence[Prompt]:
        """The first `limit` distinct problems of a constant seed.

        Raises:
            UserError: `limit` is None, or (nearly) more than the problems the split has.
        """
        if limit is None:
            raise UserError(f"{self} is endless and needs a limit for evaluation, not None.")
        distinct: dict[str, Prompt] = {}
        for position in count():
            if len(distinct) >= limit:
                break
            if position == _SCANNED_PER_FIXED * (len(distinct) + 1):
                raise UserError(
                    f"The {self.split} split of {self} is too small for a limit of {limit} distinct problems: "
                    f"{len(distinct)} were found, ask for fewer."
                )
            prompt = self.at(position, _FIXED_SEED)
            distinct.setdefault(self.identity(prompt.row), prompt)
        return list(distinct.values())


def _hash(text: str) -> int:
    """128 bits of a text. Not `random`: Python does not promise the same draws in every version."""
    return int.from_bytes(blake2b(text.encode(), digest_size=16).digest(), "big")
