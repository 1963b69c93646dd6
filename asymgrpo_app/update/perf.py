"""Speed and memory of a step."""

from dataclasses import dataclass

import psutil
import torch
from lightning.fabric.utilities.throughput import get_available_flops

_GB = 1024**3


@dataclass
class PassedTokens:
    """Tokens that went through the policy in a step's updates on this process; a prompt computed once counts once.

    Attributes:
        forward: In forward passes.
        backward: In backward passes.
    """

    forward: int = 0
    backward: int = 0

    def flops(self, *, parameters: int, trained: int) -> int:
        """FLOPs: 2 per parameter and token of a forward pass, as many of a backward pass and 2 more per trained one."""
        return 2 * parameters * self.forward + 2 * (parameters + trained) * self.backward


def performance(
    *,
    tokens: int,
    passed: PassedTokens,
    step_seconds: float,
    update_seconds: float,
    parameters: int,
    trained: int,
    device: torch.device,
    dtype: torch.dtype,
) -> dict[str, float]:
    """`perf/*` of one process.

    Args:
        tokens: Prompt and completion tokens of the step on this process, each completion with its prompt.
        passed: What of them went through the policy's updates.
        step_seconds: Seconds of the whole step.
        update_seconds: Seconds of the policy update.
        parameters: Number of the policy's parameters.
        trained: Number of those that are trained.
        device: Where the policy is.
        dtype: Compute type of the policy.

    Returns:
        `throughput` in tokens per second and process, `cpu_memory_gb` (resident memory of the process, GiB), and on a
        GPU `max_memory_gb` (peak of torch's allocations, GiB) and `mfu` where Lightning knows the device's peak: the
        share of it that `PassedTokens.flops` are, during the update. What gradient checkpointing computes again does
        not count.
    """
    values = {
        "perf/throughput": tokens / step_seconds,
        "perf/cpu_memory_gb": psutil.Process().memory_info().rss / _GB,
    }
    if device.type == "cuda":
        values["perf/max_memory_gb"] = torch.cuda.max_memory_allocated(device) / _GB
        if peak := get_available_flops(device, dtype):
            values["perf/mfu"] = passed.flops(parameters=parameters, trained=trained) / update_seconds / peak
    return values
