"""The clipped policy gradient of PPO and GRPO, with separate bounds and dual clip."""

import torch
from torch import Tensor

from asymgrpo_app.algorithm.metrics import Mean, mean_of
from asymgrpo_app.algorithm.objective import Objective, ObjectiveOutput, TokenBatch
from asymgrpo_app.algorithm.ratios import clipped_losses, clipped_sides, token_ratios
from asymgrpo_app.errors import UserError


def policy_metrics(batch: TokenBatch, low: Tensor, high: Tensor) -> dict[str, Mean]:
    """Metrics that all clipping objectives share, over the tokens of a micro-batch.

    Args:
        batch: The micro-batch.
        low: [T] bool, tokens with a negative advantage that the clip range acts on.
        high: [T] bool, tokens with a positive advantage that the clip range acts on.

    Returns:
        `actor/pg_clipfrac`, and its parts `actor/pg_clipfrac_pos` (high) and `actor/pg_clipfrac_neg` (low), as shares
        of all tokens; `actor/ppo_kl`, the mean of old_logprobs - logprobs, in nats.
    """
    return {
        "actor/pg_clipfrac": mean_of(low | high),
        "actor/pg_clipfrac_pos": mean_of(high),
        "actor/pg_clipfrac_neg": mean_of(low),
        "actor/ppo_kl": mean_of(batch.old_logprobs - batch.logprobs),
    }


class ClippedObjective(Objective):
    """PPO's clipped surrogate per token (arXiv 1707.06347), the objective of GRPO, DAPO and AsymGRPO.

    The loss is -min(rho A, clip(rho, 1 - clip_low, 1 + clip_high) A), with rho = pi_theta / pi_old of the token.

    Args:
        clip_low: How far the ratio may fall below 1 for a negative advantage, in (0, 1].
        clip_high: How far the ratio may rise above 1 for a positive advantage, > 0; 0.28 is clip-higher (DAPO, arXiv
            2503.14476).
        dual_clip: Bound c > 1 of dual clip (arXiv 1912.09729): for a negative advantage the loss is at most c |A|;
            None: no bound.
    """

    zero_without_advantage = True

    def __init__(self, *, clip_low: float = 0.2, clip_high: float = 0.2, dual_clip: float | None = None) -> None:
        if not 0 < clip_low <= 1:
            raise UserError(
                f"clip_low is {clip_low}: give a number in (0, 1], where 1 means no lower bound on the ratio"
            )
        if not clip_high > 0:
            raise UserError(f"clip_high is {clip_high}: give a number > 0, such as 0.2, or 0.28 for clip-higher")
        if dual_clip is not None and not dual_clip > 1:
            raise UserError(f"dual_clip is {dual_clip}: give a ratio > 1, such as 3, or null to turn it off")
        self.clip_low = clip_low
        self.clip_high = clip_high
        self.dual_clip = dual_clip

    def ratios(self, batch: TokenBatch) -> Tensor:
        """rho of each token, [T], with gradient."""
        return token_ratios(batch.logprobs, batch.old_logprobs)

    def token_losses(self, batch: TokenBatch) -> ObjectiveOutput:
        ratios, advantages = self.ratios(batch), batch.advantages
        losses = clipped_losses(ratios, advantages, self.clip_low, self.clip_high)
        metrics = policy_metrics(batch, *clipped_sides(ratios, advantages, self.clip_low, self.clip_high))
        if self.dual_clip is not None:
            capped = torch.minimum(losses, -self.dual_clip * advantages)
            losses = torch.where(advantages < 0, capped, losses)
            metrics["actor/pg_clipfrac_dual"] = mean_of((ratios > self.dual_clip) & (advantages < 0))
        return ObjectiveOutput(losses, metrics)
