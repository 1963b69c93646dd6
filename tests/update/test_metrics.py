"""Scalars over micro-batches and ranks, and pass@k."""

from itertools import combinations

import pytest
import torch

from asymgrpo_app.algorithm.metrics import ratio
from asymgrpo_app.evaluation import pass_at_k
from asymgrpo_app.metrics import StepMetrics, Stopwatch
from asymgrpo_app.update.step_metrics import record_correction


def one_process(parts):
    return [parts]


def test_means_weigh_parts_by_their_counts():
    metrics = StepMetrics()
    metrics.add("a", ratio(torch.tensor(2.0), 1))
    metrics.add("a", ratio(4.0, 3))
    metrics.add("nothing", ratio(0.0, 0))
    assert metrics.combined(one_process) == {"a": 1.5}


def test_means_and_maxima_of_the_sampler_correction():
    metrics = StepMetrics()
    record_correction(metrics, ratios=torch.tensor([0.5, 8.0, 1.5, 2.0]), applied=torch.tensor([0.5, 0.0, 1.5, 2.0]))
    assert metrics.combined(one_process) == {
        "rollout_corr/ratio_raw_mean": 3.0,
        "rollout_corr/ratio_mean": 1.0,
        "rollout_corr/masked": 0.25,
        "rollout_corr/ratio_raw_max": 8.0,
        "rollout_corr/ratio_max": 2.0,
    }


def test_ranks_are_combined_by_name():
    first, second = StepMetrics(), StepMetrics()
    for metrics, offset in ((first, 0.0), (second, 10.0)):
        metrics.largest("high", torch.tensor([1.0, 3.0]) + offset)
        metrics.smallest("low", torch.tensor([1.0, 3.0]) - offset)
    first.add("share", ratio(1, 4))
    second.add("share", ratio(2, 2))
    second.add("only here", ratio(6, 3))
    second.largest("empty", torch.zeros(0))
    expected = {"high": 13.0, "low": -9.0, "share": 0.5, "only here": 2.0}
    theirs = []
    second.combined(lambda parts: theirs.append(parts) or [parts])
    assert first.combined(lambda parts: [parts, *theirs]) == expected
    assert first.combined(one_process) == {"high": 3.0, "low": 1.0, "share": 0.25}


def test_seconds_are_those_of_this_process():
    metrics = StepMetrics()
    clock = Stopwatch(metrics)
    clock.lap("gen")
    clock.lap("gen")
    seconds = metrics.values["timing_s/gen"]
    assert 0 < seconds < 1
    assert metrics.combined(lambda parts: [parts, parts]) == {"timing_s/gen": seconds}


@pytest.mark.parametrize("n", range(1, 7))
def test_pass_at_k_is_the_share_of_draws_with_a_right_one(n):
    for c in range(n + 1):
        right = [1] * c + [0] * (n - c)
        for k in range(1, n + 1):
            draws = list(combinations(right, k))
            assert pass_at_k(n, c, k) == pytest.approx(sum(map(any, draws)) / len(draws), abs=1e-12)


@pytest.mark.parametrize(("n", "c", "k"), [(4, 5, 1), (4, -1, 1), (4, 2, 0), (4, 2, 5)])
def test_pass_at_k_refuses_impossible_counts(n, c, k):
    with pytest.raises(ValueError, match="pass@k needs"):
        pass_at_k(n, c, k)
