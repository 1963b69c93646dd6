"""Speed and memory of a step."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import psutil
import torch

from asymgrpo_app.rollout.types import RolloutBatch
from asymgrpo_app.update.peak_flops import peak_flops

if TYPE_CHECKING:  # transformers takes seconds to import, which a wrong key should not wait for
    from transformers import PreTrainedModel

_GB = 1024**3


@dataclass
class PassedTokens:
    """Tokens that went through the policy in a step's updates on this rank; a shared prompt computed once counts once.

    Attributes:
        forward: In forward passes.
        backward: In backward passes.
    """

    forward: int = 0
    backward: int = 0


def performance(
    policy: PreTrainedModel,
    rollouts: RolloutBatch,
    passed: PassedTokens,
    *,
    step_seconds: float,
    update_seconds: float,
    dtype: torch.dtype,
) -> dict[str, float]:
    """The metrics `perf/*` of one rank.

    Args:
        policy: The model that is trained.
        rollouts: Rollouts of the step.
        passed: Tokens that went through the policy's updates.
        step_seconds: Seconds of the whole step.
        update_seconds: Seconds of the policy update.
        dtype: Compute type of the policy.

    Returns:
        `throughput` in tokens (prompt and completion, each completion with its prompt) per second and process,
        `cpu_memory_gb` (resident memory of the process, GiB), and on a GPU `max_memory_gb` (peak of torch's
        allocations, GiB) and, where the device's peak is known, `mfu`: FLOPs of the passed tokens per second of
        the update as a share of that peak. Recomputation by gradient checkpointing does not count.
    """
    tokens = sum(len(p.token_ids) + len(judged.completion.token_ids) for p, _, judged in rollouts.completions())
    values = {
        "perf/throughput": tokens / step_seconds,
        "perf/cpu_memory_gb": psutil.Process().memory_info().rss / _GB,
    }
    device = next(policy.parameters()).device
    if device.type == "cuda":
        values["perf/max_memory_gb"] = torch.cuda.max_memory_allocated(device) / _GB
        if peak := peak_flops(device, dtype):
            # 2 FLOPs per parameter and token of a forward pass, as many of a backward pass and 2 more per trained one.
            parameters = sum(weight.numel() for weight in policy.parameters())
            trained = sum(weight.numel() for weight in policy.parameters() if weight.requires_grad)
            flops = 2 * parameters * passed.forward + 2 * (parameters + trained) * passed.backward
            values["perf/mfu"] = flops / update_seconds / peak
    return values
