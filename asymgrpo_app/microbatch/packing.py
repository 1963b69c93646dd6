"""Packed micro-batches: sequences end to end without padding, and a prompt that completions share computed once.

The tokens of a forward pass are one row: for each prompt its tokens, then its completions. All layers but attention
work token by token. Attention runs on whole sequences, in padded buckets (`BucketAttention`) or, where a kernel takes
sequences of any length, on prompts and completions as they lie (`VarlenAttention`).
"""

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from asymgrpo_app.microbatch.microbatch import (
    BucketAttention,
    MicroBatch,
    TokenSequence,
    VarlenAttention,
    completion_tokens,
)

# Sequences are padded inside attention alone; one that is shorter than this share of the longest starts a new bucket.
_SHORTEST = 0.7


def cut_packed(sequences: Sequence[TokenSequence], max_tokens: int) -> list[list[int]]:
    """Group sequences so that each group, packed, has at most `max_tokens` tokens.

    Sequences with the same prompt (a family) stay together where they fit; otherwise their prompt is in several groups.

    Args:
        sequences: Prompts with completions.
        max_tokens: Bound on a group's packed tokens; a single longer sequence makes a group of its own.

    Returns:
        Groups of indices into `sequences`: families of the longest sequences first, the members of a family together.
    """
    families: dict[tuple[int, ...], list[int]] = {}
    for index, sequence in enumerate(sequences):
        families.setdefault(tuple(sequence.prompt), []).append(index)
    for members in families.values():
        members.sort(key=lambda index: -len(sequences[index]))
    groups: list[list[int]] = []
    room = 0
    for prompt, members in sorted(families.items(), key=lambda family: -len(sequences[family[1][0]])):
        new = True  # whether the prompt is still to be laid out in the current group
        for index in members:
            length = len(sequences[index].completion) - 1  # the last token predicts nothing
            if not groups or length + new * len(prompt) > room:
                groups.append([])
                room, new = max_tokens, True
            groups[-1].append(index)
            room -= length + new * len(prompt)
            new = False
    return groups


def pack(sequences: Sequence[TokenSequence], members: list[int], *, varlen: bool = False) -> MicroBatch:
    """Lay the chosen sequences end to end; those with the same prompt must be neighbours for it to be shared.

    Args:
        sequences: The sequences to choose from.
        members: Indices of those that are laid out.
        varlen: Whether attention gets the index maps of `VarlenAttention`, not those of `BucketAttention`.
    """
    chosen = [sequences[member] for member in members]
    row: list[int] = []
    places: list[Tensor] = []  # per sequence, the indices of its tokens (without the last one) in the row
    runs: list[Tensor] = []  # per prompt and per completion, the indices of the tokens that its queries see
    prompt: Sequence[int] | None = None
    for sequence in chosen:
        if sequence.prompt != prompt:
            prompt, prompt_places = sequence.prompt, torch.arange(len(row), len(row) + len(sequence.prompt))
            row.extend(prompt)
            runs.append(prompt_places)
        start = len(row)
        row.extend(sequence.completion[:-1])
        places.append(torch.cat([prompt_places, torch.arange(start, len(row))]))
        if len(row) > start:  # a completion of one token is predicted by the prompt alone
            runs.append(places[-1])
    positions = torch.zeros(1, len(row), dtype=torch.int64)
    predictors = []
    for sequence, tokens in zip(chosen, places, strict=True):
        positions[0, tokens] = torch.arange(len(tokens))
        predictors.append(tokens[len(sequence.prompt) - 1 :])
    targets, sequence_ids, target_places = completion_tokens(sequences, members)
    return MicroBatch(
        input_ids=torch.tensor([row]),
        attention_mask=None,
        predictors=torch.cat(predictors),
        targets=targets,
        sequence_ids=sequence_ids,
        places=target_places,
        members=members,
        num_tokens=len(row),
        position_ids=positions,
        attention=_varlen_attention(runs) if varlen else _bucket_attention(places),
    )


def _varlen_attention(runs: list[Tensor]) -> VarlenAttention:
    """Index maps for runs of tokens, given as the places of their keys in the row; together their queries are the row.

    A run's queries are the keys that no run before it had: they are its last ones.
    """
    ends = [int(run[-1]) + 1 for run in runs]
    query_starts = np.array([0, *ends])
    key_starts = np.cumsum([0, *map(len, runs)])
    keys = torch.cat(runs).numpy()
    order = np.argsort(keys, kind="stable")  # the copies of a token together, the first of them in its own run
    tokens, first, counts = np.unique(keys[order], return_index=True, return_counts=True)
    several = counts > 1
    return VarlenAttention(
        query_starts=torch.from_numpy(query_starts.astype(np.int32)),
        key_starts=torch.from_numpy(key_starts.astype(np.int32)),
        longest_query=int(np.diff(query_starts).max()),
        longest_key=max(map(len, runs)),
        keys=torch.from_numpy(keys),
        owners=torch.from_numpy(order[first]),
        copies=torch.from_numpy(order[np.repeat(several, counts)]),
        shared_tokens=torch.from_numpy(tokens[several]),
        num_copies=torch.from_numpy(counts[several]),
    )


def _bucket_attention(places: list[Tensor]) -> BucketAttention:
    """Index maps for sequences whose tokens are at these places of the row; every token is in some sequence."""
    buckets = [
        pad_sequence([places[member] for member in members], batch_first=True, padding_value=-1)
        for members in _buckets([len(tokens) for tokens in places])
    ]
    flat = torch.cat([bucket.flatten() for bucket in buckets]).numpy()
    copies = np.flatnonzero(flat >= 0)
    tokens = flat[copies]
    _, first = np.unique(tokens, return_index=True)
    further = np.setdiff1d(np.arange(len(tokens)), first, assume_unique=True)
    return BucketAttention(
        tuple(bucket.clamp(min=0) for bucket in buckets),
        owners=torch.from_numpy(copies[first]),
        shared=torch.from_numpy(copies[further]),
        shared_tokens=torch.from_numpy(tokens[further]),
    )


def _buckets(lengths: Sequence[int]) -> list[list[int]]:
    """Indices of sequences of similar length, the longest first in each bucket."""
    buckets: list[list[int]] = []
    for index in sorted(range(len(lengths)), key=lambda i: -lengths[i]):
        if buckets and lengths[index] >= _SHORTEST * lengths[buckets[-1][0]]:
            buckets[-1].append(index)
        else:
            buckets.append([index])
    return buckets
