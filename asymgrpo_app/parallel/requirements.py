"""Requirements of a sharded policy (FSDP2) on the rest of a config."""

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor, nn

from asymgrpo_app.errors import UserError


def check_optimizer(make_optimizer: Callable[[Iterable[nn.Parameter]], torch.optim.Optimizer]) -> None:
    """Refuse an optimizer whose state cannot be sharded like the weights; tries one update of a small matrix.

    Raises:
        UserError: It keeps state of another shape, so that a checkpoint could not be continued.
    """
    weight = nn.Parameter(torch.ones(3, 2))
    optimizer = make_optimizer([weight])
    weight.grad = torch.ones_like(weight)
    optimizer.step()
    for name, value in optimizer.state[weight].items():
        if isinstance(value, Tensor) and value.numel() > 1 and value.shape != weight.shape:
            raise UserError(
                f"model.optimizer {type(optimizer).__name__} keeps {name} of another shape than the weight's, which "
                "trainer.strategy fsdp2 cannot shard: use another optimizer, or trainer.strategy ddp."
            )


def check_sampler(rollout: Any) -> None:
    """Refuse samplers with which one rank alone would need whole weights, which only all ranks together have.

    Args:
        rollout: Section `rollout` of the config.

    Raises:
        UserError: Such a sampler is configured; the message names the keys.
    """
    if rollout.dynamic_sampling is not None and rollout.engine.sleep_level == 2 and rollout.sampler != "server":
        raise UserError(
            "rollout.engine.sleep_level 2 drops the sampler's weights after each use, and with "
            "rollout.dynamic_sampling each process samples as often as its prompts need, which trainer.strategy fsdp2 "
            "cannot serve: use sleep_level 1, or turn one of the others off."
        )
    if rollout.sampler == "server" and rollout.server.transfer == "nccl":
        raise UserError(
            "rollout.server.transfer is nccl, which sends weights from where they are, but with trainer.strategy fsdp2 "
            "they are whole on no GPU: use folder."
        )
