"""Micro-batches: sequences cut into forward passes of bounded size."""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import Literal

import torch
from lightning_utilities.core.apply_func import apply_to_collection
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

Form = Literal["padded", "buckets", "varlen"]
"""How sequences lie in a micro-batch: padded to one length, or packed in one row without padding. Attention over a
packed row works on padded buckets of whole sequences, or on sequences of any length, for which it needs a kernel that
can (`varlen`)."""


@dataclass(frozen=True)
class TokenSequence:
    """A prompt with one of its completions, both at least one token long."""

    prompt: Sequence[int]
    completion: Sequence[int]

    def __len__(self) -> int:
        return len(self.prompt) + len(self.completion)


@dataclass
class BucketAttention:
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
class VarlenAttention:
    """Index maps between N packed tokens and R runs of them, for attention over sequences of any length.

    A run is a prompt, or the tokens of one completion. A prompt's queries see the prompt; a completion's see its prompt
    and itself. Both are causal, aligned at the end: the last query sees every key of its run. Queries lie in the order
    of the row, so that keys and values alone are gathered, K of them.

    Attributes:
        query_starts: [R + 1] int32, where each run's queries begin among the N, and N.
        key_starts: [R + 1] int32, where each run's keys begin among the K, and K.
        longest_query: Most queries of a run.
        longest_key: Most keys of a run.
        keys: [K] int64, indices among the N of the tokens that are keys.
        owners: [N] int64, for each token the index of one copy of it among the K.
        copies: [C] int64, indices among the K of all copies of the tokens that have several, those of a token together.
        shared_tokens: [M] int64, indices among the N of these tokens.
        num_copies: [M] int64, how many copies each has; the sum is C.
    """

    query_starts: Tensor
    key_starts: Tensor
    longest_query: int
    longest_key: int
    keys: Tensor
    owners: Tensor
    copies: Tensor
    shared_tokens: Tensor
    num_copies: Tensor


PackedAttention = BucketAttention | VarlenAttention
"""What attention over a packed row needs to know of it."""


@dataclass
class MicroBatch:
    """One forward pass over B sequences with T completion tokens in all: padded, or packed in one row of N tokens.

    Attributes:
        input_ids: [B, L] int64, padded on the right; packed [1, N].
        attention_mask: [B, L] int64, 0 at padding; None where packed.
        predictors: [T] int64, indices of the flattened hidden states that predict the completion tokens.
        targets: [T] int64, the completion tokens, sequence after sequence.
        sequence_ids: [T] int64 in 0..B-1.
        places: [T] int64, indices of these tokens among the completion tokens of all sequences of the cut list.
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
    places: Tensor
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


def completion_tokens(sequences: Sequence[TokenSequence], members: Sequence[int]) -> tuple[Tensor, Tensor, Tensor]:
    """The completion tokens of `members`, one after the other: `targets`, `sequence_ids` and `places` of a micro-batch.

    Args:
        sequences: The list that was cut.
        members: B indices into it.
    """
    starts = [0, *accumulate(len(sequence.completion) for sequence in sequences)]
    tokens = [token for member in members for token in sequences[member].completion]
    places = torch.cat([torch.arange(starts[member], starts[member + 1]) for member in members])
    lengths = torch.tensor([len(sequences[member].completion) for member in members])
    return torch.tensor(tokens), torch.arange(len(members)).repeat_interleave(lengths), places


def build(sequences: Sequence[TokenSequence], members: list[int]) -> MicroBatch:
    """Pad the chosen sequences into one forward pass."""
    chosen = [sequences[member] for member in members]
    rows = [torch.tensor([*sequence.prompt, *sequence.completion]) for sequence in chosen]
    input_ids = pad_sequence(rows, batch_first=True)  # token 0 as padding: masked, its identity is moot
    predictors: list[int] = []
    for row, sequence in enumerate(chosen):
        first = row * input_ids.shape[1] + len(sequence.prompt) - 1  # the last prompt token predicts the first target
        predictors.extend(range(first, first + len(sequence.completion)))
    targets, sequence_ids, places = completion_tokens(sequences, members)
    return MicroBatch(
        input_ids,
        attention_mask=pad_sequence([torch.ones_like(row) for row in rows], batch_first=True),
        predictors=torch.tensor(predictors),
        targets=targets,
        sequence_ids=sequence_ids,
        places=places,
        members=members,
        num_tokens=sum(map(len, chosen)),
    )


def on_device(batch: MicroBatch, device: torch.device) -> MicroBatch:
    """The micro-batch with its tensors on the device, in one copy for each of their types, which nothing waits for."""
    if device.type == "cpu":
        return batch
    tensors: list[Tensor] = []

    def listed(tensor: Tensor) -> Tensor:
        tensors.append(tensor)
        return tensor

    apply_to_collection(batch, Tensor, listed)
    moved: dict[int, Tensor] = {}
    for dtype in {tensor.dtype for tensor in tensors}:
        alike = [tensor for tensor in tensors if tensor.dtype == dtype]
        flat = torch.cat([tensor.flatten() for tensor in alike])
        if device.type == "cuda":
            flat = flat.pin_memory()  # a copy from other memory would be made in two steps
        parts = flat.to(device, non_blocking=True).split([tensor.numel() for tensor in alike])
        moved |= {id(tensor): part.view(tensor.shape) for tensor, part in zip(alike, parts, strict=True)}
    result: MicroBatch = apply_to_collection(batch, Tensor, lambda tensor: moved[id(tensor)])
    return result
