"""Evaluation sets as a config names them."""

from dataclasses import dataclass
from math import inf

from asymgrpo_app.errors import UserError, at_least_1
from asymgrpo_app.evaluation.metrics import SetMetrics
from asymgrpo_app.prompts.base import PromptSource
from asymgrpo_app.prompts.templates import Template


@dataclass
class EvaluationSet:
    """A named set of problems and how it is sampled.

    Args:
        source: Source of the problems.
        limit: Number of problems, from the first on; null: all (of a finite source).
        samples: Completions per problem: the k of avg@k.
        pass_at: The k of each pass@k to report, at most `samples`; null: `samples`.
        temperature: Sampling temperature; 0 is greedy.
        top_p: Nucleus size in (0, 1].
        template: Template that renders the problems; null: `data.template`.
        majority_at: The k of each maj@k to report, at most `samples`; null: `samples`, from three samples on.
        max_completion_tokens: Longest completion in tokens; null: `rollout.max_completion_tokens`.
    """

    source: PromptSource
    limit: int | None = None
    samples: int = 8
    pass_at: list[int] | None = None
    temperature: float = 1.0
    top_p: float = 1.0
    template: Template | None = None
    majority_at: list[int] | None = None
    max_completion_tokens: int | None = None

    def __post_init__(self) -> None:
        for name in ("samples", "limit", "max_completion_tokens"):
            if (value := getattr(self, name)) is not None:
                at_least_1(f"{name} of an evaluation set", value)
        if not 0 <= self.temperature < inf or not 0 < self.top_p <= 1:
            raise UserError(
                "an evaluation set needs a finite temperature >= 0 and top_p in (0, 1], got "
                f"{self.temperature}, {self.top_p}."
            )
        for name, ks in {"pass_at": self.ks, "majority_at": self.majority_ks}.items():
            if too_large := [k for k in ks if not 1 <= k <= self.samples]:
                raise UserError(
                    f"{name} of an evaluation set must lie between 1 and samples ({self.samples}), got {too_large}."
                )

    @property
    def ks(self) -> list[int]:
        """The k of each pass@k."""
        return [self.samples] if self.pass_at is None else self.pass_at

    @property
    def majority_ks(self) -> list[int]:
        """The k of each maj@k."""
        if self.majority_at is not None:
            return self.majority_at
        return [self.samples] if self.samples > 2 else []  # the majority of two is either of them

    def metrics(self) -> SetMetrics:
        """An empty accumulator of this set's metrics."""
        return SetMetrics(self.ks, self.majority_ks, greedy=self.temperature == 0 and self.samples == 1)
