"""Warnings, given once, about rollouts from which nothing can be learned."""

from collections.abc import Callable
from typing import Any

from asymgrpo_app.rollout.types import RolloutBatch
from asymgrpo_app.runtime.console import say

_MOST_TRUNCATED = 0.5


class DegenerateWarnings:
    """Warns once if over half of a step's completions were truncated, and once if all rewards were equal."""

    def __init__(self) -> None:
        self._said: set[str] = set()

    def look_at(self, rollouts: RolloutBatch, step: int, gather: Callable[[Any], list[Any]]) -> None:
        """Check one step, counted from 1; every rank takes part."""
        if len(self._said) == 2:
            return
        cut = [judged.completion.truncated for _, _, judged in rollouts.completions()]
        counts = gather((len(cut), sum(cut), int(rollouts.rewards().sum())))
        total, truncated, right = map(sum, zip(*counts, strict=True))
        if truncated > _MOST_TRUNCATED * total:
            self._say(
                "truncated",
                f"{truncated:,} of the {total:,} completions of step {step} were cut at rollout.max_completion_tokens "
                f"({rollouts.settings.max_tokens:,}), and a completion that is cut is never right. Raise the limit, or "
                "ask for shorter answers in the template.",
            )
        if right in (0, total):
            why = "right, so the step taught nothing: these problems are too easy for the policy"
            if not right:
                why = (
                    "wrong, so the step taught nothing: the verifier may not find the answers (the samples in "
                    "TensorBoard show them), or the problems are too hard for the policy"
                )
            self._say("equal", f"all {total:,} completions of step {step} were judged {why}.")

    def _say(self, kind: str, text: str) -> None:
        if kind not in self._said:
            self._said.add(kind)
            say(f"WARNING: {text}")
