import math

import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from jsonargparse import ArgumentParser

from asymgrpo_app.algorithm.advantages import (
    AdvantageEstimator,
    AsymGRPO,
    BetaSchedule,
    GroupRewards,
    asym_advantages,
    checked_advantages,
)
from asymgrpo_app.algorithm.groups import of_all_ranks
from asymgrpo_app.errors import UserError

SIZES = range(2, 65)
exponents = st.floats(0, 3)


def every_k(size: int) -> torch.Tensor:
    """Groups of `size` with 0, 1, ..., size right: [size + 1, size]; the right ones come first."""
    return (torch.arange(size).unsqueeze(0) < torch.arange(size + 1).unsqueeze(1)).float()


def closed_form(k: int, size: int, beta_pos: float, beta_neg: float) -> list[float]:
    positive = ((size - k) / k) ** beta_pos if 0 < k < size else 0.0
    negative = -((k / (size - k)) ** beta_neg) if 0 < k < size else 0.0
    return [positive] * k + [negative] * (size - k)


GOLDEN = {
    # k: (positive, negative) for each pair of exponents, at G = 8
    (0.5, 0.5): [
        (2.6458, -0.3780),
        (1.7321, -0.5774),
        (1.2910, -0.7746),
        (1, -1),
        (0.7746, -1.2910),
        (0.5774, -1.7321),
        (0.3780, -2.6458),
    ],
    (0.9, 0.4): [
        (5.7622, -0.4592),
        (2.6879, -0.6444),
        (1.5837, -0.8152),
        (1, -1),
        (0.6314, -1.2267),
        (0.3720, -1.5518),
        (0.1735, -2.1779),
    ],
    (0.7, 0.7): [
        (3.9045, -0.2561),
        (2.1577, -0.4635),
        (1.4299, -0.6994),
        (1, -1),
        (0.6994, -1.4299),
        (0.4635, -2.1577),
        (0.2561, -3.9045),
    ],
    (0.9, 0.3): [
        (5.7622, -0.5578),
        (2.6879, -0.7192),
        (1.5837, -0.8579),
        (1, -1),
        (0.6314, -1.1656),
        (0.3720, -1.3904),
        (0.1735, -1.7928),
    ],
}


@pytest.mark.parametrize("betas", GOLDEN)
def test_golden_values(betas: tuple[float, float]) -> None:
    advantages = asym_advantages(every_k(8), *betas)
    for k, (positive, negative) in enumerate(GOLDEN[betas], start=1):
        assert advantages[k, :k].tolist() == pytest.approx([positive] * k, abs=5e-5)
        assert advantages[k, k:].tolist() == pytest.approx([negative] * (8 - k), abs=5e-5)


@settings(max_examples=25)
@given(beta_pos=exponents, beta_neg=exponents)
def test_formula_for_every_group_size_and_count(beta_pos: float, beta_neg: float) -> None:
    for size in SIZES:
        advantages = asym_advantages(every_k(size), beta_pos, beta_neg)
        expected = torch.tensor([closed_form(k, size, beta_pos, beta_neg) for k in range(size + 1)])
        torch.testing.assert_close(advantages, expected, rtol=1e-6, atol=0)


@pytest.mark.parametrize("size", SIZES)
def test_half_half_is_grpo_with_population_std(size: int) -> None:
    rewards = every_k(size)[1:-1].double()
    advantages = asym_advantages(rewards, 0.5, 0.5).double()
    centered = rewards - rewards.mean(dim=1, keepdim=True)
    torch.testing.assert_close(advantages, centered / rewards.std(dim=1, keepdim=True, correction=0), rtol=1e-6, atol=0)
    sample = centered / rewards.std(dim=1, keepdim=True, correction=1)
    torch.testing.assert_close(sample, math.sqrt((size - 1) / size) * advantages, rtol=1e-6, atol=0)


@pytest.mark.parametrize("size", SIZES)
def test_one_zero_is_maxrl_on_mixed_groups_and_drops_the_others(size: int) -> None:
    rewards = every_k(size)
    p = rewards.mean(dim=1, keepdim=True)
    advantages = asym_advantages(rewards, 1, 0)
    torch.testing.assert_close(advantages[1:-1], ((rewards - p) / p)[1:-1], rtol=1e-6, atol=1e-6)
    assert advantages[[0, -1]].abs().max() == 0


@pytest.mark.parametrize("size", SIZES)
def test_zero_zero_kept_is_reinforce_in_every_group(size: int) -> None:
    rewards = every_k(size)
    assert torch.equal(asym_advantages(rewards, 0, 0, degenerate_groups="keep"), 2 * rewards - 1)


@given(beta_pos=st.floats(0, 1))
def test_group_mean_is_zero_when_the_exponents_sum_to_one(beta_pos: float) -> None:
    for size in SIZES:
        means = asym_advantages(every_k(size), beta_pos, 1 - beta_pos).double().mean(dim=1)
        assert means.abs().max() < 1e-6


@given(beta_pos=exponents, beta_neg=exponents)
def test_group_mean_is_not_zero_for_other_sums(beta_pos: float, beta_neg: float) -> None:
    assume(abs(beta_pos + beta_neg - 1) > 0.01)
    # At p < 1/2 the mean has the sign of beta_pos + beta_neg - 1: hard prompts are pushed up, easy ones down.
    means = asym_advantages(every_k(8), beta_pos, beta_neg).double().mean(dim=1)
    assert means[1] * (beta_pos + beta_neg - 1) > 0
    assert means[7] * (beta_pos + beta_neg - 1) < 0


@given(beta_pos=exponents)
def test_largest_advantage(beta_pos: float) -> None:
    for size in SIZES:
        largest = asym_advantages(every_k(size), beta_pos, 0.0).max().item()
        assert largest == pytest.approx((size - 1) ** beta_pos, rel=1e-6)


@pytest.mark.parametrize(("size", "largest"), [(8, 5.7622), (16, 11.4415)])
def test_largest_advantage_of_the_paper(size: int, largest: float) -> None:
    assert asym_advantages(every_k(size), 0.9, 0.4).max().item() == pytest.approx(largest, abs=5e-5)


@given(
    beta_pos=st.floats(0, 1e6),
    beta_neg=st.floats(0, 1e6),
    scale=st.floats(0, 1e30),
    keep=st.booleans(),
    flip=st.sampled_from([None, "ent_increase", "ent_decrease"]),
)
def test_always_finite(beta_pos: float, beta_neg: float, scale: float, keep: bool, flip: str | None) -> None:
    for size in (2, 3, 64):
        advantages = asym_advantages(
            every_k(size),
            beta_pos,
            beta_neg,
            scale_pos=scale,
            degenerate_groups="keep" if keep else "drop",
            flip=flip,
        )
        assert advantages.isfinite().all()


def test_degenerate_groups() -> None:
    rewards = torch.tensor([[0.0, 0, 0], [1, 1, 1]])
    for betas in [(0, 0), (0.5, 0), (0.9, 0.4)]:
        assert asym_advantages(rewards, *betas).abs().max() == 0
    kept = {betas: asym_advantages(rewards, *betas, degenerate_groups="keep") for betas in [(0.5, 0), (0, 0.5), (1, 1)]}
    assert kept[0.5, 0].tolist() == [[-1] * 3, [0] * 3]
    assert kept[0, 0.5].tolist() == [[0] * 3, [1] * 3]
    assert kept[1, 1].abs().max() == 0


def test_left_out_completions_count_neither_in_k_nor_in_n() -> None:
    rewards = torch.tensor([[1.0, 0, 0, 0, 1, float("nan")], [1, 1, 0, 0, 0, 0], [1, 0, 0, 0, 0, 0]])
    valid = torch.tensor([[1, 1, 1, 1, 0, 0], [1, 1, 0, 0, 0, 0], [1, 0, 0, 0, 0, 0]]).bool()
    advantages = asym_advantages(rewards, 0.9, 0.4, valid=valid)
    expected = [3**0.9, *[-(3**-0.4)] * 3, 0, 0]
    assert advantages[0].tolist() == pytest.approx(expected, rel=1e-6)
    assert advantages[1:].abs().max() == 0


def test_single_and_absent_completions_are_degenerate() -> None:
    rewards, none = torch.tensor([[1.0, 0.0], [0.0, 0.0]]), torch.zeros(2, 2, dtype=torch.bool)
    one = torch.tensor([[True, False], [True, False]])
    for flip in (None, "ent_increase", "ent_decrease"):
        assert asym_advantages(rewards, 0, 0, valid=one, flip=flip).abs().max() == 0
        assert asym_advantages(rewards, 0, 0, valid=none, flip=flip, degenerate_groups="keep").abs().max() == 0
    kept = asym_advantages(rewards, 0, 0, valid=one, degenerate_groups="keep")
    assert kept.tolist() == [[1, 0], [-1, 0]]


def test_scales_and_cap() -> None:
    rewards = every_k(8)
    plain = asym_advantages(rewards, 0.9, 0.4)
    scaled = asym_advantages(rewards, 0.9, 0.4, scale_pos=0.1, scale_neg=2)
    torch.testing.assert_close(scaled, torch.where(rewards == 1, 0.1 * plain, 2 * plain))
    capped = asym_advantages(rewards, 0.9, 0.4, cap=1.5)
    torch.testing.assert_close(capped, plain.clamp(-1.5, 1.5))
    # The cap bounds what is returned, so it comes after the scales.
    assert asym_advantages(rewards, 0.9, 0.4, scale_pos=0.1, cap=0.5).max().item() == pytest.approx(0.5)


def test_w_reinforce_psr_and_nsr() -> None:
    rewards = torch.tensor([[1.0, 1, 0, 0]])
    weighted = asym_advantages(rewards, 0, 0, scale_pos=0.1, degenerate_groups="keep")
    assert weighted.tolist() == [pytest.approx([0.1, 0.1, -1, -1])]
    assert asym_advantages(rewards, 0, 0, scale_neg=0).tolist() == [[1, 1, 0, 0]]
    assert asym_advantages(rewards, 0, 0, scale_pos=0).tolist() == [[0, 0, -1, -1]]


def test_flips_at_eight() -> None:
    rewards = every_k(8)
    plain = asym_advantages(rewards, 0.5, 0.5)
    decrease = asym_advantages(rewards, 0.5, 0.5, flip="ent_decrease")
    assert decrease[8].tolist() == pytest.approx([3.5595] * 8, abs=5e-5)
    assert decrease[1:8, 0].tolist() == pytest.approx(plain[1:8, 0].tolist()[::-1], rel=1e-6)
    assert torch.equal(decrease[:8, 7], plain[:8, 7])
    increase = asym_advantages(rewards, 0.5, 0.5, flip="ent_increase")
    assert increase[0].tolist() == pytest.approx([-3.5595] * 8, abs=5e-5)
    assert increase[1:8, 7].tolist() == pytest.approx(plain[1:8, 7].tolist()[::-1], rel=1e-6)
    assert torch.equal(increase[1:, 0], plain[1:, 0])
    # The end that is not flipped stays degenerate.
    assert decrease[0].abs().max() == 0
    assert increase[8].abs().max() == 0


@settings(max_examples=25)
@given(beta=exponents)
def test_flipped_curves_go_on_linearly(beta: float) -> None:
    for size in SIZES:
        rewards = every_k(size)
        decrease = asym_advantages(rewards, beta, 0.5, flip="ent_decrease")[:, 0].double()
        increase = -asym_advantages(rewards, 0.5, beta, flip="ent_increase")[:, -1].double()
        odds = [(k / (size - k)) ** beta for k in range(size)]
        expected = [*odds[1:], 2 * odds[-1] - odds[-2]]
        assert decrease[1:].tolist() == pytest.approx(expected, rel=1e-6)
        assert increase[:-1].tolist() == pytest.approx(expected[::-1], rel=1e-6)


@pytest.mark.parametrize(("beta", "end"), [(0.5, 2.0), (0.9, 2.0), (0.0, 1.0)])
def test_flips_of_pairs_take_the_curves_own_value_at_zero(beta: float, end: float) -> None:
    # f(1/2) = 1, and f(0) = 0^beta: 0, or 1 for the constant curve of exponent 0.
    decrease = asym_advantages(every_k(2), beta, 0.5, flip="ent_decrease")
    assert decrease.tolist() == [[0, 0], [1, -1], [end, end]]
    increase = asym_advantages(every_k(2), 0.5, beta, flip="ent_increase")
    assert increase.tolist() == [[-end, -end], [1, -1], [0, 0]]


def test_no_gradient_flows_through_advantages() -> None:
    rewards = torch.tensor([[1.0, 0.0, 0.0]], requires_grad=True)
    assert not asym_advantages(rewards, 0.9, 0.4).requires_grad


@pytest.mark.parametrize("reward", [0.5, 2.0, -1.0, float("nan"), float("inf")])
def test_rewards_other_than_zero_and_one_are_refused(reward: float) -> None:
    with pytest.raises(ValueError, match=rf"exactly 0 or 1, since the group accuracy .* got {reward}"):
        asym_advantages(torch.tensor([[1.0, reward]]), 0.9, 0.4)


@pytest.mark.parametrize(
    ("rewards", "valid", "message"),
    [
        (torch.ones(3), torch.ones(3, dtype=torch.bool), r"shape \[prompts, group_size\], got \[3\]"),
        (torch.ones(2, 3), torch.ones(3, 2, dtype=torch.bool), r"got \[2, 3\] and \[3, 2\]"),
        (torch.ones(2, 3), torch.ones(2, 3), "bool tensor, got torch.float32"),
    ],
)
def test_wrong_shapes_and_masks_are_refused(rewards, valid, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        asym_advantages(rewards, 0.9, 0.4, valid=valid)


@pytest.mark.parametrize("setting", ["beta_pos", "beta_neg", "scale_pos", "scale_neg"])
@pytest.mark.parametrize("value", [-0.1, float("nan"), float("inf")])
def test_settings_outside_their_range_are_refused(setting: str, value: float) -> None:
    settings = {"beta_pos": 0.9, "beta_neg": 0.4, setting: value}
    with pytest.raises(ValueError, match=f"{setting} is {value}: give a finite number >= 0"):
        asym_advantages(torch.tensor([[1.0, 0.0]]), **settings)
    with pytest.raises(UserError, match=f"{setting} is {value}: give a finite number >= 0"):
        AsymGRPO(**settings)


@pytest.mark.parametrize("cap", [0.0, -1.0, float("nan")])
def test_cap_must_be_positive(cap: float) -> None:
    with pytest.raises(ValueError, match=f"cap is {cap}"):
        asym_advantages(torch.tensor([[1.0, 0.0]]), 0.9, 0.4, cap=cap)
    with pytest.raises(UserError, match=f"cap is {cap}"):
        AsymGRPO(cap=cap)


def groups(rewards: torch.Tensor, progress: float = 0.0) -> GroupRewards:
    return GroupRewards(rewards, torch.ones_like(rewards, dtype=torch.bool), progress)


def test_group_counts() -> None:
    rewards = torch.tensor([[1.0, 0, 1, 0.5], [0, 0, 0, 0], [1, 1, 1, 1]])
    valid = torch.tensor([[1, 1, 1, 0], [0, 0, 0, 0], [1, 1, 1, 1]]).bool()
    counted = GroupRewards(rewards, valid)
    assert counted.num_correct.dtype == counted.num_valid.dtype == torch.float64
    assert counted.num_correct.tolist() == [2, 0, 4]
    assert counted.num_valid.tolist() == [3, 0, 4]
    assert counted.accuracy.tolist() == pytest.approx([2 / 3, 0, 1])
    assert counted.degenerate.tolist() == [False, True, True]
    assert counted.rewards[0].tolist() == [1, 0, 1, 0]
    with pytest.raises(ValueError, match=r"progress must be in \[0, 1\], got 1.5"):
        GroupRewards(rewards, valid, progress=1.5)


def test_estimator_passes_every_setting_on() -> None:
    rewards = every_k(8)
    settings = {
        "scale_pos": 0.5,
        "scale_neg": 2.0,
        "cap": 2.5,
        "degenerate_groups": "keep",
        "flip": "ent_decrease",
    }
    advantages = AsymGRPO(beta_pos=0.7, beta_neg=0.0, **settings)(groups(rewards))
    assert torch.equal(advantages, asym_advantages(rewards, 0.7, 0.0, **settings))
    assert torch.equal(AsymGRPO()(groups(rewards)), asym_advantages(rewards, 0.9, 0.4))


def test_settings_default_to_those_of_the_paper() -> None:
    estimator = AsymGRPO()
    assert estimator.scalars(0.5) == {"beta_pos": 0.9, "beta_neg": 0.4}
    assert (estimator.scale_pos, estimator.scale_neg, estimator.cap) == (1, 1, None)
    assert (estimator.degenerate_groups, estimator.flip) == ("drop", None)


def test_estimator_counts_valid_completions_alone() -> None:
    rewards, valid = torch.tensor([[1.0, 0, 0, 0]]), torch.tensor([[True, True, True, False]])
    assert AsymGRPO(beta_pos=1, beta_neg=1)(GroupRewards(rewards, valid)).tolist() == [[2, -0.5, -0.5, 0]]


@pytest.mark.parametrize(
    ("kind", "expected"),
    [("linear", [0.5, 0.625, 0.75, 0.875, 1.0]), ("cosine", [0.5, 0.57322, 0.75, 0.92678, 1.0])],
)
def test_schedules(kind: str, expected: list[float]) -> None:
    schedule = BetaSchedule(kind=kind, start=0.5, end=1.0)
    assert [schedule.at(share / 4) for share in range(5)] == pytest.approx(expected, abs=1e-5)
    estimator = AsymGRPO(beta_pos=schedule, beta_neg=0.4)
    assert estimator.scalars(0.25) == {"beta_pos": pytest.approx(expected[1], abs=1e-5), "beta_neg": 0.4}
    rewards = every_k(8)
    middle = estimator(groups(rewards, progress=0.5))
    torch.testing.assert_close(middle, asym_advantages(rewards, 0.75, 0.4))


def test_each_exponent_follows_its_own_schedule() -> None:
    estimator = AsymGRPO(
        beta_pos=BetaSchedule(kind="linear", start=1.0, end=3.0),
        beta_neg=BetaSchedule(kind="linear", start=2.0, end=0.0),
    )
    assert estimator.scalars(0.5) == {"beta_pos": 2.0, "beta_neg": 1.0}
    # One of three right, so the odds are 2 : 1.
    one_of_three = torch.tensor([[1.0, 0, 0]])
    assert estimator(groups(one_of_three, progress=0.5)).tolist() == [[4, -0.5, -0.5]]
    assert estimator(groups(one_of_three, progress=1.0)).tolist() == [[8, -1, -1]]


def test_a_constant_schedule_stays_at_its_start() -> None:
    assert [BetaSchedule(kind="constant", start=0.5, end=1.0).at(share) for share in (0.0, 0.5, 1.0)] == [0.5] * 3


def test_schedules_that_make_no_sense_are_refused() -> None:
    with pytest.raises(UserError, match="beta_neg is a linear schedule with end: None: give an end"):
        AsymGRPO(beta_neg=BetaSchedule(kind="linear", start=0.5))
    with pytest.raises(UserError, match=r"beta_pos is a constant schedule with end: 1.0: leave end out"):
        AsymGRPO(beta_pos=BetaSchedule(kind="constant", start=0.5, end=1.0))
    with pytest.raises(UserError, match=r"beta_pos is -0.5: give a finite number >= 0"):
        AsymGRPO(beta_pos=BetaSchedule(kind="cosine", start=0.5, end=-0.5))
    with pytest.raises(UserError, match=r"beta_neg is -0.5: give a finite number >= 0"):
        AsymGRPO(beta_neg=BetaSchedule(kind="linear", start=-0.5, end=0.5))


@pytest.mark.parametrize(
    ("settings", "uses"),
    [
        ({}, False),
        ({"degenerate_groups": "keep"}, False),
        ({"beta_pos": 0.0}, False),
        ({"beta_pos": 0.0, "degenerate_groups": "keep"}, True),
        ({"beta_neg": 0.0, "degenerate_groups": "keep"}, True),
        ({"beta_neg": 0.0, "degenerate_groups": "keep", "scale_neg": 0.0}, False),
        ({"flip": "ent_increase"}, True),
        ({"flip": "ent_decrease"}, True),
        ({"flip": "ent_decrease", "scale_pos": 0.0}, False),
        ({"beta_pos": BetaSchedule(kind="linear", start=0.0, end=0.9), "degenerate_groups": "keep"}, True),
    ],
)
def test_settings_that_learn_from_groups_that_are_all_right_or_all_wrong(settings, uses: bool) -> None:
    estimator = AsymGRPO(**settings)
    assert (estimator(groups(every_k(8)[[0, 8]])).abs().max() > 0) == uses


def test_configuration_by_class_path() -> None:
    parser = ArgumentParser()
    parser.add_argument("--advantages", type=AdvantageEstimator)
    config = {
        "class_path": "asymgrpo_app.algorithm.advantages.AsymGRPO",
        "init_args": {"beta_pos": {"kind": "linear", "start": 0.5, "end": 0.9}, "beta_neg": 1, "flip": "ent_increase"},
    }
    estimator = parser.instantiate(parser.parse_object({"advantages": config})).advantages
    assert estimator.scalars(1.0) == {"beta_pos": 0.9, "beta_neg": 1.0}
    assert estimator.flip == "ent_increase"


class MeanOnly(AdvantageEstimator):
    """An estimator such as a user writes: r - p, times a factor."""

    def __init__(self, *, factor: float = 1.0) -> None:
        self.factor = factor

    def __call__(self, groups: GroupRewards) -> torch.Tensor:
        return self.factor * (groups.rewards - groups.accuracy.unsqueeze(-1))


def test_own_estimator_is_held_to_its_contract() -> None:
    rewards, valid = torch.tensor([[1.0, 0, 0, 7]]), torch.tensor([[True, True, True, False]])
    advantages = checked_advantages(MeanOnly(factor=3), GroupRewards(rewards, valid))
    assert advantages.tolist() == [pytest.approx([2, -1, -1, 0])]
    assert advantages.dtype == torch.float32
    with pytest.raises(UserError, match="MeanOnly are not finite for a group with 1 of 3 right"):
        checked_advantages(MeanOnly(factor=math.inf), GroupRewards(rewards, valid))

    class PerGroup(MeanOnly):
        def __call__(self, groups: GroupRewards) -> torch.Tensor:
            return groups.accuracy

    with pytest.raises(UserError, match=r"PerGroup have the shape \[1\]: return one per completion, \[1, 4\]"):
        checked_advantages(PerGroup(), GroupRewards(rewards, valid))
    assert MeanOnly().scalars(0.5) == {}


def test_the_first_group_without_finite_advantages_is_named_by_its_counts() -> None:
    class Pole(MeanOnly):
        """Infinite for wrong completions of groups with at least two right."""

        def __call__(self, groups: GroupRewards) -> torch.Tensor:
            pole = (groups.num_correct >= 2).unsqueeze(-1) & (groups.rewards == 0)
            return torch.where(pole, math.inf, super().__call__(groups))

    rewards = torch.tensor([[1.0, 0, 0, 0], [1, 1, 1, 0], [1, 1, 0, 0]])
    valid = torch.tensor([[True] * 4, [False, True, True, True], [True] * 4])
    with pytest.raises(UserError, match="Pole are not finite for a group with 2 of 3 right"):
        checked_advantages(Pole(), GroupRewards(rewards, valid))


def test_groups_of_all_ranks():
    parts = [
        GroupRewards(torch.tensor([[1.0, 0.0]]), torch.tensor([[True, True]]), 0.25),
        GroupRewards(torch.tensor([[1.0, 1.0], [0.0, 0.0]]), torch.tensor([[True, False], [True, True]]), 0.25),
    ]
    whole = of_all_ranks(parts[0], lambda mine: [mine, parts[1]])
    assert whole.rewards.tolist() == [[1.0, 0.0], [1.0, 0.0], [0.0, 0.0]]
    assert whole.valid.tolist() == [[True, True], [True, False], [True, True]]
    assert whole.progress == 0.25


def test_an_estimator_without_a_state_has_none():
    estimator = AsymGRPO()
    before = vars(estimator).copy()
    estimator.observe(GroupRewards(torch.ones(1, 2), torch.ones(1, 2).bool()))
    estimator.load_state_dict({})
    assert estimator.state_dict() == {}
    assert vars(estimator) == before
