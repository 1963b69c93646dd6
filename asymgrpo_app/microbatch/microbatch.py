"""Micro-batches: sequences cut into forward passes of bounded size."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence


@dataclass(frozen=True)
class TokenSequence:
    """A prompt with one of its completions, both at least one token long."""

    prompt: Sequence[int]
    completion: Sequence[int]

    def __len__(self) -> int:
        return len(self.prompt) + len(self.completion)


@dataclass
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


@dataclass
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


def completion_tokens(chosen: Sequence[TokenSequence]) -> tuple[Tensor, Tensor]:
    """The completion tokens of B sequences, one after the other, and for each the index of its sequence: [T], [T]."""
    lengths = torch.tensor([len(sequence.completion) for sequence in chosen])
    tokens = [token for sequence in chosen for token in sequence.completion]
    return torch.tensor(tokens), torch.arange(len(chosen)).repeat_interleave(lengths)


def build(sequences: Sequence[TokenSequence], members: list[int]) -> MicroBatch:
    """Pad the chosen sequences into one forward pass."""
    chosen = [sequences[member] for member in members]
    rows = [torch.tensor([*sequence.prompt, *sequence.completion]) for sequence in chosen]
    input_ids = pad_sequence(rows, batch_first=True)  # token 0 as padding: masked, its identity is moot
    predictors: list[int] = []
    for row, sequence in enumerate(chosen):
        first = row * input_ids.shape[1] + len(sequence.prompt) - 1  # the last prompt token predicts the first target
        predictors.extend(range(first, first + len(sequence.completion)))
    targets, sequence_ids = completion_tokens(chosen)
    return MicroBatch(
        input_ids,
        attention_mask=pad_sequence([torch.ones_like(row) for row in rows], batch_first=True),
        predictors=torch.tensor(predictors),
        targets=targets,
        sequence_ids=sequence_ids,
        members=members,
        num_tokens=sum(map(len, chosen)),
    )
