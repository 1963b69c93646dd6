"""Shaping of a step's advantages by length and form."""

from collections.abc import Sequence

import torch
from torch import Tensor

from asymgrpo_app.algorithm.groups import GroupRewards
from asymgrpo_app.algorithm.metrics import mean_of
from asymgrpo_app.algorithm.overlong import overlong_penalty, shaped_advantages
from asymgrpo_app.errors import RunError
from asymgrpo_app.metrics import StepMetrics
from asymgrpo_app.rewards.shaping import ShapingTerm
from asymgrpo_app.rollout.types import RolloutBatch


def shape(
    advantages: Tensor,
    rollouts: RolloutBatch,
    groups: GroupRewards,
    metrics: StepMetrics,
    *,
    overlong_buffer: int | None,
    terms: Sequence[ShapingTerm],
) -> Tensor:
    """Add the overlong penalty and the shaping terms to advantages whose p and sign come from correctness alone.

    Args:
        advantages: [P, G] of the estimator.
        rollouts: The completions.
        groups: Their verdicts.
        metrics: Receives the means of what is added.
        overlong_buffer: Length in tokens of the soft penalty's ramp; None: no penalty.
        terms: Shaping terms, which score the form of a completion.

    Returns:
        [P, G].

    Raises:
        RunError: A term is not finite.
    """
    total = torch.zeros_like(advantages)
    if overlong_buffer is not None:
        lengths = torch.tensor([[len(c.completion.token_ids) for c in group] for group in rollouts.groups])
        penalties = overlong_penalty(lengths, rollouts.settings.max_tokens, overlong_buffer)
        metrics.add("advantages/overlong_penalty", mean_of(penalties, groups.valid))
        total += penalties
    if terms:
        sums = [[sum(term.value(c.text) for term in terms) for c in group] for group in rollouts.groups]
        values = torch.tensor(sums, dtype=total.dtype)
        if not values.isfinite().all():
            raise RunError("A term of model.shaping gave a value that is not finite.")
        metrics.add("advantages/shaping", mean_of(values, groups.valid))
        total += values
    return shaped_advantages(advantages, total, groups.valid)
