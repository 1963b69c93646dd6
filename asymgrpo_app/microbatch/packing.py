"""Packed micro-batches: sequences end to end without padding, and a prompt that completions share computed once.

The tokens of a forward pass are one row: for each prompt its tokens, then its completions. All layers but attention
work token by token. Attention runs on whole sequences (`PackedAttention`).
"""

from collections.abc import Sequence

import numpy as np
import torch

from asymgrpo_app.microbatch.microbatch import MicroBatch, PackedAttention, TokenSequence

# Sequences are padded inside attention alone; one that is shorter than this share of the longest starts a new bucket.
_SHORTEST = 0.7


def packed_length(sequence: TokenSequence) -> int:
    """Tokens that a completion adds to a packed row beside its prompt: its last token predicts nothing."""
    return len(sequence.completion) - 1


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
            length = packed_length(sequences[index])
            if not groups or length + new * len(prompt) > room:
                groups.append([])
                room, new = max_tokens, True
            groups[-1].append(index)
            room -= length + new * len(prompt)
            new = False
    return groups


def pack(sequences: Sequence[TokenSequence], members: list[int]) -> MicroBatch:
    """Lay the chosen sequences end to end; those with the same prompt must be neighbours for it to be shared."""
    row = _Row()
    for member in members:
        row.add(sequences[member])
    lengths = [len(tokens) for tokens in row.places]
    attention = _attention(row.places, lengths, len(row.tokens))
    targets = [token for member in members for token in sequences[member].completion]
    counts = torch.tensor([len(sequences[member].completion) for member in members])
    return MicroBatch(
        input_ids=torch.tensor([row.tokens]),
        attention_mask=None,
        predictors=torch.from_numpy(np.concatenate(row.predictors)),
        targets=torch.tensor(targets),
        sequence_ids=torch.arange(len(members)).repeat_interleave(counts),
        members=members,
        num_tokens=len(row.tokens),
        position_ids=torch.from_numpy(np.concatenate(row.positions)).unsqueeze(0),
        attention=attention,
    )


class _Row:
    """A row of packed tokens under construction.

    Attributes:
        tokens: The tokens of the row.
        positions: Their positions within their sequences, piece by piece.
        places: Per sequence, the indices of its tokens (without the last one) in the row.
        predictors: Per sequence, the indices of the tokens before each token of its completion.
    """

    def __init__(self) -> None:
        self.tokens: list[int] = []
        self.positions: list[np.ndarray] = []
        self.places: list[np.ndarray] = []
        self.predictors: list[np.ndarray] = []
        self._prompt: Sequence[int] | None = None
        self._prompt_places = np.zeros(0, dtype=np.int64)

    def add(self, sequence: TokenSequence) -> None:
        """Append a completion, after its prompt unless that is the last prompt in the row."""
        if sequence.prompt != self._prompt:
            self._prompt = sequence.prompt
            self._prompt_places = self._lay(sequence.prompt, first_position=0)
        completion = self._lay(sequence.completion[:-1], first_position=len(sequence.prompt))
        self.places.append(np.concatenate([self._prompt_places, completion]))
        self.predictors.append(np.concatenate([self._prompt_places[-1:], completion]))

    def _lay(self, tokens: Sequence[int], *, first_position: int) -> np.ndarray:
        places = np.arange(len(self.tokens), len(self.tokens) + len(tokens))
        self.tokens.extend(tokens)
        self.positions.append(np.arange(first_position, first_position + len(tokens)))
        return places


def _attention(places: list[np.ndarray], lengths: list[int], num_tokens: int) -> PackedAttention:
    buckets, tokens_of_copies, copies, start = [], [], [], 0
    for members in _buckets(lengths):
        width = lengths[members[0]]
        bucket = np.zeros((len(members), width), dtype=np.int64)
        for row, member in enumerate(members):
            bucket[row, : lengths[member]] = places[member]
            tokens_of_copies.append(places[member])
            copies.append(start + row * width + np.arange(lengths[member]))
        buckets.append(torch.from_numpy(bucket))
        start += bucket.size
    tokens, flat = np.concatenate(tokens_of_copies), np.concatenate(copies)
    _, first = np.unique(tokens, return_index=True)  # every token is in some sequence
    assert len(first) == num_tokens
    further = np.setdiff1d(np.arange(len(tokens)), first, assume_unique=True)
    return PackedAttention(
        tuple(buckets),
        torch.from_numpy(flat[first]),
        torch.from_numpy(flat[further]),
        torch.from_numpy(tokens[further]),
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
