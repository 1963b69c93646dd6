"""A policy with adapters that do something."""

import torch

from asymgrpo_app.policy.lora import LoRAConfig, add_adapters, first_values

TEXT = torch.tensor([[3, 5, 7, 9, 4, 6, 2], [4, 4, 8, 2, 3, 3, 5]])
"""Two texts of the shipped policy's tokens, [2, 7]."""


def adapted(policy, config=LoRAConfig(rank=3, alpha=2.0), *, noise: float = 0.1):  # noqa: B008 (frozen)
    """The policy with adapters that do something, unless `noise` is 0."""
    add_adapters(policy, config, "tiny")
    first_values(policy, seed=5)
    generator = torch.Generator().manual_seed(7)
    for name, parameter in policy.named_parameters():
        if "lora_B" in name:
            parameter.data = noise * torch.randn(parameter.shape, generator=generator, dtype=parameter.dtype)
    return policy
