"""Advantage estimators of other methods, for comparison under otherwise equal conditions.

GRPO with the population standard deviation, REINFORCE, MaxRL, PSR, NSR and W-REINFORCE are special cases of `AsymGRPO`.
"""

import math
from functools import cache

import torch
from torch import Tensor

from asymgrpo_app.algorithm.advantages import AdvantageEstimator
from asymgrpo_app.algorithm.groups import GroupRewards
from asymgrpo_app.errors import UserError


def _centered(groups: GroupRewards) -> Tensor:
    """r - p, [P, G] float64."""
    return groups.rewards.double() - groups.accuracy.unsqueeze(-1)


def _at_valid(groups: GroupRewards, advantages: Tensor) -> Tensor:
    """The advantages as [P, G] float32, 0 at invalid entries."""
    return torch.where(groups.valid, advantages, 0).float()


class GroupNormalized(AdvantageEstimator):
    """GRPO (arXiv 2402.03300) as TRL and verl compute it: (r - mean) / (standard deviation with n-1 + eps).

    That is sqrt((n-1)/n) times AsymGRPO at (0.5, 0.5), less the effect of eps. Groups of fewer than two valid
    completions get 0.

    Args:
        eps: Added to the standard deviation, >= 0; TRL has 1e-4, verl 1e-6.
    """

    def __init__(self, *, eps: float = 1e-4) -> None:
        if not (math.isfinite(eps) and eps >= 0):
            raise UserError(f"eps is {eps}: give a number >= 0, such as TRL's 1e-4 or verl's 1e-6")
        self.eps = eps

    def __call__(self, groups: GroupRewards) -> Tensor:
        k, n, p = groups.num_correct, groups.num_valid, groups.accuracy
        std = (k * (1 - p) / (n - 1).clamp(min=1)).sqrt()
        # With eps = 0 a degenerate group would be 0/0; its numerator is 0, so is its advantage.
        divisor = torch.where(groups.degenerate, 1, std + self.eps)
        return _at_valid(groups, _centered(groups) / divisor.unsqueeze(-1))


class RLOO(AdvantageEstimator):
    """REINFORCE leave-one-out (arXiv 2402.14740): r less the mean of the other completions, n/(n-1) (r - p).

    Groups of fewer than two valid completions get 0.
    """

    def __call__(self, groups: GroupRewards) -> Tensor:
        n = groups.num_valid
        factor = n / (n - 1).clamp(min=1)
        return _at_valid(groups, _centered(groups) * factor.unsqueeze(-1))


class DrGRPO(AdvantageEstimator):
    """Dr.GRPO (arXiv 2503.20783): r - mean, without the standard deviation.

    The original also divides by a constant length, which is the aggregation `constant` of the objective.
    """

    def __call__(self, groups: GroupRewards) -> Tensor:
        return _at_valid(groups, _centered(groups))


class PassAtK(AdvantageEstimator):
    """Pass@K training in its analytic form (arXiv 2508.10751): the advantage when the best of K samples is rewarded.

    With c of n right and rho = 1 - C(n-c,K)/C(n,K), s = sqrt(rho (1-rho)): (1-rho)/s if right,
    (1 - rho - C(n-c-1,K-1)/C(n-1,K-1))/s if wrong. 0 at c = 0, and from c = n-K+1 on, where every choice of K has a
    right one. Groups with fewer than K valid completions get 0.

    Args:
        k: Completions per virtual group, from 1 (which is GRPO) to the group size; the paper of AsymGRPO has 5.
    """

    def __init__(self, *, k: int = 5) -> None:
        if k < 1:
            raise UserError(f"k is {k}: give the K of Pass@K, at least 1 and at most the group size")
        self.k = k

    def __call__(self, groups: GroupRewards) -> Tensor:
        group_size = groups.rewards.shape[1]
        if group_size < self.k:
            raise UserError(f"k is {self.k} with groups of {group_size}: give a K of Pass@K up to the group size")
        counts = zip(groups.num_valid.tolist(), groups.num_correct.tolist(), strict=True)
        pairs = [_pass_at_k(int(n), int(c), self.k) for n, c in counts]
        values = groups.accuracy.new_tensor(pairs).reshape(-1, 2)
        positive, negative = values[:, :1], values[:, 1:]
        return _at_valid(groups, torch.where(groups.rewards == 1, positive, negative))


@cache
def _pass_at_k(n: int, c: int, k: int) -> tuple[float, float]:
    """Advantage of a right and of a wrong completion, with the binomials as exact integers."""
    if c == 0 or n - c < k:
        return 0.0, 0.0
    none_right = math.comb(n - c, k) / math.comb(n, k)
    others_wrong = math.comb(n - c - 1, k - 1) / math.comb(n - 1, k - 1)
    std = math.sqrt(none_right * (1 - none_right))
    return none_right / std, (none_right - others_wrong) / std
