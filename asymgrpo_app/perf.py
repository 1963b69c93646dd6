"""Speed and memory of a step."""

import psutil
import torch
from lightning.fabric.utilities.throughput import get_available_flops

_GB = 1024**3


def performance(
    *,
    tokens: int,
    passes: int,
    step_seconds: float,
    update_seconds: float,
    parameters: int,
    trained: int,
    device: torch.device,
    dtype: torch.dtype,
) -> dict[str, float]:
    """`perf/*` of one process.

    Args:
        passes: Passes of the policy update over them.
        tokens: Prompt and completion tokens of the step on this process, each completion with its prompt.
        step_seconds: Seconds of the whole step.
        update_seconds: Seconds of the policy update.
        parameters: Number of the policy's parameters.
        trained: Number of those that are trained.
        device: Where the policy is.
        dtype: Compute type of the policy.

    Returns:
        `throughput` in tokens per second and process, `cpu_memory_gb` (resident memory of the process, GiB), and on a
        GPU `max_memory_gb` (peak of torch's allocations, GiB) and `mfu` where Lightning knows the device's peak: 4
        FLOPs per parameter and token, and 2 more per trained one, over that peak, during the update.
    """
    values = {
        "perf/throughput": tokens / step_seconds,
        "perf/cpu_memory_gb": psutil.Process().memory_info().rss / _GB,
    }
    if device.type == "cuda":
        values["perf/max_memory_gb"] = torch.cuda.max_memory_allocated(device) / _GB
        if peak := get_available_flops(device, dtype):
            values["perf/mfu"] = (4 * parameters + 2 * trained) * tokens * passes / update_seconds / peak
    return values
