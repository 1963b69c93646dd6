"""What a step's rollouts say about themselves, as scalars."""

from collections.abc import Sequence

import torch
from torch import Tensor

from asymgrpo_app.algorithm.diagnostics import (
    advantage_metrics,
    by_accuracy,
    group_shares,
    logprob_advantage_covariance,
)
from asymgrpo_app.algorithm.groups import GroupRewards
from asymgrpo_app.algorithm.metrics import mean_of
from asymgrpo_app.algorithm.objective import TokenBatch
from asymgrpo_app.algorithm.ratios import token_ratios
from asymgrpo_app.algorithm.sequences import sequence_sums
from asymgrpo_app.rewards.base import Status
from asymgrpo_app.rollout.types import RolloutBatch
from asymgrpo_app.update.metrics import StepMetrics
from asymgrpo_app.update.samples import Sample, sampler_tokens, start_tokens

ACCURACY_BINS = ("p00-25", "p25-50", "p50-75", "p75-100")
"""Names of the bins of group accuracy, in per cent; groups that are all right or all wrong are in none."""


def record_groups(metrics: StepMetrics, rollouts: RolloutBatch, groups: GroupRewards, advantages: Tensor) -> None:
    """`reward/*` and `advantages/*`: accuracy, shares of solved groups, verdicts by status, sizes of advantages."""
    judged = [completion for group in rollouts.groups for completion in group]
    metrics.mean("reward/mean", *mean_of(groups.rewards, groups.valid))
    metrics.means({f"reward/{name}": share for name, share in group_shares(groups).items()})
    for status in (Status.TIMEOUT, Status.ERROR, Status.NO_ANSWER):
        metrics.mean(f"reward/{status}", sum(c.verdict.status is status for c in judged), len(judged))
    metrics.means({f"advantages/{name}": mean for name, mean in advantage_metrics(groups, advantages).items()})
    metrics.largest("advantages/abs_max", advantages.abs())


def record_lengths(metrics: StepMetrics, samples: Sequence[Sample], truncated: Sequence[bool]) -> None:
    """`response_length/*`, in tokens, over all completions; `clip_ratio` is the share that the limit cut."""
    lengths = torch.tensor([sample.length for sample in samples], dtype=torch.float64)
    correct = torch.tensor([sample.correct for sample in samples], dtype=torch.bool)
    metrics.mean("response_length/mean", *mean_of(lengths))
    metrics.mean("response_length/pos", *mean_of(lengths, correct))
    metrics.mean("response_length/neg", *mean_of(lengths, ~correct))
    metrics.mean("response_length/clip_ratio", sum(truncated), len(truncated))
    metrics.largest("response_length/max", lengths)
    metrics.smallest("response_length/min", lengths)


def record_sampler_gap(metrics: StepMetrics, samples: Sequence[Sample]) -> None:
    """`rollout_corr/*`: how far the sampler's log-probabilities are from the trainer's at the start of the step.

    `kl` is the mean of sampler minus trainer, an estimate of KL(sampler || trainer) in nats; the absolute differences
    are 0 but for rounding when both hold the same weights.
    """
    known = [sample for sample in samples if sample.start_logprobs is not None and sample.counts]
    gaps = sampler_tokens(known) - start_tokens(known)
    metrics.mean("rollout_corr/kl", *mean_of(gaps))
    metrics.mean("rollout_corr/logprob_abs_diff_mean", *mean_of(gaps.abs()))
    metrics.largest("rollout_corr/logprob_abs_diff_max", gaps.abs())


def record_entropy(metrics: StepMetrics, samples: Sequence[Sample], entropy: Tensor, owners: Tensor) -> None:
    """`actor/entropy*`: mean token entropy in nats, over all tokens and over those of right and of wrong completions.

    Args:
        metrics: Where to.
        samples: S completions.
        entropy: [T] of their tokens.
        owners: [T] int64, which of the completions each token belongs to.
    """
    of_correct = torch.tensor([sample.correct for sample in samples], device=owners.device)[owners]
    metrics.mean("actor/entropy", *mean_of(entropy))
    metrics.mean("actor/entropy_pos", *mean_of(entropy, of_correct))
    metrics.mean("actor/entropy_neg", *mean_of(entropy, ~of_correct))


def record_ratios(metrics: StepMetrics, tokens: TokenBatch) -> None:
    """`actor/ratio_{pos,neg,max}`: the policy's ratio to the old policy, over tokens by the sign of their advantage."""
    ratios = token_ratios(tokens.logprobs, tokens.old_logprobs).detach()
    metrics.mean("actor/ratio_pos", *mean_of(ratios, tokens.advantages > 0))
    metrics.mean("actor/ratio_neg", *mean_of(ratios, tokens.advantages < 0))
    metrics.largest("actor/ratio_max", ratios)


def record_by_accuracy(
    metrics: StepMetrics, groups: GroupRewards, advantages: Tensor, samples: Sequence[Sample]
) -> None:
    """`method/{entropy,cov}_<bin>`: token entropy and Cov(log pi, A) of groups, by group accuracy.

    Both from the policy at the start of the step: entropy as a mean over the tokens of a group, the covariance with the
    length-normalized log-probability of its completions.

    Args:
        metrics: Where to.
        groups: P groups of G verdicts.
        advantages: [P, G].
        samples: P * G completions, group after group.
    """
    shape = groups.rewards.shape
    lengths = torch.tensor([float(sample.length) for sample in samples]).view(shape)
    logprobs = _totals([sample.start_logprobs for sample in samples]).view(shape) / lengths
    entropies = _totals([sample.start_entropy for sample in samples]).view(shape)
    tokens = torch.where(groups.valid, lengths, 0).sum(dim=-1).clamp(min=1)
    values = {
        "entropy": torch.where(groups.valid, entropies, 0).sum(dim=-1) / tokens,
        "cov": logprob_advantage_covariance(groups, advantages, logprobs),
    }
    for name, of_groups in values.items():
        for bin_name, mean in zip(ACCURACY_BINS, by_accuracy(of_groups, groups, len(ACCURACY_BINS)), strict=True):
            metrics.mean(f"method/{name}_{bin_name}", *mean)


def _totals(parts: Sequence[Tensor | None]) -> Tensor:
    """The sum of each part, [S] float64; 0 for one that is not known."""
    known = [torch.zeros(0) if part is None else part for part in parts]
    owners = torch.arange(len(known)).repeat_interleave(torch.tensor([len(part) for part in known]))
    return sequence_sums(torch.cat(known).double(), owners, len(known))
