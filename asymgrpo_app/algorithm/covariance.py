"""Clip-Cov and KL-Cov (arXiv 2505.22617): hold back the few tokens that drive the fall of entropy.

Tokens are selected by cov_t = (A_t - mean A)(lp_t - mean lp). Means and selection are taken over all tokens of the
update, on all ranks, from the old log-probabilities, so that cutting the update does not matter. (verl takes them per
micro-batch, from the current ones, and for Clip-Cov not among tokens that PPO's clipping already silences.)
"""

import math

import torch
from torch import Tensor

from asymgrpo_app.algorithm.clipped import ClippedObjective
from asymgrpo_app.algorithm.metrics import mean_of
from asymgrpo_app.algorithm.objective import Objective, ObjectiveOutput, TokenBatch, UpdateTokens
from asymgrpo_app.algorithm.ratios import bounded
from asymgrpo_app.errors import UserError


def token_covariances(update: UpdateTokens) -> tuple[Tensor, int]:
    """cov_t of this rank's tokens, [T] float64, and the number of tokens of the update on all ranks."""
    advantages, logprobs = update.advantages.double(), update.old_logprobs.double()
    sums = torch.stack([advantages.sum(), logprobs.sum(), advantages.new_tensor(advantages.numel())])
    total_advantage, total_logprob, count = update.all_gather(sums).reshape(-1, 3).sum(dim=0).unbind()
    if count == 0:
        return advantages, 0
    return (advantages - total_advantage / count) * (logprobs - total_logprob / count), int(count)


def first_tokens(order: Tensor, number: int, update: UpdateTokens) -> Tensor:
    """Mask of this rank's tokens that are among the `number` smallest by `order` over all ranks.

    Args:
        order: [T] float64 of this rank.
        number: How many to choose over all ranks, >= 1; fewer tokens than that are all chosen.
        update: Its `token_keys` break ties, so that the choice is the same however the ranks share the tokens.

    Returns:
        [T] bool.
    """
    all_orders, all_keys = update.all_gather(order), update.all_gather(update.token_keys)
    if all_orders.numel() <= number:
        return torch.ones_like(order, dtype=torch.bool)
    last = all_orders.kthvalue(number).values
    tied_keys = all_keys[all_orders == last]
    places_left = number - int((all_orders < last).sum())
    last_key = tied_keys.kthvalue(places_left).values
    return (order < last) | ((order == last) & (update.token_keys <= last_key))


def share_of(num_tokens: int, share: float) -> int:
    """Number of tokens in a share: rounded down, but at least one, as in verl."""
    return max(1, math.floor(share * num_tokens))


class ClipCov(ClippedObjective):
    """Clip-Cov (arXiv 2505.22617): PPO's clipped surrogate, without a few random tokens of high covariance.

    Of the tokens with cov_low < cov_t < cov_high, a number of `share` times all tokens of the update gets no loss.

    Args:
        clip_low: As in `ClippedObjective`, in (0, 1].
        clip_high: As in `ClippedObjective`, > 0.
        share: Tokens to silence as a share of all tokens of the update, in (0, 1].
        cov_low: Lower bound of the covariance of candidates.
        cov_high: Upper bound of the covariance of candidates, above `cov_low`.
    """

    needs_old_logprobs = True
    zero_without_advantage = True

    def __init__(
        self,
        *,
        clip_low: float = 0.2,
        clip_high: float = 0.2,
        share: float = 2e-4,
        cov_low: float = 1.0,
        cov_high: float = 5.0,
    ) -> None:
        super().__init__(clip_low=clip_low, clip_high=clip_high)
        _check_share(share)
        if not cov_low < cov_high:
            raise UserError(f"cov_low is {cov_low} and cov_high is {cov_high}: give an upper bound above the lower one")
        self.share = share
        self.cov_low = cov_low
        self.cov_high = cov_high

    def prepare(self, update: UpdateTokens) -> dict[str, Tensor]:
        """`silenced`: [T] bool, the candidates with the smallest random keys."""
        covariances, num_tokens = token_covariances(update)
        candidates = (covariances > self.cov_low) & (covariances < self.cov_high)
        order = torch.where(candidates, 0.0, math.inf).to(covariances)
        return {"silenced": first_tokens(order, share_of(num_tokens, self.share), update) & candidates}

    def token_losses(self, batch: TokenBatch) -> ObjectiveOutput:
        """As `ClippedObjective`, and `actor/pg_clipfrac_cov`: the share of all tokens that were silenced."""
        output = super().token_losses(batch)
        silenced = batch.selection["silenced"]
        output.losses = torch.where(silenced, 0, output.losses)
        output.metrics["actor/pg_clipfrac_cov"] = mean_of(silenced)
        return output


class KLCov(Objective):
    """KL-Cov (arXiv 2505.22617): the unclipped surrogate rho A, with a KL penalty on the tokens of highest covariance.

    The penalty kl_coef * |log rho| has no gradient where rho is exactly 1, so it acts from the second update of a step
    on (`updates_per_step` of at least 2, or old log-probabilities taken from the sampler).

    Args:
        share: Tokens to penalize as a share of all tokens of the update, in (0, 1].
        kl_coef: Weight of the penalty, >= 0.
    """

    needs_old_logprobs = True

    def __init__(self, *, share: float = 2e-3, kl_coef: float = 1.0) -> None:
        _check_share(share)
        if not (math.isfinite(kl_coef) and kl_coef >= 0):
            raise UserError(f"kl_coef is {kl_coef}: give the weight of the penalty, >= 0")
        self.share = share
        self.kl_coef = kl_coef

    def prepare(self, update: UpdateTokens) -> dict[str, Tensor]:
        """`penalized`: [T] bool, the tokens of highest covariance."""
        covariances, num_tokens = token_covariances(update)
        return {"penalized": first_tokens(-covariances, share_of(num_tokens, self.share), update)}

    def token_losses(self, batch: TokenBatch) -> ObjectiveOutput:
        """Losses, `actor/ppo_kl`, and `actor/kl_cov_frac`: the share of all tokens that were penalized."""
        log_ratios = bounded(batch.logprobs - batch.old_logprobs)
        penalized = batch.selection["penalized"]
        penalties = torch.where(penalized, self.kl_coef * log_ratios.abs(), 0)
        metrics = {
            "actor/ppo_kl": mean_of(batch.old_logprobs - batch.logprobs),
            "actor/kl_cov_frac": mean_of(penalized),
        }
        return ObjectiveOutput(penalties - log_ratios.exp() * batch.advantages, metrics)


def _check_share(share: float) -> None:
    if not 0 < share <= 1:
        raise UserError(f"share is {share}: give a share of the tokens in (0, 1]")
