"""Checks that the sampler holds the policy's weights: it could otherwise sample from stale ones unnoticed."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from asymgrpo_app.errors import RunError, require
from asymgrpo_app.rollout.digest import WeightDigest

# Types of models whose every weight vLLM holds as one number, however it fuses and repacks them; a test starts each.
ONE_TO_ONE = frozenset(("gemma", "gemma3_text", "granite", "llama", "mistral", "phi3", "qwen2", "qwen3"))

_CAUSES = (
    "Likely causes: weights that did not reach the sampler (its version, a plugin, a changed engine option), or a "
    "model whose sampler computes something else than transformers does."
)


@dataclass(frozen=True)
class CanaryConfig:
    """Checks after each push of weights to the sampler.

    Args:
        digest: Read the weights back from the sampler and compare them with the policy's, bit by bit.
        completions: Number of completions of the next generation whose log-probabilities are compared with the
            trainer's.
        max_logprob_diff: Largest mean absolute difference of a token's log-probability between the two, in nats; null:
            0.001 if the sampler computes in float32, 0.2 in 16 bits.
    """

    digest: bool = True
    completions: int = 4
    max_logprob_diff: float | None = None

    def __post_init__(self) -> None:
        require(self.completions >= 0, "rollout.canary.completions", self.completions, "0 or more")
        limit = self.max_logprob_diff
        require(limit is None or limit > 0, "rollout.canary.max_logprob_diff", limit, "> 0 or null")

    def limit(self, dtype: str) -> float:
        """The limit on the log-probability difference for a sampler that computes in `dtype`."""
        return self.max_logprob_diff or (1e-3 if dtype == "float32" else 0.2)


def check_digest(expected: WeightDigest, found: WeightDigest, step: int) -> None:
    """Stop the run unless the sampler's digest is the policy's.

    Raises:
        RunError: They differ; the message has both.
    """
    if expected != found:
        raise RunError(
            f"after {step} RL steps the sampler does not hold the policy's weights: their digest is {expected}, the "
            f"sampler's {found}. {_CAUSES}"
        )


def check_logprobs(trainer: Sequence[Tensor], sampler: Sequence[Tensor], limit: float, step: int) -> float:
    """Compare the trainer's log-probabilities of sampled tokens with the sampler's.

    Args:
        trainer: Per completion the trainer's log-probabilities, [length].
        sampler: Per completion the sampler's log-probabilities, [length].
        limit: Largest mean absolute difference, in nats.
        step: RL steps completed, for the message.

    Returns:
        The mean absolute difference in nats.

    Raises:
        RunError: It is above the limit; the message has both means.
    """
    ours, theirs = torch.cat(list(trainer)).double(), torch.cat(list(sampler)).double()
    gap = float((ours - theirs).abs().mean())
    if not gap <= limit:
        raise RunError(
            f"after {step} RL steps the sampler's log-probabilities are not the policy's: the mean over {len(ours)} "
            f"tokens is {float(theirs.mean()):.4f} in the sampler and {float(ours.mean()):.4f} in the trainer, and "
            f"they differ by {gap:.2g} a token, more than the limit {limit:g} (rollout.canary.max_logprob_diff). "
            f"{_CAUSES}"
        )
    return gap
