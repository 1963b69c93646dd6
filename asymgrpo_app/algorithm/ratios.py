"""Probability ratios between the current and the old policy, and the clipped surrogate."""

import torch
from torch import Tensor

from asymgrpo_app.algorithm.sequences import sequence_means

_LOG_RATIO_BOUND = 20.0


def bounded(log_ratio: Tensor) -> Tensor:
    """A log-ratio clamped to +-20 nats, as verl does: e^20 is finite, and so is its product with any advantage.

    Beyond the bound the gradient is 0. An infinite ratio would turn the loss of a token with advantage 0 into nan.
    """
    return log_ratio.clamp(-_LOG_RATIO_BOUND, _LOG_RATIO_BOUND)


def token_ratios(logprobs: Tensor, old_logprobs: Tensor) -> Tensor:
    """rho = pi_theta / pi_old of each token, [T], with the gradient of `logprobs`."""
    return bounded(logprobs - old_logprobs).exp()


def sequence_ratios(logprobs: Tensor, old_logprobs: Tensor, sequence_ids: Tensor, num_sequences: int) -> Tensor:
    """GSPO's ratio s of each token's completion, [T]: the geometric mean of its token ratios.

    This is GSPO-token (arXiv 2507.18071, Eq. 14): in value s, in gradient s * d logprobs of the token itself. Summed
    over a completion with one advantage that is GSPO's own gradient.
    """
    mean_log_ratio = sequence_means((logprobs - old_logprobs).detach(), sequence_ids, num_sequences)
    return bounded(mean_log_ratio[sequence_ids] + logprobs - logprobs.detach()).exp()


def clipped_losses(ratios: Tensor, advantages: Tensor, clip_low: float, clip_high: float) -> Tensor:
    """The PPO surrogate as a loss, [T]: -min(rho A, clip(rho, 1 - clip_low, 1 + clip_high) A) (arXiv 1707.06347)."""
    return -torch.minimum(ratios * advantages, ratios.clamp(1 - clip_low, 1 + clip_high) * advantages)


def clipped_sides(ratios: Tensor, advantages: Tensor, clip_low: float, clip_high: float) -> tuple[Tensor, Tensor]:
    """Masks of the tokens whose gradient is clipped away: (low side, high side), each [T] bool.

    Low: rho < 1 - clip_low and A < 0. High: rho > 1 + clip_high and A > 0.
    """
    low = (ratios < 1 - clip_low) & (advantages < 0)
    high = (ratios > 1 + clip_high) & (advantages > 0)
    return low, high
