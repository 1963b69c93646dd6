"""Warnings, given once, about rollouts from which nothing can be learned."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from asymgrpo_app.rollout.types import RolloutBatch
from asymgrpo_app.runtime.console import say

_MOST_TRUNCATED = 0.5
_ALL_WRONG = (
    "the verifier may not find the answers (the samples in TensorBoard show them), or the problems are too hard for "
    "the policy"
)


@dataclass(frozen=True)
class _Counts:
    completions: int
    truncated: int
    right: int
    limit: int


class DegenerateWarnings:
    """Warns once if over half of a step's completions were truncated, and once if all rewards were equal."""

    def __init__(self) -> None:
        self._said: set[str] = set()

    def look_at(self, rollouts: RolloutBatch, step: int, gather: Callable[[Any], list[Any]]) -> None:
        """Check one step, counted from 1; every rank takes part."""
        if len(self._said) == 2:
            return
        counts = gather(_count(rollouts))
        total, right = sum(c.completions for c in counts), sum(c.right for c in counts)
        truncated = sum(c.truncated for c in counts)
        if truncated > _MOST_TRUNCATED * total:
            self._say(
                "truncated",
                f"{truncated:,} of the {total:,} completions of step {step} were cut at rollout.max_completion_tokens "
                f"({counts[0].limit:,}), and a completion that is cut is never right. Raise the limit, or ask for "
                "shorter answers in the template.",
            )
        if right in (0, total):
            which = "right" if right else "wrong"
            why = "these problems are too easy for the policy" if right else _ALL_WRONG
            self._say(
                "equal",
                f"all {total:,} completions of step {step} were judged {which}, so the step taught nothing: {why}.",
            )

    def _say(self, kind: str, text: str) -> None:
        if kind not in self._said:
            self._said.add(kind)
            say(f"WARNING: {text}")


def _count(rollouts: RolloutBatch) -> _Counts:
    judged = [each for group in rollouts.groups for each in group]
    return _Counts(
        completions=len(judged),
        truncated=sum(each.completion.truncated for each in judged),
        right=int(rollouts.rewards().sum()),
        limit=rollouts.settings.max_tokens,
    )
