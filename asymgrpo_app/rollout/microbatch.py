"""Cutting an update into forward passes of bounded size."""

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
class MicroBatch:
    """One padded forward pass over B sequences with T completion tokens in all.

    Attributes:
        input_ids: [B, L] int64, padded on the right.
        attention_mask: [B, L] int64, 0 at padding.
        predictors: [T] int64, places in the flattened [B * L] hidden states that predict the completion tokens.
        targets: [T] int64, the completion tokens, sequence after sequence.
        sequence_ids: [T] int64 in 0..B-1.
        members: B places of these sequences in the list that was cut.
    """

    input_ids: Tensor
    attention_mask: Tensor
    predictors: Tensor
    targets: Tensor
    sequence_ids: Tensor
    members: list[int]

    def to(self, device: torch.device) -> "MicroBatch":
        """The same on another device."""
        return MicroBatch(
            self.input_ids.to(device),
            self.attention_mask.to(device),
            self.predictors.to(device),
            self.targets.to(device),
            self.sequence_ids.to(device),
            self.members,
        )


def cut_by_tokens(lengths: Sequence[int], max_tokens: int) -> list[list[int]]:
    """Group sequences of like length so that each group, padded to its longest, has at most `max_tokens` tokens.

    Args:
        lengths: Tokens of each sequence.
        max_tokens: Bound on a group's padded size; a single longer sequence makes a group of its own.

    Returns:
        Groups of places in `lengths`, longest sequences first (so a pass that does not fit fails at once).
    """
    groups: list[list[int]] = []
    for place in sorted(range(len(lengths)), key=lambda i: -lengths[i]):
        if groups and (len(groups[-1]) + 1) * lengths[groups[-1][0]] <= max_tokens:
            groups[-1].append(place)
        else:
            groups.append([place])
    return groups


def build(sequences: Sequence[TokenSequence], members: list[int]) -> MicroBatch:
    """Pad the chosen sequences into one forward pass."""
    chosen = [sequences[place] for place in members]
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
        input_ids, attention_mask, torch.cat(predictors), torch.cat(targets), torch.cat(sequence_ids), members
    )
