"""Cutting some of a step's sequences into forward passes."""

from collections.abc import Sequence

from asymgrpo_app.microbatch.microbatch import MicroBatch, TokenSequence, build, cut_by_tokens
from asymgrpo_app.microbatch.packing import cut_packed, pack


def cut(
    sequences: Sequence[TokenSequence], members: Sequence[int], max_tokens: int, *, packed: bool
) -> list[MicroBatch]:
    """Micro-batches of at most `max_tokens` tokens each, the longest sequences first.

    Args:
        sequences: All of them.
        members: Places of those that are cut.
        max_tokens: Bound on a micro-batch, padding included; a single longer sequence has one of its own.
        packed: Whether the model takes packed rows, where completions of one prompt share its tokens.
    """
    chosen = [sequences[place] for place in members]
    groups = cut_packed(chosen, max_tokens) if packed else cut_by_tokens(list(map(len, chosen)), max_tokens)
    form = pack if packed else build
    return [form(sequences, [members[place] for place in group]) for group in groups]
