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
        rewards, valid = rollouts.rewards(), rollouts.valid().bool()
        counts = gather((len(cut), sum(cut), int(valid.sum()), int(rewards[valid].sum())))
        total, truncated, counted, right = map(sum, zip(*counts, strict=True))
        if truncated > _MOST_TRUNCATED * total:
            what = "is never right" if rollouts.truncated_are_wrong else "is left out (rollout.truncated: exclude)"
            self._say(
                "truncated",
                f"{truncated:,} of the {total:,} completions of step {step} were cut at rollout.max_completion_tokens "
                f"({rollouts.settings.max_tokens:,}), and a completion that is cut {what}. Raise the limit, or ask for "
                "shorter answers in the template.",
            )
        if right in (0, counted):
            self._say("equal", _all_alike(total, counted, right, step))

    def _say(self, kind: str, text: str) -> None:
        if kind not in self._said:
            self._said.add(kind)
            say(f"WARNING: {text}")


def _all_alike(total: int, counted: int, right: int, step: int) -> str:
    """Says that all completions that count were judged alike, or that none counts."""
    if not counted:
        return (
            f"all {total:,} completions of step {step} were left out (rollout.truncated or rollout.verifier_failure: "
            "exclude), so the step taught nothing."
        )
    which = f"all {total:,} completions of step {step}"
    if counted < total:
        which = f"all {counted:,} completions of step {step} that were not left out, of {total:,},"
    why = "right, so the step taught nothing: these problems are too easy for the policy"
    if not right:
        why = (
            "wrong, so the step taught nothing: the verifier may not find the answers (the samples in TensorBoard "
            "show them), or the problems are too hard for the policy"
        )
    return f"{which} were judged {why}."
