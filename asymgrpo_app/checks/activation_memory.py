"""Measures the memory of a forward and a backward pass, and of an optimizer, without a model's weights.

The pass runs on fake tensors, which have shapes but no contents: so the figure follows the architecture, the precision
and gradient checkpointing by itself.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from asymgrpo_app.microbatch.microbatch import MicroBatch
from asymgrpo_app.policy.loading import attention_inputs

if TYPE_CHECKING:  # transformers takes seconds to import, which a wrong key should not wait for
    from transformers import PreTrainedModel

_PROBES = 8  # weights that an optimizer is tried on: temporary memory for one of them at a time is too little to count


class LiveBytes(TorchDispatchMode):
    """Adds up the live storages that were made while this mode is active."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.live = self.peak = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        made = _storages(result)
        for key in made.keys() - _storages((args, kwargs)):  # views and results in place have an argument's
            size = made[key].nbytes()
            self.live += size
            weakref.finalize(made[key], self._free, size)
        self.peak = max(self.peak, self.live)
        return result

    def _free(self, size: int) -> None:
        self.live -= size


def _storages(values: Any) -> dict[int, torch.UntypedStorage]:
    """The storages of all tensors in nested values, by address."""
    storages = [value.untyped_storage() for value in tree_leaves(values) if isinstance(value, Tensor)]
    return {storage._cdata: storage for storage in storages}


def body_memory(
    policy: PreTrainedModel, batch: MicroBatch, *, precision: str, gradient_checkpointing: bool
) -> tuple[int, int]:
    """Bytes of a forward and a backward pass without the output head, beside weights and their gradients.

    Args:
        policy: A model on the meta device; its parameters become fake tensors.
        batch: The tokens; only their shape matters.
        precision: As in `trainer.precision`.
        gradient_checkpointing: As in the module.

    Returns:
        The bytes held between the two passes, while the head works, and the most held at once in them.
    """
    if gradient_checkpointing:
        policy.gradient_checkpointing_enable({"use_reentrant": False})
    with FakeTensorMode(allow_non_fake_inputs=True):
        policy.train().to_empty(device="cpu")
        for parameter in policy.parameters():
            parameter.grad = torch.empty_like(parameter) if parameter.requires_grad else None
        body = getattr(policy, policy.base_model_prefix)
        with LiveBytes() as memory, torch.autocast("cpu", torch.bfloat16, enabled=precision == "bf16-mixed"):
            hidden = body(input_ids=batch.input_ids, use_cache=False, **attention_inputs(batch)).last_hidden_state
            kept = memory.live
            hidden.backward(torch.empty_like(hidden))
            return kept, memory.peak


def optimizer_memory(
    make_optimizer: Callable[[Iterable[nn.Parameter]], torch.optim.Optimizer], device: torch.device
) -> tuple[int, int]:
    """Memory of an optimizer in copies of the trained weights, found by a step on small ones.

    Args:
        make_optimizer: Makes the optimizer from parameters.
        device: The run's device, as an optimizer may work on all weights at once on a GPU only.

    Returns:
        The copies that it keeps (2 for Adam), and those that its step holds for a moment beside them.
    """
    weights = [nn.Parameter(torch.zeros(32, 32, device=device)) for _ in range(_PROBES)]
    for weight in weights:
        weight.grad = torch.zeros_like(weight)
    optimizer = make_optimizer(weights)
    with LiveBytes() as memory:
        optimizer.step()
    size = sum(weight.nbytes for weight in weights)
    return memory.live // size, memory.peak // size - memory.live // size
