"""Cutting of a step's sequences into padded or packed micro-batches."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import overload

import torch

from asymgrpo_app.microbatch.microbatch import Form, MicroBatch, TokenSequence, build, cut_by_tokens, on_device
from asymgrpo_app.microbatch.packing import cut_packed, pack


@dataclass(frozen=True)
class MicroBatches(Sequence[MicroBatch]):
    """Micro-batches of a known number. Each is built when it is asked for, while a GPU works on the one before.

    Attributes:
        sequences: The list that was cut.
        groups: Per micro-batch, the indices of its sequences.
        form: How they lie in it.
        device: Where its tensors are.
        num_empty: How many empty micro-batches follow: one token, no members, no targets, a gradient of exactly 0 for
            every weight.
    """

    sequences: Sequence[TokenSequence]
    groups: Sequence[list[int]]
    form: Form
    device: torch.device
    num_empty: int = 0

    def __len__(self) -> int:
        return len(self.groups) + self.num_empty

    @overload
    def __getitem__(self, index: int) -> MicroBatch: ...
    @overload
    def __getitem__(self, index: slice) -> Sequence[MicroBatch]: ...
    def __getitem__(self, index: int | slice) -> MicroBatch | Sequence[MicroBatch]:
        if isinstance(index, slice):
            return [self[number] for number in range(len(self))[index]]
        number = range(len(self))[index]
        if number < len(self.groups):
            batch = self._built(self.sequences, self.groups[number])
        else:
            one = self._built([TokenSequence([0], [0])], [0])
            nothing = one.targets[:0]
            batch = replace(one, predictors=nothing, targets=nothing, sequence_ids=nothing, places=nothing, members=[])
        return on_device(batch, self.device)

    def _built(self, sequences: Sequence[TokenSequence], members: list[int]) -> MicroBatch:
        if self.form == "padded":
            return build(sequences, members)
        return pack(sequences, members, varlen=self.form == "varlen")


def cut(sequences: Sequence[TokenSequence], members: Sequence[int], max_tokens: int, form: Form) -> list[list[int]]:
    """Group sequences into micro-batches of at most `max_tokens` tokens each, the longest sequences first.

    Args:
        sequences: The sequences to choose from.
        members: Indices of those that are cut.
        max_tokens: Bound on a micro-batch, padding included; a single longer sequence has one of its own.
        form: How they lie in it; in packed rows, completions of one prompt share its tokens.

    Returns:
        Per micro-batch, the indices of its sequences.
    """
    chosen = [sequences[member] for member in members]
    groups = cut_by_tokens(list(map(len, chosen)), max_tokens) if form == "padded" else cut_packed(chosen, max_tokens)
    return [[members[index] for index in group] for group in groups]


def in_step(batches: MicroBatches, *, gather: Callable[[int], list[int]]) -> MicroBatches:
    """Add empty micro-batches (zero gradient) up to the largest count of any rank; every rank takes part.

    With sharded weights, every rank takes part in every forward pass.

    Args:
        batches: Those of this rank; there may be none.
        gather: Returns a number of every rank, on every rank.
    """
    return replace(batches, num_empty=max(gather(len(batches))) - len(batches))
