"""Guard against updates whose loss or gradient is not finite."""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from asymgrpo_app.errors import RunError
from asymgrpo_app.parallel.ranks import gather_objects, is_first_rank
from asymgrpo_app.parallel.sharding import own_part
from asymgrpo_app.runtime.console import say
from asymgrpo_app.update.experience import Experience

FOLDER = "non_finite"


@dataclass
class SkippedUpdates:
    """Counter of updates that were skipped because their loss or gradient was not finite.

    Attributes:
        limit: Number in a row that stops the run.
        in_a_row: Number in a row up to now; saved in checkpoints.
        in_this_step: Number in the current RL step.
    """

    limit: int
    in_a_row: int = 0
    in_this_step: int = field(default=0, compare=False)

    def leave_out(
        self,
        policy: nn.Module,
        experience: Experience,
        members: Sequence[int],
        health: "UpdateHealth",
        *,
        step: int,
        run_dir: str | Path,
    ) -> None:
        """Count one more skipped update and tell the user; every rank takes part.

        Args:
            policy: The model with its gradients.
            experience: Experience of the step.
            members: The update's completions on this rank.
            health: Losses and gradient norm of the update.
            step: Number of the RL step, from 1.
            run_dir: Folder of the run: `non_finite/step-<step>.pt` in it is the report when the run has to stop, which
                `torch.load(weights_only=True)` reads.

        Raises:
            RunError: `limit` updates in a row were skipped.
        """
        self.in_a_row += 1
        self.in_this_step += 1
        what = "loss" if math.isfinite(health.norm) else "gradient"
        say(
            f"The {what} of RL step {step} is not finite: this update is left out, number {self.in_a_row} in a row "
            f"(model.max_skipped_updates: {self.limit})."
        )
        if self.in_a_row >= self.limit:
            path = Path(run_dir) / FOLDER / f"step-{step:08d}.pt"
            ranks = gather_objects(describe(policy, experience, members, health))
            if is_first_rank():
                path.parent.mkdir(parents=True, exist_ok=True)
                torch.save({"step": step, "grad_norm": health.norm, "ranks": ranks}, path)
            which = "An update" if self.limit == 1 else f"{self.limit} updates in a row"
            raise RunError(
                f"{which} had a loss or a gradient that is not finite (RL step {step}, gradient norm {health.norm}); "
                f"the weights are as they were before, and the batch is in {path}: a lower learning rate or precision "
                "32-true may help."
            )

    def reset(self) -> None:
        """Set the number in a row to 0, after an update that was made."""
        self.in_a_row = 0

    def count_of_step(self) -> int:
        """Number of updates that the step skipped; resets it to 0 for the next step."""
        number, self.in_this_step = self.in_this_step, 0
        return number


@dataclass(frozen=True)
class UpdateHealth:
    """Losses and gradient norm of an update before it is made.

    Attributes:
        norm: Gradient norm before clipping, over all ranks.
        losses: [M] the loss of each of this rank's micro-batches, before it is divided.
        losses_finite: Whether the losses of all ranks are finite.
    """

    norm: float
    losses: Tensor
    losses_finite: bool

    @property
    def finite(self) -> bool:
        """Whether the update may be made; the same on every rank."""
        return self.losses_finite and math.isfinite(self.norm)


def not_finite(tensors: Iterable[tuple[str, Tensor | None]]) -> list[str]:
    """Names of the tensors with a value that is not finite; of sharded tensors, this rank's part is checked."""
    return [name for name, tensor in tensors if tensor is not None and not bool(own_part(tensor).isfinite().all())]


def describe(policy: nn.Module, experience: Experience, members: Sequence[int], health: UpdateHealth) -> dict[str, Any]:
    """This rank's part of the report on an update that is not finite, as tensors and plain values."""
    lengths = experience.lengths.tolist()
    rollout, old, entropy = (
        column.cpu().split(lengths)
        for column in (experience.rollout_logprobs, experience.old_logprobs, experience.old_entropy)
    )
    return {
        "losses": health.losses.cpu(),
        "gradients_not_finite": not_finite((name, parameter.grad) for name, parameter in policy.named_parameters()),
        "weights_not_finite": not_finite(policy.named_parameters()),
        "samples": [
            {
                "prompt_token_ids": torch.tensor(experience.sequences[member].prompt),
                "completion_token_ids": torch.tensor(experience.sequences[member].completion),
                "advantage": float(experience.advantages[member]),
                "correct": bool(experience.correct[member]),
                "valid": bool(experience.valid[member]),
                "update": int(experience.updates[member]),
                "rollout_logprobs": rollout[member].clone(),
                "old_logprobs": old[member].clone() if experience.scored[member] else None,
                "old_entropy": entropy[member].clone() if experience.scored[member] else None,
            }
            for member in members
        ],
    }
