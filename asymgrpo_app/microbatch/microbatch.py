"""Micro-batches: sequences cut into forward passes of bounded size."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class TokenSequence:
    """A prompt with one of its completions, both at least one token long."""

    prompt: Sequence[int]
    completion: Sequence[int]

    def __len__(self) -> int:
        return len(self.prompt) + len(self.completion)


@dataclass(frozen=True)
class PackedAttention:
    """Index maps between N packed tokens and the padded buckets of sequences that attention runs on.

    Attributes:
        buckets: Per bucket of b sequences of similar length, [b, L] int64 indices of their tokens among the N, prompt
            and completion; padded on the right with index 0, which no earlier query sees in causal attention.
        owners: [N] int64, for each token the index of one copy of it in all buckets, flattened and concatenated.
        shared: [M] int64, indices of the further copies: a shared prompt's tokens are in each of its sequences.
        shared_tokens: [M] int64, indices among the N of the tokens that these are copies of.
    """

    buckets: tuple[Tensor, ...]
    owners: Tensor
    shared: Tensor
    shared_tokens: Tensor

    def to(self, device: torch.device) -> "PackedAttention":
        """A copy on a device."""
        return PackedAttention(
            tuple(bucket.to(device) for bucket in self.buckets),
            self.owners.to(device),
            self.shared.to(device),
            self.shared_tokens.to(device),
        )


@dataclass(frozen=True)
class MicroBatch:
    """One forward pass over B sequences with T completion tokens in all: padded, or packed in one row of N tokens.

    Attributes:
        input_ids: [B, L] int64, padded on the right; packed [1, N].
        attention_mask: [B, L] int64, 0 at padding; None where packed.
        predictors: [T] int64, indices of the flattened hidden states that predict the completion tokens.
        targets: [T] int64, the completion tokens, sequence after sequence.
        sequence_ids: [T] int64 in 0..B-1.
        members: B indices of these sequences in the list that was cut.
        num_tokens: Tokens that go through the model, without padding.
        position_ids: [1, N] int64 where packed.
        attention: Index maps for attention, where packed.
    """

    input_ids: Tensor
    attention_mask: Tensor | None
    predictors: Tensor
    targets: Tensor
    sequence_ids: Tensor
    members: list[int]
    num_tokens: int
    position_ids: Tensor | None = None
    attention: PackedAttention | None = None

    def to(self, device: torch.device) -> "MicroBatch":
        """A copy on a device."""
        return MicroBatch(
            self.input_ids.to(device),
            None if self.attention_mask is None else self.attention_mask.to(device),
            self.predictors.to(device),
            self.targets.to(device),
            self.sequence_ids.to(device),
            self.members,
            self.num_tokens,
            None if self.position_ids is None else self.position_ids.to(device),
            None if self.attention is None else self.attention.to(device),
        )


def cut_by_tokens(lengths: Sequence[int], max_tokens: int) -> list[list[int]]:
    """Group sequences of similar length so that each group, padded to its longest, has at most `max_tokens` tokens.

    Args:
        lengths: Tokens of each sequence.
        max_tokens: Bound on a group's padded size; a single longer sequence makes a group of its own.

    Returns:
        Groups of indices into `lengths`, longest sequences first (so a pass that does not fit fails at once).
    """
    groups: list[list[int]] = []
    for index in sorted(range(len(lengths)), key=lambda i: -lengths[i]):
        if groups and (len(groups[-1]) + 1) * lengths[groups[-1][0]] <= max_tokens:
            groups[-1].append(index)
        else:
            groups.append([index])
    return groups


def build(sequences: Sequence[TokenSequence], members: list[int]) -> MicroBatch:
    """Pad the chosen sequences into one forward pass."""
    chosen = [sequences[member] for member in members]
    width = max(map(len, chosen))
    input_ids = torch.zeros(len(chosen), width, dtype=torch.int64)  # token 0 as padding: masked, its identity is moot
    attention_mask = torch.zeros_like(input_ids)
    predictors, targets, sequence_ids = [], [], []
    for row, sequence in enumerate(chosen):
        tokens = [*sequence.prompt, *sequence.completion]
        input_ids[row, : len(tokens)] = torch.tensor(tokens)
        attention_mask[row, : len(tokens)] = 1
        first = row * width + len(sequence.prompt) - 1  # the last prompt token predicts the first completion token
        predictors.append(torch.arange(first, first + len(sequence.completion)))
        targets.append(torch.tensor(sequence.completion))
        sequence_ids.append(torch.full((len(sequence.completion),), row))
    return MicroBatch(
        input_ids,
        attention_mask,
        torch.cat(predictors),
        torch.cat(targets),
        torch.cat(sequence_ids),
        members,
        num_tokens=sum(map(len, chosen)),
    )
