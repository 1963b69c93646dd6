"""Peak FLOP/s of GPUs: what `perf/mfu` is a share of."""

import re

import torch
from lightning.fabric.utilities.throughput import get_available_flops

_HALF = (torch.bfloat16, torch.float16)

# Dense (without sparsity), products of 16 bits added up in float32, TFLOP/s: NVIDIA's data sheets, which often print
# twice as much, with sparsity. The first pattern that is in the device's name counts.
_DENSE_16_BITS: tuple[tuple[str, float], ...] = (
    (r"\bgb[23]00\b", 2500.0),
    (r"\bb[23]00\b", 2250.0),
    (r"\bh[12]00 nvl\b", 835.5),
    (r"\bh[18]00 pcie\b", 756.0),
    (r"\b(gh200|h200|h100|h800)\b", 989.4),
    (r"\bh20\b", 148.0),
    (r"\ba[18]00\b", 312.0),
    (r"\ba30\b", 165.0),
    (r"\ba40\b", 149.7),
    (r"\ba10\b", 125.0),
    (r"\ba10g\b", 70.0),
    (r"\bl40s\b", 362.0),
    (r"\bl40\b", 181.0),
    (r"\bl20\b", 119.5),
    (r"\bl4\b", 121.0),
    (r"\brtx 6000 ada\b", 364.2),
    (r"\brtx a6000\b", 154.8),
    (r"\bgeforce rtx 5090$", 209.5),
    (r"\bgeforce rtx 4090$", 165.2),
    (r"\bgeforce rtx 3090$", 71.0),
)
# Where Lightning's table of float32 is wrong: its H100 NVL is a pair of GPUs, and it does not know the H200.
_FLOAT32: tuple[tuple[str, float], ...] = ((r"\bh[12]00 nvl\b", 60.0), (r"\b(gh200|h200)\b", 66.9))


def known_peak(name: str, dtype: torch.dtype) -> float | None:
    """Peak FLOP/s of a GPU by the name that torch gives it; None for one that is not in the tables."""
    table = _DENSE_16_BITS if dtype in _HALF else _FLOAT32 if dtype == torch.float32 else ()
    found = (peak for pattern, peak in table if re.search(pattern, name.lower()))
    peak = next(found, None)
    return None if peak is None else peak * 1e12


def peak_flops(device: torch.device, dtype: torch.dtype) -> float | None:
    """Peak FLOP/s of a GPU for dense matrix products of a type; None if not known, as of a part (MIG)."""
    name = torch.cuda.get_device_name(device)
    if re.search(r"\bmig\b", name.lower()):
        return None
    return known_peak(name, dtype) or get_available_flops(device, dtype)
