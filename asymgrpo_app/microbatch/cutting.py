"""Cutting of a step's sequences into padded or packed micro-batches."""

from collections.abc import Sequence

from asymgrpo_app.microbatch.microbatch import MicroBatch, TokenSequence, build, cut_by_tokens
from asymgrpo_app.microbatch.packing import cut_packed, pack


def cut(
    sequences: Sequence[TokenSequence], members: Sequence[int], max_tokens: int, *, packed: bool
) -> list[MicroBatch]:
    """Micro-batches of at most `max_tokens` tokens each, the longest sequences first.

    Args:
        sequences: The sequences to choose from.
        members: Indices of those that are cut.
        max_tokens: Bound on a micro-batch, padding included; a single longer sequence has one of its own.
        packed: Whether the model takes packed rows, where completions of one prompt share its tokens.
    """
    chosen = [sequences[member] for member in members]
    groups = cut_packed(chosen, max_tokens) if packed else cut_by_tokens(list(map(len, chosen)), max_tokens)
    form = pack if packed else build
    return [form(sequences, [members[index] for index in group]) for group in groups]
