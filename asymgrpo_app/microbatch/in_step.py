"""Equal numbers of micro-batches on all ranks: with sharded weights, every rank takes part in every forward pass."""

from collections.abc import Callable, Sequence
from dataclasses import replace

from asymgrpo_app.microbatch.microbatch import MicroBatch, TokenSequence, build
from asymgrpo_app.microbatch.packing import pack


def in_step(
    micro_batches: Sequence[MicroBatch], *, packed: bool, gather: Callable[[int], list[int]]
) -> list[MicroBatch]:
    """Pad with empty micro-batches (zero gradient) to the largest count of any rank.

    Args:
        micro_batches: Those of this rank; there may be none.
        packed: Whether the model takes packed rows.
        gather: Returns a number of every rank, on every rank.

    Returns:
        The micro-batches, then the empty ones: one token, no members, no targets, a gradient of exactly 0 for every
        weight.
    """
    missing = max(gather(len(micro_batches))) - len(micro_batches)
    return [*micro_batches, *(_empty(packed) for _ in range(missing))]


def _empty(packed: bool) -> MicroBatch:
    batch = (pack if packed else build)([TokenSequence([0], [0])], [0])
    nothing = batch.targets[:0]
    return replace(batch, predictors=nothing, targets=nothing, sequence_ids=nothing, members=[])
