"""The guard against updates whose loss or gradient is not finite."""

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
    """Updates that were left out because they were not finite.

    Attributes:
        limit: So many of them in a row stop the run.
        in_a_row: How many it were up to now; part of what a resumed run goes on with.
        in_this_step: How many of them in the current RL step.
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
        """Count one more, and say so; every rank takes part.

        Args:
            policy: With the gradient.
            experience: The step's.
            members: The update's completions on this rank.
            health: What is known of the update.
            step: Number of the RL step, from 1.
            run_dir: Where the report goes when the run has to stop.

        Raises:
            RunError: It was one too many in a row.
        """
        self.in_a_row += 1
        self.in_this_step += 1
        what = "loss" if math.isfinite(health.norm) else "gradient"
        say(
            f"The {what} of RL step {step} is not finite: this update is left out, number {self.in_a_row} in a row "
            f"(model.max_skipped_updates: {self.limit})."
        )
        if self.in_a_row >= self.limit:
            ranks = gather_objects(describe(policy, experience, members, health))
            path = write_report(run_dir, step, health.norm, ranks if is_first_rank() else [])
            raise stop_because(self.limit, step, health.norm, path)

    def reset(self) -> None:
        """An update was made."""
        self.in_a_row = 0

    def count_of_step(self) -> int:
        """How many updates the step left out; the next step begins at 0."""
        number, self.in_this_step = self.in_this_step, 0
        return number


@dataclass(frozen=True)
class UpdateHealth:
    """What is known of an update before it is made.

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
    """Names of the tensors that hold a value which is not finite, of sharded ones in this rank's part."""
    return [name for name, tensor in tensors if tensor is not None and not bool(own_part(tensor).isfinite().all())]


def describe(policy: nn.Module, experience: Experience, members: Sequence[int], health: UpdateHealth) -> dict[str, Any]:
    """This rank's part of an update that is not finite, as tensors and plain values."""
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
                "prompt_token_ids": torch.tensor(experience.sequences[place].prompt),
                "completion_token_ids": torch.tensor(experience.sequences[place].completion),
                "advantage": float(experience.advantages[place]),
                "correct": bool(experience.correct[place]),
                "valid": bool(experience.valid[place]),
                "update": int(experience.updates[place]),
                "rollout_logprobs": rollout[place].clone(),
                "old_logprobs": old[place].clone() if experience.scored[place] else None,
                "old_entropy": entropy[place].clone() if experience.scored[place] else None,
            }
            for place in members
        ],
    }


def write_report(run_dir: str | Path, step: int, norm: float, ranks: Sequence[dict[str, Any]]) -> Path:
    """Write what the ranks know of the update that stopped the run; `torch.load(weights_only=True)` reads it.

    Args:
        run_dir: The run's folder.
        step: Number of the RL step, from 1.
        norm: Of the gradient.
        ranks: What `describe` gave on each; none on a rank that does not write.

    Returns:
        `<run_dir>/non_finite/step-<step>.pt`.
    """
    path = Path(run_dir) / FOLDER / f"step-{step:08d}.pt"
    if ranks:
        path.parent.mkdir(parents=True, exist_ok=True)
        torch.save({"step": step, "grad_norm": norm, "ranks": list(ranks)}, path)
    return path


def stop_because(limit: int, step: int, norm: float, path: Path) -> RunError:
    """What ends the run."""
    which = "An update" if limit == 1 else f"{limit} updates in a row"
    place = f"RL step {step}" if limit == 1 else f"the last in RL step {step}"
    return RunError(
        f"{which} had a loss or a gradient that is not finite ({place}, gradient norm {norm}); the weights are as they "
        f"were before, and the batch is in {path}: a lower learning rate or precision 32-true may help."
    )
