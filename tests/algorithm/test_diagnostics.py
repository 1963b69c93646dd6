import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from asymgrpo_app.algorithm.advantages import asym_advantages
from asymgrpo_app.algorithm.diagnostics import (
    advantage_metrics,
    by_accuracy,
    gradient_mass,
    group_shares,
    logprob_advantage_covariance,
)
from asymgrpo_app.algorithm.groups import GroupRewards
from asymgrpo_app.algorithm.metrics import Mean, mean_of, ratio


def share(metric: Mean) -> float:
    return (metric.total / metric.weight).item()


def every_k(size: int) -> GroupRewards:
    rewards = (torch.arange(size).unsqueeze(0) < torch.arange(size + 1).unsqueeze(1)).float()
    return GroupRewards(rewards, torch.ones_like(rewards, dtype=torch.bool))


def test_shares_leave_out_groups_without_a_verdict() -> None:
    rewards = torch.tensor([[1.0, 1], [0, 0], [0, 1], [1, 0], [1, 1], [1, 1]])
    valid = torch.tensor([[1, 1], [1, 1], [1, 1], [1, 0], [0, 0], [1, 1]]).bool()
    shares = {name: share(metric) for name, metric in group_shares(GroupRewards(rewards, valid)).items()}
    assert shares == {"solved_all": 0.6, "solved_none": 0.2, "mixed": 0.2}


@given(beta_pos=st.floats(0, 2), beta_neg=st.floats(0, 2))
def test_gradient_mass_in_closed_form(beta_pos: float, beta_neg: float) -> None:
    for size in (2, 5, 8, 64):
        groups = every_k(size)
        positive, negative = gradient_mass(groups, asym_advantages(groups.rewards, beta_pos, beta_neg))
        p = groups.accuracy[1:-1]
        torch.testing.assert_close(positive[1:-1], p ** (1 - beta_pos) * (1 - p) ** beta_pos, rtol=1e-6, atol=0)
        torch.testing.assert_close(negative[1:-1], p**beta_neg * (1 - p) ** (1 - beta_neg), rtol=1e-6, atol=0)
        assert positive[[0, -1]].abs().max() == negative[[0, -1]].abs().max() == 0


def test_covariance_in_closed_form() -> None:
    groups = every_k(8)
    advantages = asym_advantages(groups.rewards, 0.9, 0.4)
    logprobs = -torch.rand(9, 8, generator=torch.Generator().manual_seed(1))
    covariance = logprob_advantage_covariance(groups, advantages, logprobs)
    for k in range(1, 8):
        p = k / 8
        spread = (((1 - p) / p) ** 0.9 + (p / (1 - p)) ** 0.4) * (logprobs[k, :k].mean() - logprobs[k, k:].mean())
        assert covariance[k].item() == pytest.approx(p * (1 - p) * spread.item(), rel=1e-5)
    assert covariance[[0, -1]].abs().max() == 0


def test_covariance_is_over_valid_completions() -> None:
    groups = GroupRewards(torch.tensor([[1.0, 0, 0]]), torch.tensor([[True, True, False]]))
    advantages = torch.tensor([[1.0, -1.0, 0.0]])
    covariance = logprob_advantage_covariance(groups, advantages, torch.tensor([[-0.5, -1.5, float("nan")]]))
    assert covariance.tolist() == pytest.approx([0.5])


def test_a_single_valid_completion_has_no_covariance_and_pulls_with_all_its_advantage() -> None:
    groups = GroupRewards(torch.tensor([[1.0, 0, 1]]), torch.tensor([[True, False, False]]))
    advantages = torch.tensor([[3.0, 7.0, 7.0]])  # what stands at invalid places is ignored
    assert logprob_advantage_covariance(groups, advantages, torch.tensor([[-0.5, -1.5, -2.5]])).tolist() == [0]
    assert [mass.tolist() for mass in gradient_mass(groups, advantages)] == [[3], [0]]
    metrics = {name: share(metric) for name, metric in advantage_metrics(groups, advantages).items()}
    assert metrics == {"mean": 3, "mass_pos": 3, "mass_neg": 0}


def test_advantage_metrics_by_hand() -> None:
    rewards = torch.tensor([[1.0, 0, 0, 0], [1, 1, 1, 1], [1, 1, 1, 1]])
    groups = GroupRewards(rewards, torch.tensor([[True] * 4, [True] * 4, [False] * 4]))
    advantages = asym_advantages(rewards, 0.9, 0.4, valid=groups.valid)
    metrics = {name: share(metric) for name, metric in advantage_metrics(groups, advantages).items()}
    positive, negative = 3**0.9 / 4, 3 * 3**-0.4 / 4
    expected = {"mean": (positive - negative) / 2, "mass_pos": positive / 2, "mass_neg": negative / 2}
    assert metrics == pytest.approx(expected, rel=1e-6)


def test_by_accuracy() -> None:
    groups = every_k(8)  # p = 0, 1/8, ..., 1: bins of [1/8, 1/4), [1/4, 1/2), [1/2, 3/4), [3/4, 1)
    means = by_accuracy(torch.arange(9.0), groups)
    assert [(metric.total.item(), metric.weight.item()) for metric in means] == [(1, 1), (5, 2), (9, 2), (13, 2)]
    halves = by_accuracy(torch.arange(9.0), groups, num_bins=2)
    assert [(metric.total.item(), metric.weight.item()) for metric in halves] == [(6, 3), (22, 4)]


def test_a_mean_keeps_its_parts_and_no_gradient():
    values = torch.tensor([[1.0, 2.0], [3.0, torch.nan]], requires_grad=True)
    every = mean_of(values[0])
    some = mean_of(values, torch.tensor([[True, False], [True, False]]))
    shares = mean_of(torch.tensor([True, True, False]), torch.tensor([False, True, True]))
    of_numbers, of_tensors = ratio(3, 4.0), ratio(values[0].sum(), torch.tensor(2))
    parts = [(float(mean.total), float(mean.weight)) for mean in (every, some, shares, of_numbers, of_tensors)]
    assert parts == [(3.0, 2.0), (4.0, 2.0), (1.0, 2.0), (3.0, 4.0), (3.0, 2.0)]
    for mean in (every, some, shares, of_numbers, of_tensors):
        for part in mean:
            assert (part.dtype, part.shape, part.requires_grad) == (torch.float64, (), False)
