import math
from itertools import combinations

import pytest
import torch

from asymgrpo_app.algorithm.advantages import AdvantageEstimator, asym_advantages
from asymgrpo_app.algorithm.baselines import RLOO, DrGRPO, GroupNormalized, PassAtK
from asymgrpo_app.algorithm.groups import GroupRewards
from asymgrpo_app.errors import UserError


def every_k(size: int) -> GroupRewards:
    rewards = (torch.arange(size).unsqueeze(0) < torch.arange(size + 1).unsqueeze(1)).float()
    return GroupRewards(rewards, torch.ones_like(rewards, dtype=torch.bool))


@pytest.mark.parametrize("size", range(2, 65))
@pytest.mark.parametrize("eps", [1e-4, 1e-6])
def test_group_normalized_is_the_formula_of_trl_and_verl(size: int, eps: float) -> None:
    groups = every_k(size)
    rewards = groups.rewards.double()
    published = (rewards - rewards.mean(dim=1, keepdim=True)) / (rewards.std(dim=1, keepdim=True) + eps)
    torch.testing.assert_close(GroupNormalized(eps=eps)(groups).double(), published, rtol=1e-6, atol=1e-12)


def test_group_normalized_against_ours_at_eight() -> None:
    groups = every_k(8)
    ratio = GroupNormalized(eps=0)(groups)[1:-1] / asym_advantages(groups.rewards, 0.5, 0.5)[1:-1]
    assert ratio.flatten().tolist() == pytest.approx([0.93541] * 56, abs=1e-5)
    assert GroupNormalized(eps=0)(groups)[[0, -1]].abs().max() == 0


@pytest.mark.parametrize("size", range(2, 65))
def test_rloo_is_the_reward_less_the_mean_of_the_others(size: int) -> None:
    groups = every_k(size)
    rewards = groups.rewards.double()
    others = (rewards.sum(dim=1, keepdim=True) - rewards) / (size - 1)
    torch.testing.assert_close(RLOO()(groups).double(), rewards - others, rtol=1e-6, atol=1e-7)


def test_dr_grpo() -> None:
    assert DrGRPO()(every_k(4))[1].tolist() == [0.75, -0.25, -0.25, -0.25]
    assert DrGRPO()(every_k(4))[[0, -1]].abs().max() == 0


def pass_at_k_by_enumeration(size: int, right: int, k: int) -> list[float]:
    """Mean over all virtual groups a completion is in of (best reward - mean) / standard deviation."""
    rewards = [1] * right + [0] * (size - right)
    virtual = list(combinations(range(size), k))
    best = [max(rewards[i] for i in group) for group in virtual]
    mean = sum(best) / len(best)
    std = math.sqrt(mean * (1 - mean))
    if std == 0:
        return [0.0] * size
    scores = [[(b - mean) / std for group, b in zip(virtual, best, strict=True) if i in group] for i in range(size)]
    return [sum(score) / len(score) for score in scores]


@pytest.mark.parametrize("size", range(2, 9))
def test_pass_at_k_is_the_mean_over_all_virtual_groups(size: int) -> None:
    for k in range(1, size + 1):
        expected = torch.tensor([pass_at_k_by_enumeration(size, right, k) for right in range(size + 1)])
        torch.testing.assert_close(PassAtK(k=k)(every_k(size)), expected, rtol=1e-5, atol=1e-6)


def test_pass_at_five_of_eight_by_hand() -> None:
    advantages = PassAtK(k=5)(every_k(8))
    # c = 1: rho = 1 - C(7,5)/C(8,5) = 1 - 21/56 = 0.625; wrong ones: 0.375 - C(6,4)/C(7,4) = 0.375 - 15/35
    std = math.sqrt(0.625 * 0.375)
    assert advantages[1].tolist() == pytest.approx([0.375 / std, *[(0.375 - 15 / 35) / std] * 7], rel=1e-6)
    # c = 3: one choice of five without a right one, and none once a wrong one is taken out of four
    std = math.sqrt(55 / 56 * 1 / 56)
    assert advantages[3].tolist() == pytest.approx([1 / 56 / std] * 3 + [(1 / 56 - 1 / 35) / std] * 5, rel=1e-6)
    assert advantages[[0, 4, 5, 6, 7, 8]].abs().max() == 0


def test_pass_at_one_is_grpo() -> None:
    groups = every_k(8)
    torch.testing.assert_close(PassAtK(k=1)(groups), asym_advantages(groups.rewards, 0.5, 0.5))


@pytest.mark.parametrize("estimator", [GroupNormalized(), RLOO(), DrGRPO(), PassAtK(k=2)])
def test_left_out_completions_do_not_count(estimator: AdvantageEstimator) -> None:
    rewards = torch.tensor([[1.0, 0, 0, 9, 1], [1, 0, 0, 0, 0], [1, 1, 0, 0, 0]])
    valid = torch.tensor([[1, 1, 1, 0, 0], [1, 0, 0, 0, 0], [0, 0, 0, 0, 0]]).bool()
    advantages = estimator(GroupRewards(rewards, valid))
    small = torch.tensor([[1.0, 0, 0]])
    alone = estimator(GroupRewards(small, torch.ones_like(small, dtype=torch.bool)))
    torch.testing.assert_close(advantages[0], torch.cat([alone[0], torch.zeros(2)]))
    assert alone.abs().min() > 0
    assert advantages[1:].abs().max() == 0
    assert advantages.dtype == torch.float32


def test_pass_at_k_leaves_groups_below_k_alone() -> None:
    rewards = torch.tensor([[1.0, 0, 0, 0]])
    assert PassAtK(k=4)(GroupRewards(rewards, torch.tensor([[True, True, True, False]]))).abs().max() == 0


def test_settings_default_to_the_published_ones() -> None:
    assert GroupNormalized().eps == 1e-4
    assert PassAtK().k == 5


def test_settings_outside_their_range_are_refused() -> None:
    with pytest.raises(UserError, match=r"eps is -1.0: give a number >= 0"):
        GroupNormalized(eps=-1.0)
    with pytest.raises(UserError, match="k is 0: give the K of Pass@K"):
        PassAtK(k=0)
    with pytest.raises(UserError, match="k is 5 with groups of 4"):
        PassAtK(k=5)(every_k(4))
