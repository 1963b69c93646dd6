"""The base of sources that generate their problems: two splits by a hash, and a fixed set for evaluation."""

from abc import abstractmethod
from collections.abc import Hashable, Sequence
from hashlib import blake2b
from typing import Literal, get_args

from asymgrpo_app.errors import UserError
from asymgrpo_app.prompts.base import Prompt, PromptSource

Split = Literal["train", "validation"]

_FIXED_SEED = 0
_SCANNED_PER_FIXED = 20
"""`fixed` gives up after this many positions per problem asked for: a split is finite."""


def hash_of(text: str) -> int:
    """128 bits of a text. Not `random`: Python does not promise the same draws in every version."""
    return int.from_bytes(blake2b(text.encode(), digest_size=16).digest(), "big")


def split_by_hash(identity: str) -> Split:
    """The split of a problem by the hash of its identity: about one in ten is for validation."""
    return "validation" if hash_of(identity) % 10 == 0 else "train"


class ProceduralSource(PromptSource):
    """An endless source with two splits that share no problem.

    Args:
        split: The side of the split that the problems come from, `train` or `validation`.
        most: Upper bound on the number of distinct problems.
    """

    def __init__(self, split: Split, most: int) -> None:
        if split not in get_args(Split):
            raise UserError(f"{self} has no split {split!r}: use 'train' or 'validation'.")
        self.split = split
        self._most = most

    @abstractmethod
    def identity(self, prompt: Prompt) -> Hashable:
        """A key that two problems share if and only if they are the same."""

    def fixed(self, limit: int | None) -> Sequence[Prompt]:
        """The first `limit` distinct problems of a constant seed.

        Raises:
            UserError: `limit` is None, not positive, or (nearly) more than the problems the split has.
        """
        if limit is None or limit < 1:
            raise UserError(f"{self} is endless and needs a positive limit for evaluation, not {limit}.")
        if limit > self._most:
            raise UserError(f"{self} has fewer than {self._most:,} distinct problems, a limit of {limit} is too large.")
        distinct: dict[Hashable, Prompt] = {}
        for position in range(_SCANNED_PER_FIXED * limit):
            prompt = self.at(position, _FIXED_SEED)
            distinct.setdefault(self.identity(prompt), prompt)
            if len(distinct) == limit:
                return list(distinct.values())
        raise UserError(
            f"{self}'s {self.split} split is too small for a limit of {limit} distinct problems: "
            f"{len(distinct)} were found, ask for fewer."
        )
