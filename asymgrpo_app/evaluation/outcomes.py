"""The outcome of an evaluation on one problem, and the metrics computed from it."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import fsum, isnan, nan
from typing import TYPE_CHECKING, Annotated

from pydantic import Field, StrictBool, StrictFloat, StrictInt

from asymgrpo_app.evaluation.estimators import maj_at_k, pass_at_k
from asymgrpo_app.evaluation.intervals import Estimate, mean_interval, share_interval
from asymgrpo_app.rewards.base import Status

if TYPE_CHECKING:  # compare needs no torch
    from asymgrpo_app.rollout.types import RolloutBatch

UNITS = {"length": "tokens", "entropy_estimate": "nats"}
"""Units of the metrics that are not shares."""
ACCURACIES = ("avg", "greedy", "pass", "maj")
"""Metrics of right and wrong, without their `@k`."""


Number = Annotated[StrictInt, Field(ge=0, le=2**53)]
Real = Annotated[StrictFloat, Field(ge=-1e15, le=1e15, allow_inf_nan=False)]
"""Numbers in files are far below what their squares and sums overflow at."""
Key = tuple[str, int, int]
"""Set, index and sample, which identify a completion within its file."""


@dataclass(frozen=True)
class Prediction:
    """One completion of an evaluation; a line of a prediction file.

    Attributes:
        set: Name of the evaluation set.
        uid: Name of the problem.
        index: Index of the problem in the set.
        sample: Number of the completion, from 0.
        completion: Its text.
        correct: Whether it is right; a truncated one never is.
        status: Status of the verdict: `ok`, `no_answer`, `timeout` or `error`.
        truncated: Whether the length limit cut it.
        length: Tokens, the end token included.
        logprob_sum: Sum of the sampler's log-probabilities of its tokens, in nats.
        answer_class: Number of its answer among the different answers to the problem; None without an answer, or
            without a notion of equal answers.
    """

    set: str
    uid: str
    index: Number
    sample: Number
    completion: str
    correct: StrictBool
    status: Status
    truncated: StrictBool
    length: Annotated[Number, Field(ge=1)]
    logprob_sum: Real
    answer_class: Number | None

    @property
    def key(self) -> Key:
        """The set, index and sample, which identify it within the file."""
        return self.set, self.index, self.sample


@dataclass(frozen=True)
class ProblemOutcome:
    """The n completions of one problem, at least one.

    Attributes:
        completions: [n] completions. An outcome that is added twice under one index counts once.
        has_classes: Whether the verifier has a notion of equal answers.
    """

    completions: Sequence[Prediction]
    has_classes: bool


def outcomes_of(set_name: str, rollouts: "RolloutBatch") -> list[ProblemOutcome]:
    """The outcomes of judged rollouts of an evaluation set, problem by problem."""
    answers = rollouts.answers or [None] * len(rollouts.groups)
    return [
        ProblemOutcome(
            [
                Prediction(
                    set=set_name,
                    uid=prompt.prompt.uid,
                    index=prompt.index,
                    sample=sample,
                    completion=judged.text,
                    correct=judged.verdict.correct and not judged.completion.truncated,
                    status=judged.verdict.status,
                    truncated=judged.completion.truncated,
                    length=len(judged.completion.token_ids),
                    logprob_sum=fsum(judged.completion.logprobs),
                    answer_class=None if classes is None else classes[sample],
                )
                for sample, judged in enumerate(group)
            ],
            has_classes=classes is not None,
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
        completions = outcome.completions
        n, tokens = len(completions), sum(own.length for own in completions)
        correct = [own.correct for own in completions]
        shares = [
            sum(own.truncated for own in completions) / n,
            sum(own.status is Status.NO_ANSWER for own in completions) / n,
            sum(own.status.failed for own in completions) / n,
            tokens / n,
        ]
        accuracy = sum(correct) / n
        if self.greedy:
            return [accuracy, *shares]
        passes = [pass_at_k(n, sum(correct), k) for k in self.pass_ks]
        answers = [own.answer_class for own in completions]
        votes = [maj_at_k(answers, correct, k) if outcome.has_classes else nan for k in self.majority_ks]
        entropy = (0.0 - fsum(own.logprob_sum for own in completions)) / tokens  # and never -0.0
        return [accuracy, *passes, *votes, *shares, entropy]


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
