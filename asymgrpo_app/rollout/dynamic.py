"""Bounded dynamic sampling: degenerate groups are replaced by fresh ones (DAPO, arXiv 2503.14476)."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from asymgrpo_app.algorithm.groups import GroupRewards
from asymgrpo_app.algorithm.metrics import Mean, ratio
from asymgrpo_app.errors import at_least_1
from asymgrpo_app.prompts.base import EncodedPrompt
from asymgrpo_app.rollout.types import JudgedCompletion, RolloutBatch

Drawn = tuple[list[EncodedPrompt], list[list[JudgedCompletion]]]
"""Fresh prompts with their judged groups."""


@dataclass(frozen=True)
class DynamicSampling:
    """Dynamic sampling: replacement of degenerate groups (all right or all wrong) by fresh ones.

    Args:
        max_rounds: Most rounds of replacement per step, at least 1. Groups that are still degenerate after the last one
            stay in the step with advantage 0; their tokens stay in the divisor, so the step is weaker, never wrong.
    """

    max_rounds: int = 4

    def __post_init__(self) -> None:
        at_least_1("rollout.dynamic_sampling.max_rounds", self.max_rounds)


def refill(
    rollouts: RolloutBatch, draw: Callable[[int, Sequence[EncodedPrompt]], Drawn], max_rounds: int
) -> dict[str, Mean]:
    """Replace degenerate groups in place, each slot on its own, so the outcome does not depend on the split over ranks.

    Args:
        rollouts: First rollouts of the step; prompts and groups are replaced in place.
        draw: Draws replacements, from the round (from 1) and the prompts that they replace.
        max_rounds: Most rounds.

    Returns:
        Metrics as sums and counts: `dynamic_sampling/acceptance_rate` (share of the sampled groups that are not
        degenerate), `extra_completions` per prompt of the step, `unfilled` (share of the step's groups that stayed
        degenerate) and `rounds`.
    """
    slots, replaced, rounds = len(rollouts.groups), 0, 0
    while (empty := _degenerate_slots(rollouts)) and rounds < max_rounds:
        rounds += 1
        prompts, groups = draw(rounds, [rollouts.prompts[slot] for slot in empty])
        for slot, prompt, group in zip(empty, prompts, groups, strict=True):
            rollouts.prompts[slot], rollouts.groups[slot] = prompt, group
        replaced += len(empty)
    return {
        "dynamic_sampling/acceptance_rate": ratio(slots - len(empty), slots + replaced),
        "dynamic_sampling/extra_completions": ratio(replaced * len(rollouts.groups[0]), slots),
        "dynamic_sampling/unfilled": ratio(len(empty), slots),
        "dynamic_sampling/rounds": ratio(rounds, 1),
    }


def _degenerate_slots(rollouts: RolloutBatch) -> list[int]:
    degenerate = GroupRewards(rollouts.rewards(), rollouts.valid()).degenerate
    return [slot for slot, empty in enumerate(degenerate.tolist()) if empty]
