"""Diagnostics of the method on groups of completions (arXiv 2604.04894).

Everything here is for logging: no gradient flows through it. Results that are means are `Mean`s, to be summed over
ranks before they are divided.
"""

import torch
from torch import Tensor

from asymgrpo_app.algorithm.groups import GroupRewards
from asymgrpo_app.algorithm.metrics import Mean, mean_of


def group_shares(groups: GroupRewards) -> dict[str, Mean]:
    """Shares of the groups with at least one valid completion: `solved_all` (p = 1), `solved_none` (p = 0), `mixed`."""
    p = groups.accuracy[groups.num_valid > 0]
    return {"solved_all": mean_of(p == 1), "solved_none": mean_of(p == 0), "mixed": mean_of((p > 0) & (p < 1))}


def logprob_advantage_covariance(groups: GroupRewards, advantages: Tensor, logprobs: Tensor) -> Tensor:
    """Cov(log pi, A) within each group, over its valid completions, dividing by n: [P] float64.

    For advantages that depend on correctness alone it is p(1-p)(A_pos - A_neg)(mean lp of right ones - mean lp of wrong
    ones). The change of entropy by a step is about -learning rate times it: a proxy, not a law.

    Args:
        groups: The verdicts.
        advantages: [P, G].
        logprobs: [P, G] log-probability of each completion divided by its length, in nats per token; ignored at
            invalid entries.
    """
    centered_advantages = _centered(advantages, groups)
    return (centered_advantages * _centered(logprobs, groups)).sum(dim=-1) / groups.num_valid.clamp(min=1)


def _centered(values: Tensor, groups: GroupRewards) -> Tensor:
    """Values minus their mean over the valid completions of the group, 0 at invalid entries, [P, G] float64."""
    kept = torch.where(groups.valid, values.detach().double(), 0)
    means = kept.sum(dim=-1, keepdim=True) / groups.num_valid.clamp(min=1).unsqueeze(-1)
    return torch.where(groups.valid, kept - means, 0)


def gradient_mass(groups: GroupRewards, advantages: Tensor) -> tuple[Tensor, Tensor]:
    """Gradient mass of each side of a group: the sum of |A| over right completions / n, and over wrong ones / n.

    Both are [P] float64. For AsymGRPO on mixed groups p^(1-beta_pos) (1-p)^beta_pos and p^beta_neg (1-p)^(1-beta_neg).
    """
    sizes = torch.where(groups.valid, advantages.detach().double().abs(), 0)
    right = groups.rewards == 1
    n = groups.num_valid.clamp(min=1)
    return torch.where(right, sizes, 0).sum(dim=-1) / n, torch.where(right, 0, sizes).sum(dim=-1) / n


def advantage_metrics(groups: GroupRewards, advantages: Tensor) -> dict[str, Mean]:
    """`mean` of A over valid completions; `mass_{pos,neg}`, mean gradient masses over groups with a valid completion.

    AsymGRPO's `mean` is always 0 only for beta_pos + beta_neg = 1; elsewhere the printed policy loss is rightly
    not near 0.
    """
    judged = groups.num_valid > 0
    positive, negative = gradient_mass(groups, advantages)
    return {
        "mean": mean_of(advantages, groups.valid),
        "mass_pos": mean_of(positive, judged),
        "mass_neg": mean_of(negative, judged),
    }


def by_accuracy(values: Tensor, groups: GroupRewards, num_bins: int = 4) -> list[Mean]:
    """Means of a per-group value [P] over mixed groups, by group accuracy p, in equal bins of (0, 1).

    A group whose p is on the border of two bins goes into the upper one. Degenerate groups are in no bin.

    Args:
        values: [P], such as covariances or entropies.
        groups: The verdicts.
        num_bins: How many bins, >= 1.
    """
    bins = (groups.accuracy * num_bins).floor().long()
    return [mean_of(values, (bins == index) & ~groups.degenerate) for index in range(num_bins)]
