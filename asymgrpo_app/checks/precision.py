"""Warns of bfloat16 on a CPU without AVX-512, for which torch has no kernels for matrix products in bfloat16."""

from typing import Any

import torch
from lightning.pytorch import Trainer

from asymgrpo_app.rollout.samplers import installed_sampler


def calculates_bfloat16() -> bool:
    """Whether this machine's CPU has kernels for matrix products in bfloat16; True if it is not x86-64 (not known).

    oneDNN has them from AVX-512 on, fast ones with AVX512-BF16 or AMX. Without them torch falls back to plain loops:
    1.3 GFLOP/s on two cores with AVX2, where float32 reaches 110.
    """
    found = torch.cpu.get_capabilities()
    return found.get("architecture") != "x86_64" or bool(found.get("avx512_bw"))


def bfloat16_lines(trainer: Trainer, rollout: Any) -> list[str]:
    """A warning where a run, or its sampler, calculates in bfloat16 on a CPU that has no kernels for it."""
    section = {"vllm": "engine", "transformers": "transformers"}.get(installed_sampler(rollout.sampler))
    keys = ["trainer.precision: 32-true"] if "bf16" in str(trainer.precision) else []
    if section is not None and getattr(rollout, section).dtype == "bfloat16":
        keys.append(f"rollout.{section}.dtype: auto")
    if trainer.strategy.root_device.type != "cpu" or not keys or calculates_bfloat16():
        return []
    return [
        "WARNING: this CPU is without AVX-512, and bfloat16 takes some 80 times as long as float32 on it: set "
        f"{' and '.join(keys)}."
    ]
