"""GSPO: clipping by the ratio of whole completions."""

from torch import Tensor

from asymgrpo_app.algorithm.clipped import ClippedObjective
from asymgrpo_app.algorithm.objective import TokenBatch
from asymgrpo_app.algorithm.ratios import sequence_ratios


class GSPO(ClippedObjective):
    """Group sequence policy optimization (arXiv 2507.18071): PPO's surrogate with one ratio per completion.

    The ratio is the geometric mean of the token ratios, so it moves far less than they do and the bounds are much
    smaller. Its paper aggregates per sequence. Clip fractions count the tokens of clipped completions.

    Args:
        clip_low: How far the ratio may fall below 1 for a negative advantage, in (0, 1].
        clip_high: How far the ratio may rise above 1 for a positive advantage, > 0.
    """

    def __init__(self, *, clip_low: float = 3e-4, clip_high: float = 4e-4) -> None:
        super().__init__(clip_low=clip_low, clip_high=clip_high)

    def ratios(self, batch: TokenBatch) -> Tensor:
        return sequence_ratios(batch.logprobs, batch.old_logprobs, batch.sequence_ids, batch.num_sequences)
