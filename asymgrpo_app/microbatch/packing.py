"""Sequences laid end to end: no padding in the layers' products, and a prompt that completions share computed once.

The tokens of a forward pass stand in one row, each group as its prompt, then its completions. Everything but attention
works on single tokens and does not notice. Attention sees the sequences whole (`PackedAttention`).
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

    Sequences with the same prompt stay together where they fit; where they do not, their prompt is in several groups.

    Args:
        sequences: Prompts with completions.
        max_tokens: Bound on a group's packed tokens; a single longer sequence makes a group of its own.

    Returns:
        Groups of places in `sequences`: families of the longest sequences first, the members of a family together.
    """
    families: dict[tuple[int, ...], list[int]] = {}
    for place, sequence in enumerate(sequences):
        families.setdefault(tuple(sequence.prompt), []).append(place)
    for members in families.values():
        members.sort(key=lambda place: -len(sequences[place]))
    groups: list[list[int]] = []
    room = 0
    for prompt, members in sorted(families.items(), key=lambda family: -len(sequences[family[1][0]])):
        new = True  # whether the prompt is still to be laid out in the current group
        for place in members:
            own = packed_length(sequences[place])
            if not groups or own + new * len(prompt) > room:
                groups.append([])
                room, new = max_tokens, True
            groups[-1].append(place)
            room -= own + new * len(prompt)
            new = False
    return groups


def pack(sequences: Sequence[TokenSequence], members: list[int]) -> MicroBatch:
    """Lay the chosen sequences end to end; the members of a family must be neighbours for their prompt to be shared."""
    row = _Row()
    for place in members:
        row.add(sequences[place])
    lengths = [len(tokens) for tokens in row.places]
    attention = _attention(row.places, lengths, len(row.tokens))
    targets = [token for place in members for token in sequences[place].completion]
    counts = torch.tensor([len(sequences[place].completion) for place in members])
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
        tokens: What stands in the row.
        positions: Their positions within their sequences, piece by piece.
        places: Per sequence, the places of its tokens (without the last one) in the row.
        predictors: Per sequence, the places of the tokens before each token of its completion.
    """

    def __init__(self) -> None:
        self.tokens: list[int] = []
        self.positions: list[np.ndarray] = []
        self.places: list[np.ndarray] = []
        self.predictors: list[np.ndarray] = []
        self._prompt: Sequence[int] | None = None
        self._prompt_places = np.zeros(0, dtype=np.int64)

    def add(self, sequence: TokenSequence) -> None:
        """Lay out the completion, after its prompt unless that is the last one laid out."""
        if sequence.prompt != self._prompt:
            self._prompt = sequence.prompt
            self._prompt_places = self._lay(sequence.prompt, first_position=0)
        own = self._lay(sequence.completion[:-1], first_position=len(sequence.prompt))
        self.places.append(np.concatenate([self._prompt_places, own]))
        self.predictors.append(np.concatenate([self._prompt_places[-1:], own]))

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
    """Places of sequences of like length, the longest first in each bucket."""
    buckets: list[list[int]] = []
    for place in sorted(range(len(lengths)), key=lambda i: -lengths[i]):
        if buckets and lengths[place] >= _SHORTEST * lengths[buckets[-1][0]]:
            buckets[-1].append(place)
        else:
            buckets.append([place])
    return buckets
