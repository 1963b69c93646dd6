"""Measures the memory of a model's forward and backward pass without allocating it.

The pass runs on fake tensors, which have shapes but no contents, and their bytes are added up: so the figure follows
the architecture, the precision and gradient checkpointing by itself.
"""

import weakref
from copy import deepcopy
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from transformers import AutoModelForCausalLM

from asymgrpo_app.microbatch.microbatch import MicroBatch
from asymgrpo_app.policy.loading import attention_inputs
from asymgrpo_app.policy.lora import LoRAConfig, add_adapters, hold_in_bfloat16


@dataclass(frozen=True)
class BodyMemory:
    """Bytes of the passes, weights and their gradients not included.

    Attributes:
        kept: Held between the body's forward and backward pass, while the head works.
        peak: The most held at once during the body's passes.
    """

    kept: int
    peak: int


class _LiveBytes(TorchDispatchMode):
    """Adds up the live storages that were made while this mode is active."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.live = self.peak = 0
        self._known: set[int] = set()

    def ignore(self, tensors: Any) -> None:
        """Leave the storages of these tensors out of the sum."""
        self._known |= {tensor.untyped_storage()._cdata for tensor in tensors}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        for value in tree_leaves(result):
            if isinstance(value, Tensor):
                self._count(value.untyped_storage())
        return result

    def _count(self, storage: torch.UntypedStorage) -> None:
        key, size = storage._cdata, storage.nbytes()
        if key in self._known:
            return
        self._known.add(key)
        self.live += size
        self.peak = max(self.peak, self.live)
        weakref.finalize(storage, self._forget, key, size)

    def _forget(self, key: int, size: int) -> None:
        self._known.discard(key)
        self.live -= size


def body_memory(
    config: Any,
    attention: str,
    batch: MicroBatch,
    *,
    precision: str,
    gradient_checkpointing: bool,
    lora: LoRAConfig | None = None,
) -> BodyMemory:
    """Memory of a forward and a backward pass of the model without its head (the body).

    Args:
        config: The model's configuration in transformers.
        attention: Name of its attention implementation.
        batch: The tokens; only their shape matters.
        precision: As in `trainer.precision`.
        gradient_checkpointing: As in the module.
        lora: The adapters, which alone are trained; None: all weights are trained.
    """
    # All layers keep the same amount; the temporary memory of one layer comes on top of what all of them keep.
    one, two = (
        _shallow_memory(_with_layers(config, number), attention, batch, precision, gradient_checkpointing, lora)
        for number in (1, 2)
    )
    kept = one.kept + (two.kept - one.kept) * (config.num_hidden_layers - 1)
    return BodyMemory(kept, kept + two.peak - two.kept)


def _with_layers(config: Any, number: int) -> Any:
    changed = deepcopy(config)
    changed.num_hidden_layers = number
    if getattr(changed, "layer_types", None):
        changed.layer_types = (list(changed.layer_types) * number)[:number]
    return changed


def _shallow_memory(
    config: Any,
    attention: str,
    batch: MicroBatch,
    precision: str,
    gradient_checkpointing: bool,
    lora: LoRAConfig | None,
) -> BodyMemory:
    with torch.device("meta"):
        model: Any = AutoModelForCausalLM.from_config(
            config, attn_implementation=attention, dtype=torch.float32
        ).train()
    if lora is not None:
        add_adapters(model, lora, config.model_type)
        if precision == "bf16-mixed":
            hold_in_bfloat16(model)
    with FakeTensorMode(allow_non_fake_inputs=True):
        _fill(model)
        if gradient_checkpointing:
            model.gradient_checkpointing_enable({"use_reentrant": False})
        body = getattr(model, model.base_model_prefix)
        parameters = list(model.parameters())
        for parameter in parameters:
            parameter.grad = torch.empty_like(parameter) if parameter.requires_grad else None
        inputs = attention_inputs(batch)
        with _LiveBytes() as memory, torch.autocast("cpu", torch.bfloat16, enabled=precision == "bf16-mixed"):
            memory.ignore([*parameters, *(parameter.grad for parameter in parameters if parameter.grad is not None)])
            hidden = body(input_ids=batch.input_ids, use_cache=False, **inputs).last_hidden_state
            kept = memory.live
            hidden.backward(torch.empty_like(hidden))
            return BodyMemory(kept, memory.peak)


def _fill(model: nn.Module) -> None:
    """Replace a model's meta tensors by tensors of the current mode; tensors that modules share stay shared."""
    made: dict[int, Tensor] = {}
    for module in model.modules():
        for name, tensor in [*module.named_parameters(recurse=False), *module.named_buffers(recurse=False)]:
            if id(tensor) not in made:
                empty = torch.empty(tensor.shape, dtype=tensor.dtype)
                trained = tensor.requires_grad
                made[id(tensor)] = (
                    nn.Parameter(empty, requires_grad=trained) if isinstance(tensor, nn.Parameter) else empty
                )
            setattr(module, name, made[id(tensor)])
