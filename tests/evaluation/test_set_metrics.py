"""The metrics of a set: values, batches, ranks."""

import json
import random
import subprocess
import sys
from dataclasses import replace
from math import log
from pathlib import Path

import pytest
import torch

from asymgrpo_app.evaluation import maj_at_k, pass_at_k, share_interval
from asymgrpo_app.evaluation.metrics import SetMetrics
from asymgrpo_app.evaluation.outcomes import Prediction, ProblemOutcome, outcomes_of
from asymgrpo_app.prompts.base import EncodedPrompt, Prompt
from asymgrpo_app.rewards import ExactMatch, Status, Verdict
from asymgrpo_app.rollout.types import Completion, JudgedCompletion, RolloutBatch, SamplingSettings
from tests.support.outcomes import outcome, random_outcomes
from tests.support.paths import REPOSITORY


def computed(outcomes, batches=1, **choice):
    metric = SetMetrics(**({"ks": [1, 2, 4], "majority_ks": [2, 4]} | choice))
    for start in range(batches):
        metric.update(outcomes[start::batches])
    return metric.compute()


def right(outcome):
    return [own.correct for own in outcome.completions]


def test_every_metric_is_a_mean_over_problems():
    outcomes = [
        outcome(0, [1, 0, 0, 0], [0, 1, 1, None], lengths=[10, 20, 30, 40], logprob_sums=[-1.0, -2.0, -3.0, -4.0]),
        outcome(1, [1, 1, 1, 1], [0, 0, 0, 0], truncated=[False] * 4),
        outcome(2, [0, 0, 0, 0], [None, None, 0, 1], truncated=[True, True, False, False]),
        outcome(
            3,
            [1, 1, 0, 0],
            [0, 0, None, None],
            statuses=[Status.OK, Status.OK, Status.TIMEOUT, Status.NO_ANSWER],
        ),
    ]
    found = computed(outcomes)
    assert {name: estimate.value for name, estimate in found.items()} == pytest.approx(
        {
            "avg@4": (1 / 4 + 1 + 0 + 1 / 2) / 4,
            "pass@1": (1 / 4 + 1 + 0 + 1 / 2) / 4,
            "pass@2": (1 / 2 + 1 + 0 + 5 / 6) / 4,
            "pass@4": (1 + 1 + 0 + 1) / 4,
            # Problem 0: the right one wins beside the silent one, and every second time against each other one.
            "maj@2": ((1 + 1 / 2 + 1 / 2) / 6 + 1 + 0 + 5 / 6) / 4,
            "maj@4": (0 + 1 + 0 + 1) / 4,
            "truncated": (0 + 0 + 1 / 2 + 0) / 4,
            "no_answer": 1 / 4 / 4,
            "failed": 1 / 4 / 4,
            "length": (25 + 10 + 10 + 10) / 4,
            "entropy_estimate": (10 / 100 + 3 * 1 / 2) / 4,
        },
        abs=1e-15,
    )
    assert found["avg@4"] == share_interval([1 / 4, 1, 0, 1 / 2])
    assert all(estimate.n == 4 for estimate in found.values())


def test_batches_and_order_change_no_digit():
    outcomes = random_outcomes(53)
    whole = computed(outcomes)
    shuffled = outcomes.copy()
    random.Random(1).shuffle(shuffled)
    assert computed(shuffled, batches=7) == whole
    assert whole["avg@4"].n == 53


def test_a_problem_that_comes_twice_counts_once():
    outcomes = random_outcomes(10)
    assert computed([*outcomes, outcomes[3], outcomes[9]]) == computed(outcomes)


def test_values_behind_the_means_are_in_the_order_of_the_set():
    outcomes = random_outcomes(6)
    metric = SetMetrics([2], majority_ks=[3])
    metric.update(outcomes[3:])
    metric.update(outcomes[:3])
    metric.compute()
    assert metric.problems.indices == [0, 1, 2, 3, 4, 5]
    assert metric.problems.values["pass@2"] == [pass_at_k(4, sum(right(o)), 2) for o in outcomes]
    assert metric.problems.values["maj@3"] == [
        maj_at_k([own.answer_class for own in o.completions], right(o), 3) for o in outcomes
    ]


def test_a_greedy_set_has_its_own_name_and_no_entropy():
    found = computed([outcome(0, [1]), outcome(1, [0]), outcome(2, [1])], ks=[1], majority_ks=[1], greedy=True)
    assert list(found) == ["greedy", "truncated", "no_answer", "failed", "length"]
    assert found["greedy"] == share_interval([1, 0, 1])


def test_majority_is_left_out_where_no_problem_has_classes():
    assert "maj@2" not in computed([outcome(0, [1, 0], None)], ks=[1], majority_ks=[2])
    mixed = computed([outcome(0, [1, 0], [0, 1]), outcome(1, [1, 1], None)], ks=[1], majority_ks=[2])
    assert (mixed["maj@2"].value, mixed["maj@2"].n, mixed["avg@2"].n) == (0.5, 1, 2)


def test_a_set_without_problems_has_no_metrics():
    metric = SetMetrics([1])
    metric.update([])
    assert metric.compute() == {}


def test_the_number_of_completions_must_be_the_same():
    with pytest.raises(ValueError, match=r"same number of completions, got \[2, 3\]"):
        computed([outcome(0, [1, 0]), outcome(1, [1, 0, 1])], ks=[1], majority_ks=[])


def test_the_entropy_estimate_of_samples_tends_to_the_entropy():
    # Completions of 5 tokens from three tokens with chances 0.7, 0.2 and 0.1.
    chances = torch.tensor([0.7, 0.2, 0.1], dtype=torch.float64)
    tokens = torch.multinomial(chances, 400 * 8 * 5, replacement=True, generator=torch.Generator().manual_seed(0))
    sums = chances.log()[tokens].view(400, 8, 5).sum(-1).tolist()
    outcomes = [outcome(i, [0] * 8, lengths=[5] * 8, logprob_sums=own) for i, own in enumerate(sums)]
    found = computed(outcomes, ks=[], majority_ks=[])["entropy_estimate"]
    entropy = -(0.7 * log(0.7) + 0.2 * log(0.2) + 0.1 * log(0.1))
    assert found.low < entropy < found.high
    assert found.high - found.low < 0.03


def test_outcomes_of_rollouts_count_truncated_completions_as_wrong():
    def judged(correct, truncated, status=Status.OK):
        return JudgedCompletion(Completion([5, 6, 7], [-0.5, -0.25, -0.125], truncated), "x", Verdict(correct, status))

    prompt = EncodedPrompt(Prompt("a/7", "1+1", {"answer": "2"}, ExactMatch()), "1+1", [1], index=7)
    group = [judged(True, False), judged(True, True), judged(False, False, Status.ERROR)]
    rollouts = RolloutBatch([prompt], [group], SamplingSettings(1.0, 3, (0,)), answers=[[0, 0, None]])
    (found,) = outcomes_of("set", rollouts)
    assert found == ProblemOutcome(
        [
            Prediction("set", "a/7", 7, 0, "x", True, Status.OK, False, 3, -0.875, 0),
            Prediction("set", "a/7", 7, 1, "x", False, Status.OK, True, 3, -0.875, 0),
            Prediction("set", "a/7", 7, 2, "x", False, Status.ERROR, False, 3, -0.875, None),
        ],
        has_classes=True,
    )
    assert list(rollouts.rewards()[0]) == right(found)
    assert not outcomes_of("set", replace(rollouts, answers=None))[0].has_classes


def test_two_ranks_give_the_metrics_of_one_to_the_last_digit(tmp_path: Path):
    script = REPOSITORY / "tests/support/evaluation_ranks.py"
    subprocess.run([sys.executable, script, tmp_path], check=True, timeout=120, cwd=REPOSITORY)
    alone = {name: list(estimate) for name, estimate in computed(random_outcomes(53)).items()}
    for name in ("uneven-0", "uneven-1", "one_empty-0", "one_empty-1", "padded-0", "padded-1"):
        found = json.loads((tmp_path / f"{name}.json").read_text())
        assert found["metrics"] == alone, name
        assert found["indices"] == list(range(53)), name
