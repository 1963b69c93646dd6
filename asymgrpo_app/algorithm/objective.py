"""Base class of policy losses, with the types of their inputs and outputs.

Completion tokens are packed: 1-D tensors over the T completion tokens of S completions, with `sequence_ids` in 0..S-1
as the index of each token's completion. A completion is never split over two micro-batches.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor

from asymgrpo_app.algorithm.kl import k3
from asymgrpo_app.algorithm.metrics import Mean, mean_of
from asymgrpo_app.errors import UserError


@dataclass
class TokenBatch:
    """One micro-batch of T completion tokens of S whole completions; log-probabilities are in nats.

    Attributes:
        logprobs: [T] log-probability of each token under the current policy, at the sampling temperature; carries the
            gradient.
        entropy: [T] entropy of the full next-token distribution; carries a gradient only where a bonus needs it.
        old_logprobs: [T] log-probabilities under pi_old, the policy at the start of the step.
        advantages: [T] float32, constant.
        sequence_ids: [T] int64 in 0..S-1.
        num_sequences: S.
        rollout_logprobs: [T] log-probabilities that the sampler reported.
        ref_logprobs: [T] log-probabilities under the reference policy, or None where no KL term needs them.
        selection: The result of `Objective.prepare` for these tokens, each [T].
    """

    logprobs: Tensor
    entropy: Tensor
    old_logprobs: Tensor
    advantages: Tensor
    sequence_ids: Tensor
    num_sequences: int
    rollout_logprobs: Tensor
    ref_logprobs: Tensor | None = None
    selection: dict[str, Tensor] = field(default_factory=dict)


@dataclass
class UpdateTokens:
    """This rank's tokens of one optimizer update, with the values that are constant during it.

    Attributes:
        old_logprobs: [T] log-probabilities under pi_old.
        advantages: [T] float32.
        sequence_ids: [T] int64.
        token_keys: [T] float64 uniform in [0, 1), a pure function of run seed, step, completion and position. The only
            source of randomness, so that a choice does not depend on ranks or micro-batches.
        all_gather: Takes a 1-D tensor of this rank, of any length, and returns those of all ranks, concatenated; the
            identity on one process. A collective call: every rank makes it equally often.
    """

    old_logprobs: Tensor
    advantages: Tensor
    sequence_ids: Tensor
    token_keys: Tensor
    all_gather: Callable[[Tensor], Tensor]


@dataclass
class ObjectiveOutput:
    """The losses of a micro-batch's tokens.

    Attributes:
        losses: [T], with gradient; not yet weighted or divided (see `aggregation`).
        metrics: Means to log, by full tag.
    """

    losses: Tensor
    metrics: dict[str, Mean]


class Objective(ABC):
    """Base class of policy losses, per token from log-probabilities and advantages; subclass it for your own.

    Constructor arguments are plain typed keyword arguments, so that a config can name the class by `class_path`.

    Attributes:
        needs_old_logprobs: True if `prepare` reads `old_logprobs`, which then are computed for the whole update before
            its first micro-batch.
        zero_without_advantage: True if the loss of a token and its gradient are 0 wherever its advantage is 0.
            Zero-advantage prompts (all completions have advantage 0) then need no backward pass.
    """

    needs_old_logprobs: bool = False
    zero_without_advantage: bool = False

    def __init_subclass__(cls, **kwargs: Any) -> None:
        """`zero_without_advantage` is not inherited by a class with losses of its own."""
        super().__init_subclass__(**kwargs)
        if "token_losses" in vars(cls):
            cls.zero_without_advantage = vars(cls).get("zero_without_advantage", False)

    def prepare(self, update: UpdateTokens) -> dict[str, Tensor]:
        """Select tokens by statistics over the whole update; returns per-token tensors by name, each [T].

        Called once per optimizer update, on every rank. Micro-batches get their part of it as `TokenBatch.selection`.
        """
        del update
        return {}

    @abstractmethod
    def token_losses(self, batch: TokenBatch) -> ObjectiveOutput:
        """The loss of every token, [T], to be minimized.

        A token's loss may depend on the other tokens of its completion, never on other completions: micro-batches are
        cut between completions, and the cut must not change the gradient.
        """


def checked_losses(objective: Objective, batch: TokenBatch) -> ObjectiveOutput:
    """Call an objective, which may be a user's own, and check that it returns one loss per token.

    Raises:
        UserError: The losses have another shape; a mean, say, would make the gradient depend on the micro-batches.
    """
    output = objective.token_losses(batch)
    if output.losses.shape != batch.logprobs.shape:
        raise UserError(
            f"losses of {type(objective).__name__} have the shape {list(output.losses.shape)}: "
            f"return one per token, {list(batch.logprobs.shape)}"
        )
    return output


def regularized(output: ObjectiveOutput, batch: TokenBatch, *, kl_coef: float, entropy_coef: float) -> ObjectiveOutput:
    """Add kl_coef * k3 and subtract entropy_coef * entropy on every token, those with advantage 0 included.

    Apply it after any sampler correction, whose weights belong to the policy term alone.

    Args:
        output: Result of the objective.
        batch: The same micro-batch; `ref_logprobs` is read only for a KL coefficient other than 0.
        kl_coef: Weight of the KL penalty to the reference policy, >= 0.
        entropy_coef: Weight of the entropy bonus, >= 0.

    Returns:
        The losses with both terms, and the metric `actor/kl_loss` (the mean of k3, not multiplied by the coefficient)
        where there is a KL term.

    Raises:
        ValueError: A KL coefficient without reference log-probabilities.
    """
    losses, metrics = output.losses, dict(output.metrics)
    if kl_coef != 0:
        if batch.ref_logprobs is None:
            raise ValueError(f"kl_coef is {kl_coef} but the batch has no ref_logprobs")
        divergence = k3(batch.logprobs, batch.ref_logprobs)
        losses = losses + kl_coef * divergence
        metrics["actor/kl_loss"] = mean_of(divergence)
    if entropy_coef != 0:
        losses = losses - entropy_coef * batch.entropy
    return ObjectiveOutput(losses, metrics)
