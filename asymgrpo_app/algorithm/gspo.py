"""GSPO: clipping by the ratio of whole completions."""

from asymgrpo_app.algorithm.clipped import policy_metrics
from asymgrpo_app.algorithm.objective import Objective, ObjectiveOutput, TokenBatch
from asymgrpo_app.algorithm.ratios import check_clip_range, clipped_losses, clipped_sides, sequence_ratios


class GSPO(Objective):
    """Group sequence policy optimization (arXiv 2507.18071): PPO's surrogate with one ratio per completion.

    The ratio is the geometric mean of the token ratios, so it moves far less than they do and the bounds are much
    smaller. Its paper aggregates per sequence. Clip fractions count the tokens of clipped completions.

    Args:
        clip_low: How far the ratio may fall below 1 for a negative advantage, in (0, 1].
        clip_high: How far the ratio may rise above 1 for a positive advantage, > 0.
    """

    zero_without_advantage = True

    def __init__(self, *, clip_low: float = 3e-4, clip_high: float = 4e-4) -> None:
        check_clip_range(clip_low, clip_high)
        self.clip_low = clip_low
        self.clip_high = clip_high

    def token_losses(self, batch: TokenBatch) -> ObjectiveOutput:
        ratios = sequence_ratios(batch.logprobs, batch.old_logprobs, batch.sequence_ids, batch.num_sequences)
        losses = clipped_losses(ratios, batch.advantages, self.clip_low, self.clip_high)
        low, high = clipped_sides(ratios, batch.advantages, self.clip_low, self.clip_high)
        return ObjectiveOutput(losses, policy_metrics(batch, low, high))
