"""Forward passes in step: where weights are sharded, each of them is an exchange that every process takes part in."""

from collections.abc import Callable, Sequence
from dataclasses import replace

from asymgrpo_app.microbatch.microbatch import MicroBatch, TokenSequence, build
from asymgrpo_app.microbatch.packing import pack


def in_step(
    micro_batches: Sequence[MicroBatch], *, packed: bool, gather: Callable[[int], list[int]]
) -> list[MicroBatch]:
    """As many micro-batches on every process as on the one that has the most.

    Args:
        micro_batches: This process's own; there may be none.
        packed: Whether the model takes packed rows.
        gather: A number of every process, on every process.

    Returns:
        They, and then as many as are missing of one token that asks for no log-probability: no members, no targets, a
        gradient of exactly 0 by every weight.
    """
    missing = max(gather(len(micro_batches))) - len(micro_batches)
    return [*micro_batches, *(_empty(packed) for _ in range(missing))]


def _empty(packed: bool) -> MicroBatch:
    batch = (pack if packed else build)([TokenSequence([0], [0])], [0])
    nothing = batch.targets[:0]
    return replace(batch, predictors=nothing, targets=nothing, sequence_ids=nothing, members=[])
