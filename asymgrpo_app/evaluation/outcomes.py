"""The outcome of an evaluation on one problem, and the metrics computed from it."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import fsum, isnan, nan
from typing import TYPE_CHECKING

from asymgrpo_app.evaluation.estimators import maj_at_k, pass_at_k
from asymgrpo_app.evaluation.intervals import Estimate, mean_interval, share_interval
from asymgrpo_app.rewards.base import Status

if TYPE_CHECKING:  # compare needs no torch
    from asymgrpo_app.rollout.types import RolloutBatch

UNITS = {"length": "tokens", "entropy_estimate": "nats"}
"""Units of the metrics that are not shares."""
ACCURACIES = ("avg", "greedy", "pass", "maj")
"""Metrics of right and wrong, without their `@k`."""


@dataclass(frozen=True)
class ProblemOutcome:
    """The n completions of one problem.

    Attributes:
        index: Index of the problem in its set; an outcome that is added twice under one index counts once.
        correct: [n] whether each completion is right; a truncated one never is.
        statuses: [n] status of each verdict.
        truncated: [n] whether the length limit cut each completion.
        lengths: [n] length in tokens, the end token included; at least 1.
        logprob_sums: [n] sum of the sampler's log-probabilities of the sampled tokens, in nats.
        answers: [n] classes of equal answers, None for a completion without an answer. None where the verifier has no
            notion of equal answers.
    """

    index: int
    correct: Sequence[bool]
    statuses: Sequence[Status]
    truncated: Sequence[bool]
    lengths: Sequence[int]
    logprob_sums: Sequence[float]
    answers: Sequence[int | None] | None = None

    def __post_init__(self) -> None:
        fields = [self.correct, self.statuses, self.truncated, self.lengths, self.logprob_sums]
        numbers = [len(field) for field in fields] + ([] if self.answers is None else [len(self.answers)])
        if len(set(numbers)) != 1 or not numbers[0]:
            raise ValueError(
                f"problem {self.index} needs one or more completions, each with every field, got {numbers}"
            )

    @property
    def samples(self) -> int:
        """n."""
        return len(self.correct)


def outcomes_of(rollouts: "RolloutBatch") -> list[ProblemOutcome]:
    """The outcomes of judged rollouts; the index of a problem is that of its prompt."""
    answers = rollouts.answers or [None] * len(rollouts.groups)
    return [
        ProblemOutcome(
            index=prompt.index,
            correct=[judged.verdict.correct and not judged.completion.truncated for judged in group],
            statuses=[judged.verdict.status for judged in group],
            truncated=[judged.completion.truncated for judged in group],
            lengths=[len(judged.completion.token_ids) for judged in group],
            logprob_sums=[fsum(judged.completion.logprobs) for judged in group],
            answers=classes,
        )
        for prompt, group, classes in zip(rollouts.prompts, rollouts.groups, answers, strict=True)
    ]


@dataclass(frozen=True)
class MetricChoice:
    """The metrics of a set beside those of every set.

    Attributes:
        pass_ks: The k of each pass@k, at most the number of samples.
        majority_ks: The k of each maj@k, at most the number of samples.
        greedy: Whether the set is sampled once at temperature 0. Its accuracy is then called `greedy`; pass@k and maj@k
            would be the same number again, and the log-probability of the likeliest token tells nothing about entropy,
            so they are left out.
    """

    pass_ks: tuple[int, ...] = ()
    majority_ks: tuple[int, ...] = ()
    greedy: bool = False

    def names(self, samples: int) -> list[str]:
        """Names of the metrics in their order, for n samples of a problem."""
        shares = ["truncated", "no_answer", "failed", "length"]
        if self.greedy:
            return ["greedy", *shares]
        rates = [f"pass@{k}" for k in self.pass_ks] + [f"maj@{k}" for k in self.majority_ks]
        return [f"avg@{samples}", *rates, *shares, "entropy_estimate"]

    def values(self, outcome: ProblemOutcome) -> list[float]:
        """The values of one problem in the order of `names`; NaN where it has none (maj@k without classes)."""
        n, right = outcome.samples, sum(outcome.correct)
        tokens = sum(outcome.lengths)
        shares = [
            sum(outcome.truncated) / n,
            sum(status is Status.NO_ANSWER for status in outcome.statuses) / n,
            sum(status.failed for status in outcome.statuses) / n,
            tokens / n,
        ]
        if self.greedy:
            return [right / n, *shares]
        passes = [pass_at_k(n, right, k) for k in self.pass_ks]
        votes = [
            nan if outcome.answers is None else maj_at_k(outcome.answers, outcome.correct, k) for k in self.majority_ks
        ]
        return [right / n, *passes, *votes, *shares, (0.0 - fsum(outcome.logprob_sums)) / tokens]  # and never -0.0


def estimate(name: str, values: Sequence[float]) -> Estimate:
    """The mean of a metric over problems, at least one."""
    if name not in UNITS:
        return share_interval(values)
    found = mean_interval(values)
    return found._replace(low=max(found.low, 0.0))  # tokens and nats are not below 0


def estimates(values: Mapping[str, Sequence[float]]) -> dict[str, Estimate]:
    """The mean of every metric over the problems that have a value; metrics without any are left out."""
    known = {name: [value for value in own if not isnan(value)] for name, own in values.items()}
    return {name: estimate(name, own) for name, own in known.items() if own}
