"""Cutting of a step's sequences into padded or packed micro-batches."""

from collections.abc import Callable, Sequence
from dataclasses import replace

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


def in_step(batches: list[MicroBatch], *, packed: bool, gather: Callable[[int], list[int]]) -> list[MicroBatch]:
    """Pad with empty micro-batches (zero gradient) to the largest count of any rank.

    With sharded weights, every rank takes part in every forward pass.

    Args:
        batches: Those of this rank; there may be none.
        packed: Whether the model takes packed rows.
        gather: Returns a number of every rank, on every rank.

    Returns:
        The micro-batches, then the empty ones: one token, no members, no targets, a gradient of exactly 0 for every
        weight.
    """
    missing = max(gather(len(batches))) - len(batches)
    (one,) = cut([TokenSequence([0], [0])], [0], max_tokens=1, packed=packed)
    nothing = one.targets[:0]
    return batches + [replace(one, predictors=nothing, targets=nothing, sequence_ids=nothing, members=[])] * missing
