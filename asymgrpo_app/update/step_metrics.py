"""Scalar metrics of a step's rollouts and updates."""

import torch
from torch import Tensor

from asymgrpo_app.algorithm.diagnostics import (
    advantage_metrics,
    by_accuracy,
    group_shares,
    logprob_advantage_covariance,
)
from asymgrpo_app.algorithm.groups import GroupRewards
from asymgrpo_app.algorithm.metrics import mean_of, ratio
from asymgrpo_app.algorithm.objective import TokenBatch
from asymgrpo_app.algorithm.ratios import token_ratios
from asymgrpo_app.algorithm.sequences import sequence_sums
from asymgrpo_app.metrics import StepMetrics
from asymgrpo_app.rewards.base import Status
from asymgrpo_app.rollout.types import RolloutBatch
from asymgrpo_app.update.experience import Experience

ACCURACY_BINS = ("p00-25", "p25-50", "p50-75", "p75-100")
"""Names of the bins of group accuracy, in per cent; groups that are all right or all wrong are in none."""


def record_groups(metrics: StepMetrics, rollouts: RolloutBatch, groups: GroupRewards, advantages: Tensor) -> None:
    """`reward/*` and `advantages/*`: accuracy, shares of solved groups, verdicts by status, sizes of advantages."""
    judged = [completion for group in rollouts.groups for completion in group]
    metrics.add("reward/mean", mean_of(groups.rewards, groups.valid))
    metrics.add_all({f"reward/{name}": share for name, share in group_shares(groups).items()})
    for status in (Status.TIMEOUT, Status.ERROR, Status.NO_ANSWER):
        metrics.add(f"reward/{status}", ratio(sum(c.verdict.status is status for c in judged), len(judged)))
    metrics.add_all({f"advantages/{name}": mean for name, mean in advantage_metrics(groups, advantages).items()})
    metrics.largest("advantages/abs_max", advantages.abs())


def record_lengths(metrics: StepMetrics, rollouts: RolloutBatch, groups: GroupRewards) -> None:
    """`response_length/*`, in tokens, over all completions; `clip_ratio` is the share that the limit truncated."""
    completions = [judged.completion for group in rollouts.groups for judged in group]
    lengths = torch.tensor([len(completion.token_ids) for completion in completions], dtype=torch.float64)
    correct = (groups.rewards == 1).flatten()
    metrics.add("response_length/mean", mean_of(lengths))
    metrics.add("response_length/pos", mean_of(lengths, correct))
    metrics.add("response_length/neg", mean_of(lengths, ~correct))
    truncated = sum(completion.truncated for completion in completions)
    metrics.add("response_length/clip_ratio", ratio(truncated, len(completions)))
    metrics.largest("response_length/max", lengths)
    metrics.smallest("response_length/min", lengths)


def record_sampler_gap(metrics: StepMetrics, experience: Experience) -> None:
    """`rollout_corr/*`: how far the sampler's log-probabilities are from the trainer's at the start of the step.

    `kl` is the mean of sampler minus trainer, an estimate of KL(sampler || trainer) in nats; the absolute differences
    are 0 but for rounding when both hold the same weights.
    """
    known = experience.tokens(experience.where(experience.scored & experience.valid))
    known = known.to(experience.old_logprobs.device)
    gaps = experience.rollout_logprobs[known] - experience.old_logprobs[known]
    metrics.add("rollout_corr/kl", mean_of(gaps))
    metrics.add("rollout_corr/logprob_abs_diff_mean", mean_of(gaps.abs()))
    metrics.largest("rollout_corr/logprob_abs_diff_max", gaps.abs())


def record_entropy(metrics: StepMetrics, entropy: Tensor, correct: Tensor) -> None:
    """`actor/entropy*`: mean token entropy in nats, over all tokens and over those of right and of wrong completions.

    Args:
        metrics: Receives them.
        entropy: [T].
        correct: [T] bool, whether a token's completion was judged right.
    """
    metrics.add("actor/entropy", mean_of(entropy))
    metrics.add("actor/entropy_pos", mean_of(entropy, correct))
    metrics.add("actor/entropy_neg", mean_of(entropy, ~correct))


def record_ratios(metrics: StepMetrics, tokens: TokenBatch) -> None:
    """`actor/ratio_{pos,neg,max}`: the policy's ratio to the old policy, over tokens by the sign of their advantage."""
    ratios = token_ratios(tokens.logprobs, tokens.old_logprobs).detach()
    metrics.add("actor/ratio_pos", mean_of(ratios, tokens.advantages > 0))
    metrics.add("actor/ratio_neg", mean_of(ratios, tokens.advantages < 0))
    metrics.largest("actor/ratio_max", ratios)


def record_correction(metrics: StepMetrics, ratios: Tensor, applied: Tensor) -> None:
    """`rollout_corr/{ratio_raw_mean,ratio_raw_max,ratio_mean,ratio_max,masked}` of the sampler correction.

    Args:
        metrics: Receives them.
        ratios: Ratios of tokens or completions, trainer to sampler.
        applied: The weights that became of them; 0 where masked.
    """
    metrics.add("rollout_corr/ratio_raw_mean", mean_of(ratios))
    metrics.add("rollout_corr/ratio_mean", mean_of(applied))
    metrics.add("rollout_corr/masked", mean_of(applied == 0))
    metrics.largest("rollout_corr/ratio_raw_max", ratios)
    metrics.largest("rollout_corr/ratio_max", applied)


def record_by_accuracy(metrics: StepMetrics, groups: GroupRewards, advantages: Tensor, experience: Experience) -> None:
    """`method/{entropy,cov}_<bin>`: token entropy and Cov(log pi, A) of groups, by group accuracy.

    Both from the policy at the start of the step: entropy as a mean over the tokens of a group, the covariance with the
    length-normalized log-probability of its completions.

    Args:
        metrics: Receives them.
        groups: P groups of G verdicts.
        advantages: [P, G].
        experience: The experience of these P * G completions.
    """
    shape = groups.rewards.shape
    lengths = experience.lengths.float().view(shape)
    owners = experience.sequence_ids(range(len(experience.sequences)))

    def totals(column: Tensor) -> Tensor:
        return sequence_sums(column.cpu().double(), owners, len(experience.sequences)).view(shape)

    tokens = torch.where(groups.valid, lengths, 0).sum(dim=-1).clamp(min=1)
    values = {
        "entropy": torch.where(groups.valid, totals(experience.old_entropy), 0).sum(dim=-1) / tokens,
        "cov": logprob_advantage_covariance(groups, advantages, totals(experience.old_logprobs) / lengths),
    }
    for name, of_groups in values.items():
        for bin_name, mean in zip(ACCURACY_BINS, by_accuracy(of_groups, groups, len(ACCURACY_BINS)), strict=True):
            metrics.add(f"method/{name}_{bin_name}", mean)
