"""Warns of bfloat16 on a CPU without AVX-512, for which torch has no kernels for matrix products in bfloat16."""

from collections.abc import Mapping

import torch


def calculates_bfloat16() -> bool:
    """Whether this machine's CPU has kernels for matrix products in bfloat16; True if it is not x86-64 (not known).

    oneDNN has them from AVX-512 on, fast ones with AVX512-BF16 or AMX. Without them torch falls back to plain loops:
    1.3 GFLOP/s on two cores with AVX2, where float32 reaches 110.
    """
    found = torch.cpu.get_capabilities()
    return found.get("architecture") != "x86_64" or bool(found.get("avx512_bw"))


def bfloat16_lines(*, precision: str, sampler: Mapping[str, str], device: str) -> list[str]:
    """A warning where the run calculates in bfloat16 on a CPU that has no kernels for it.

    Args:
        precision: As in `trainer.precision`.
        sampler: The key of the sampler's type with its value, where `auto` follows the precision; empty if the sampler
            runs elsewhere.
        device: Kind of the device; only `cpu` gets a warning.
    """
    keys = ["trainer.precision: 32-true"] if "bf16" in precision else []
    keys += [f"{key}: auto" for key, dtype in sampler.items() if dtype == "bfloat16"]
    if device != "cpu" or not keys or calculates_bfloat16():
        return []
    return [
        "WARNING: this CPU is without AVX-512, and bfloat16 takes some 80 times as long as float32 on it: set "
        f"{' and '.join(keys)}."
    ]
