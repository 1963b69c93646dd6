"""Intervals: published numbers, ends, and coverage."""

import importlib.util
import sys
from math import inf, sqrt
from statistics import NormalDist

import numpy as np
import pytest

from asymgrpo_app.evaluation.intervals import (
    Estimate,
    difference_interval,
    mean_interval,
    mean_over_sets,
    share_interval,
    t_quantile,
)
from tests.support.paths import REPOSITORY


@pytest.fixture(scope="module")
def simulation():
    spec = importlib.util.spec_from_file_location("interval_coverage", REPOSITORY / "benchmarks/interval_coverage.py")
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # dataclasses look their module up
    spec.loader.exec_module(module)
    yield module
    del sys.modules[spec.name]


@pytest.mark.parametrize(
    ("degrees", "quantile"),
    [(1, 12.7062), (2, 4.3027), (3, 3.1824), (4, 2.7764), (9, 2.2622), (29, 2.0452), (99, 1.9842), (1000, 1.9623)],
)
def test_student_quantiles_are_those_of_the_tables(degrees, quantile):
    assert t_quantile(degrees) == pytest.approx(quantile, abs=5e-5)


def test_student_tends_to_the_normal_distribution():
    assert t_quantile(20_000) == pytest.approx(NormalDist().inv_cdf(0.975), abs=2e-4)


def wilson(right, n, quantile):
    """The score interval by its definition: where |p - share| = quantile * sqrt(p (1 - p) / n)."""
    share, z2 = right / n, quantile**2
    root = sqrt(z2 * share * (1 - share) / n + z2 * z2 / (4 * n * n))
    return (share + z2 / (2 * n) - root) / (1 + z2 / n), (share + z2 / (2 * n) + root) / (1 + z2 / n)


@pytest.mark.parametrize(
    ("right", "n"), [(0, 100), (1, 100), (50, 100), (97, 100), (100, 100), (3, 5), (0, 2), (30, 30)]
)
def test_right_and_wrong_alone_give_wilsons_interval(right, n):
    estimate = share_interval([1.0] * right + [0.0] * (n - right))
    low, high = wilson(right, n, t_quantile(n - 1))
    assert estimate.value == right / n
    assert (estimate.low, estimate.high) == pytest.approx((low, high), abs=1e-12)
    for end, quantile in ((low, t_quantile(n - 1)), (high, t_quantile(n - 1))):
        if 1e-9 < end < 1 - 1e-9:
            assert abs(end - right / n) == pytest.approx(quantile * sqrt(end * (1 - end) / n), abs=1e-12)


def test_all_right_and_all_wrong_mirror_each_other_and_have_width():
    right, wrong = share_interval([1.0] * 64), share_interval([0.0] * 64)
    assert (right.value, right.high) == (1.0, 1.0)
    assert right.low == pytest.approx(64 / (64 + t_quantile(63) ** 2), abs=1e-12)
    assert (wrong.low, wrong.high) == pytest.approx((0.0, 1 - right.low), abs=1e-12)
    assert wrong.low == 0.0


def test_one_problem_says_nothing():
    assert share_interval([0.25]) == Estimate(0.25, 0.0, 1.0, 1)
    assert difference_interval([0.5]) == Estimate(0.5, -1.0, 1.0, 1)
    assert mean_interval([7.0]) == Estimate(7.0, -inf, inf, 1)


@pytest.mark.parametrize("values", [[0.5] * 10, [0.25] * 3, [1.0] * 2, [0.0] * 500, [0.75, 0.75]])
def test_no_share_has_an_interval_of_width_zero(values):
    estimate = share_interval(values)
    assert estimate.high - estimate.low > 0.005
    assert 0 <= estimate.low <= estimate.value <= estimate.high <= 1


def test_graded_values_are_surer_than_right_and_wrong_and_not_as_sure_as_their_completions():
    # 100 problems alike with 4 of 8 right: 800 completions. Neither 100 coin flips nor 800 of them.
    graded = share_interval([0.5] * 100)
    assert 2 * t_quantile(99) * sqrt(0.25 * 0.2 / 25.2 / 100) == pytest.approx(graded.high - graded.low, rel=1e-2)
    coins = share_interval([0.0, 1.0] * 50)
    assert graded.high - graded.low < coins.high - coins.low
    # All or nothing in each problem: 8 completions of a problem are worth no more than one.
    assert share_interval([0.0] * 30 + [1.0] * 70) == share_interval(
        [1.0, 0.0, 1.0, 0.0, 1.0, 1.0, 1.0, 0.0, 1.0, 1.0] * 10
    )


def test_means_without_bounds_are_students():
    estimate = mean_interval([10.0, 12.0, 20.0])
    half = 4.302653 * sqrt(28.0 / 3)
    assert estimate == pytest.approx((14.0, 14.0 - half, 14.0 + half, 3), abs=1e-5)


def test_differences_of_right_and_wrong_are_wald_with_half_a_problem_per_cell():
    # 100 problems, 12 only solved by one, 5 only by the other: Agresti and Min's variance (b + c + 1) / n.
    estimate = difference_interval([1.0] * 12 + [-1.0] * 5 + [0.0] * 83)
    half = t_quantile(99) * sqrt((18 / 100 - 0.07**2) / 100)
    assert estimate == pytest.approx((0.07, 0.07 - half, 0.07 + half, 100), abs=1e-12)


def test_equal_values_everywhere_leave_room_for_problems_that_were_not_drawn():
    estimate = difference_interval([0.0] * 100)
    assert (estimate.value, estimate.low, estimate.high) == pytest.approx((0.0, -0.01984, 0.01984), abs=1e-5)


def test_sets_count_the_same_and_their_variances_add_up():
    sets = [Estimate(0.5, 0.4, 0.6, 100), Estimate(0.9, 0.8, 0.94, 30)]
    expected = (0.7, 0.7 - sqrt(0.1**2 + 0.1**2) / 2, 0.7 + sqrt(0.1**2 + 0.04**2) / 2, 130)
    assert mean_over_sets(sets) == pytest.approx(expected, abs=1e-12)
    assert mean_over_sets(sets[:1]) == pytest.approx(sets[0], abs=1e-12)
    assert mean_over_sets([sets[0], Estimate(3.0, -inf, inf, 1)]) == (1.75, -inf, inf, 101)


# (kind, samples, k, world): from uniform over polarised to extremely skewed difficulties.
CASES = [
    ("avg", 1, 1, "uniform"),
    ("avg", 1, 1, "nearly always right"),
    ("avg", 4, 1, "nearly always right"),
    ("avg", 8, 1, "nearly always right"),
    ("avg", 4, 1, "easy"),
    ("avg", 8, 1, "easy with a hard tail"),
    ("avg", 8, 1, "solved or not"),
    ("avg", 8, 1, "nearly never right"),
    ("avg", 16, 1, "uniform"),
    ("avg", 16, 1, "hard"),
    ("avg", 16, 1, "all alike"),
    ("pass", 4, 2, "uniform"),
    ("pass", 4, 2, "easy with a hard tail"),
    ("pass", 8, 4, "uniform"),
    ("pass", 8, 4, "hard"),
    ("pass", 16, 8, "solved or not"),
    ("maj", 4, 4, "uniform"),
    ("maj", 8, 4, "hard"),
    ("maj", 16, 8, "solved or not"),
    ("gain", 1, 1, "solved or not"),
    ("gain", 4, 1, "hard"),
    ("gain", 16, 1, "uniform"),
]


@pytest.mark.parametrize(("kind", "samples", "k", "world"), CASES)
def test_the_interval_covers_the_truth_in_93_to_97_percent_of_1000_evaluations(simulation, kind, samples, k, world):
    share, _ = simulation.coverage(simulation.Metric(kind, samples, k), world, problems=100, evaluations=1_000, seed=3)
    assert 0.93 <= share <= 0.97


def test_students_interval_would_not_cover_skewed_difficulties(simulation):
    # What the choice is for: most problems are nearly always right, and the plain interval misses too often.
    rng = np.random.default_rng(3)
    metric, world = simulation.Metric("avg", 4), "nearly always right"
    target = simulation.truth(metric, world, rng)
    plain = [
        mean_interval(simulation.values(metric, simulation.WORLDS[world](rng, 100), rng).tolist()) for _ in range(1_000)
    ]
    assert sum(estimate.low <= target <= estimate.high for estimate in plain) < 930


def test_the_mean_over_sets_of_different_size_and_difficulty_is_covered(simulation):
    rng = np.random.default_rng(5)
    sets = [("uniform", 200, 4), ("nearly always right", 100, 8), ("hard", 60, 8)]
    metrics = [simulation.Metric("avg", samples) for _, _, samples in sets]
    target = np.mean(
        [simulation.truth(metric, world, rng) for metric, (world, _, _) in zip(metrics, sets, strict=True)]
    )
    covered = 0
    for _ in range(1_000):
        estimates = [
            share_interval(simulation.values(metric, simulation.WORLDS[world](rng, problems), rng).tolist())
            for metric, (world, problems, _) in zip(metrics, sets, strict=True)
        ]
        mean = mean_over_sets(estimates)
        covered += mean.low <= target <= mean.high
    assert 930 <= covered <= 970
