"""Sharding of a policy's weights over ranks (FSDP2), and calls that work for sharded and whole policies alike.

Each rank holds a part of every weight. The weights of a transformer block are gathered when its forward pass begins and
again for its backward pass. Weights outside of blocks (embedding, last norm, output head) are gathered as one more
group. Outside a pass `parameters()` are always the parts.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, nullcontext
from functools import partial
from types import MethodType
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.fsdp import FSDPModule, fully_shard, register_fsdp_forward_method
from torch.distributed.tensor import DTensor, distribute_tensor
from torch.nn.parallel import DistributedDataParallel

from asymgrpo_app.errors import UserError
from asymgrpo_app.microbatch.microbatch import MicroBatch
from asymgrpo_app.policy.loading import token_logprobs, transformer_blocks
from asymgrpo_app.policy.lora import merged

if TYPE_CHECKING:  # transformers takes seconds to import, which a wrong key should not wait for
    from transformers import PreTrainedModel

_LOGPROBS = "asymgrpo_token_logprobs"


def shard(policy: PreTrainedModel, mesh: DeviceMesh) -> None:
    """Shard the weights over the ranks of a mesh of one dimension, in place.

    Weights keep their type, and are exchanged in it: lower precision is left to autocast, as on one process, so that
    the numbers are those of one process.

    Raises:
        UserError: The architecture does not say which of its modules are transformer blocks.
    """
    blocks = transformer_blocks(policy)
    if not blocks:
        raise UserError(
            f"trainer.strategy fsdp2 does not know the transformer blocks of architecture {policy.config.model_type}: "
            "use trainer.strategy ddp."
        )
    # The root's weights, too, are resharded after a forward pass: a pass without gradients would leave whole copies
    # behind instead of the parts, which an optimizer step then would not change.
    for block in blocks:
        fully_shard(block, mesh=mesh, reshard_after_forward=True)
    fully_shard(policy, mesh=mesh, reshard_after_forward=True)
    # The forward pass that the root knows of is the one that calls the body and then uses the head's weight.
    setattr(policy, _LOGPROBS, MethodType(token_logprobs, policy))
    register_fsdp_forward_method(policy, _LOGPROBS)


def is_sharded(policy: nn.Module) -> bool:
    """Whether a policy is sharded, so that every rank has to take part in each of its forward passes."""
    return isinstance(policy, FSDPModule)


def policy_logprobs(
    policy: PreTrainedModel, batch: MicroBatch, *, temperature: float, entropy_grad: bool = False
) -> tuple[Tensor, Tensor]:
    """As `asymgrpo_app.policy.loading.token_logprobs`, also for a sharded policy."""
    forward: Callable[..., tuple[Tensor, Tensor]] = getattr(policy, _LOGPROBS, partial(token_logprobs, policy))
    return forward(batch, temperature=temperature, entropy_grad=entropy_grad)


def gradient_sync(policy: nn.Module, wrapped: nn.Module, *, now: bool) -> AbstractContextManager[None]:
    """Context of a backward pass: gradients are exchanged between ranks if `now`, and accumulated locally otherwise.

    Args:
        policy: The model.
        wrapped: The model as the strategy wraps it: DDP's wrapper, or the model itself.
        now: Whether this is the last backward pass of an update.
    """
    if isinstance(policy, FSDPModule):
        policy.set_requires_gradient_sync(now)
    if isinstance(wrapped, DistributedDataParallel) and not now:
        return wrapped.no_sync()
    return nullcontext()


def whole(tensor: Tensor) -> Tensor:
    """Full tensor of a DTensor (collective: every rank takes part); plain tensors pass through."""
    # Summed squares and the like are partial values; they are completed as well.
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def own_part(tensor: Tensor) -> Tensor:
    """This rank's part of a tensor, without communication."""
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor


def part_of_whole(tensor: Any, like: Tensor) -> Any:
    """This rank's part of a whole tensor that every rank has, sharded like another of its shape; else it as it is."""
    if not isinstance(like, DTensor) or not isinstance(tensor, Tensor) or tensor.shape != like.shape:
        return tensor
    cut = distribute_tensor(tensor.to(like.device), like.device_mesh, like.placements, src_data_rank=None)
    return cut.clone()  # the whole tensor, which may be mapped from a file, is freed


def whole_weights(policy: PreTrainedModel) -> Iterator[tuple[str, Tensor]]:
    """As `asymgrpo_app.policy.loading.named_weights`, gathered one at a time; every rank has to take part."""
    return merged(((name, whole(part.detach())) for name, part in policy.named_parameters()), policy)


def gathered_state(module: nn.Module, *, keep: bool) -> dict[str, Tensor]:
    """The state dict of a module in whole tensors on the CPU; every rank has to take part.

    Tensors that several names share, such as a tied head's, are shared in the result, too.

    Args:
        module: The module, sharded or not.
        keep: Whether this rank gets the state; others get an empty one, and hold one tensor at a time.
    """
    known: dict[int, Tensor] = {}
    state: dict[str, Tensor] = {}
    named: dict[str, Any] = module.state_dict(keep_vars=True)
    for name, tensor in named.items():
        if id(tensor) not in known:
            gathered = whole(tensor.detach())
            known[id(tensor)] = gathered.cpu() if keep else torch.empty(0)
        state[name] = known[id(tensor)]
    return state if keep else {}
