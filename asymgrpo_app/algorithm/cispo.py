"""CISPO: the ratio is clipped as a weight, and no token loses its gradient."""

from asymgrpo_app.algorithm.clipped import policy_metrics
from asymgrpo_app.algorithm.objective import Objective, ObjectiveOutput, TokenBatch
from asymgrpo_app.algorithm.ratios import token_ratios
from asymgrpo_app.errors import UserError


class CISPO(Objective):
    """Clipped importance-sampling policy optimization (arXiv 2506.13585): -stopgrad(clip(rho)) A log pi per token.

    Every token keeps a gradient; the clip fractions count the tokens whose weight was clipped, by the sign of their
    advantage.

    Args:
        ratio_max: Upper bound of the weight, >= 1; TRL has 5, verl 1 + clip_high.
        ratio_min: Lower bound of the weight, in [0, 1]; TRL has none (0), verl 1 - clip_low.
    """

    zero_without_advantage = True

    def __init__(self, *, ratio_max: float = 5.0, ratio_min: float = 0.0) -> None:
        if not ratio_max >= 1:
            raise UserError(f"ratio_max is {ratio_max}: give an upper bound of the ratio >= 1, such as 5")
        if not 0 <= ratio_min <= 1:
            raise UserError(f"ratio_min is {ratio_min}: give a lower bound of the ratio in [0, 1], where 0 means none")
        self.ratio_max = ratio_max
        self.ratio_min = ratio_min

    def token_losses(self, batch: TokenBatch) -> ObjectiveOutput:
        ratios = token_ratios(batch.logprobs, batch.old_logprobs).detach()
        losses = -ratios.clamp(self.ratio_min, self.ratio_max) * batch.advantages * batch.logprobs
        clipped = (ratios < self.ratio_min) | (ratios > self.ratio_max)
        low, high = clipped & (batch.advantages < 0), clipped & (batch.advantages > 0)
        return ObjectiveOutput(losses, policy_metrics(batch, low, high))
