"""Low-rank adapters (LoRA, arXiv 2106.09685) through peft: target layers, first values and merged weights.

peft puts the adapters into the model itself, without a wrapper around it, so that its body and its head are found as in
any other policy. The sampler never sees adapters: it gets W + s B A, computed for one layer at a time.
"""

import re
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import groupby
from math import isfinite, sqrt
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import Tensor, nn

from asymgrpo_app.errors import UserError, at_least_1
from asymgrpo_app.seeds import derive_seed

if TYPE_CHECKING:  # transformers takes seconds to import, which a wrong key should not wait for
    from transformers import PreTrainedModel

ADAPTER = "default"
"""peft's name of the one adapter."""

_BASE, _A, _B = "base_layer", f"lora_A.{ADAPTER}", f"lora_B.{ADAPTER}"
_PART = re.compile(rf"\.(?:{_BASE}|{_A}|{_B})\.")  # within a parameter's name, after that of the adapted layer


@dataclass(frozen=True)
class LoRAConfig:
    """Low-rank adapters that are trained instead of the policy's own weights (arXiv 2106.09685).

    An adapted linear layer computes W x + s B A x with W frozen. A [rank, in] and B [out, rank] are float32, and B
    starts as zeros, so that a run starts from the unchanged policy. There is no dropout on purpose: the trainer's
    log-probabilities have to be the sampler's.

    Args:
        rank: Rows of A, at least 1.
        alpha: Numerator of the scale s = alpha / rank, > 0.
        rslora: Use s = alpha / sqrt(rank), so that the learning rate need not follow the rank (arXiv 2312.03732).
        target_modules: The linear layers that get adapters, by the last part (or parts) of their names, e.g.
            `[q_proj, v_proj]`; null: all but the output head.
        export: Content of the run's `export` folder: the policy with its adapters `merged` into the weights, or the
            `adapter` alone, in peft's format.
    """

    rank: int = 16
    alpha: float = 32.0
    rslora: bool = False
    target_modules: list[str] | None = None
    export: Literal["merged", "adapter"] = "merged"

    def __post_init__(self) -> None:
        at_least_1("model.lora.rank", self.rank)
        if not (isfinite(self.alpha) and self.alpha > 0):
            raise UserError(f"model.lora.alpha must be a finite number > 0, got {self.alpha}.")
        if self.target_modules is not None and not self.target_modules:
            raise UserError("model.lora.target_modules is empty: name linear layers, or leave it out for all of them.")

    @property
    def scale(self) -> float:
        """The factor s of B A."""
        return self.alpha / (sqrt(self.rank) if self.rslora else self.rank)


# ---- target layers ----


def target_layers(policy: "PreTrainedModel", config: LoRAConfig, path: str) -> dict[str, nn.Linear]:
    """The linear layers that get an adapter, by name.

    Args:
        policy: The model, without adapters; it may be on the meta device.
        config: The adapters' settings.
        path: Folder or hub id of the policy, for messages.

    Raises:
        UserError: The model has no such layers.
    """
    head = policy.get_output_embeddings()
    layers = {
        name: module for name, module in policy.named_modules() if isinstance(module, nn.Linear) and module is not head
    }
    if not layers:
        raise UserError(
            f"model.lora: {path} has no linear layers that could get adapters: train it without model.lora."
        )
    if config.target_modules is None:
        return layers
    chosen: set[str] = set()
    for target in config.target_modules:
        called_so = {name for name in layers if f".{name}".endswith(f".{target}")}
        if not called_so:
            raise UserError(
                f"model.lora.target_modules has {target!r}, which is no linear layer of {path} that can get an "
                f"adapter: choose among {_kinds(layers)}."
            )
        chosen |= called_so
    return {name: layer for name, layer in layers.items() if name in chosen}


def _kinds(layers: Iterable[str]) -> str:
    """The last parts of layers' names, for messages."""
    return ", ".join(sorted({name.rpartition(".")[2] for name in layers}))


def summary(policy: "PreTrainedModel", config: LoRAConfig, path: str) -> str:
    """One line for the user on the trained parameters of a model, which may be on the meta device.

    Raises:
        UserError: It does not have the layers.
    """
    layers = target_layers(policy, config, path)
    trained = sum(config.rank * (layer.in_features + layer.out_features) for layer in layers.values())
    share = trained / sum(parameter.numel() for parameter in policy.parameters())
    return (
        f"LoRA of rank {config.rank}, scale {config.scale:g}, on {len(layers)} linear layers ({_kinds(layers)}): "
        f"{trained:,} trained parameters, {share:.2%} of the policy's"
    )


# ---- adding adapters ----


def add_adapters(policy: "PreTrainedModel", config: LoRAConfig, path: str) -> None:
    """Freeze a policy and add adapters whose A and B are zero; `first_values` or a checkpoint makes them trainable.

    Args:
        policy: The model; it may be on the meta device, adapters are made on the device of its layers.
        config: The adapters' settings.
        path: Folder or hub id of the policy; the exported adapter names it.

    Raises:
        UserError: It does not have the layers.
    """
    from peft import LoraConfig, inject_adapter_in_model

    settings = LoraConfig(
        task_type="CAUSAL_LM",
        base_model_name_or_path=path,
        r=config.rank,
        lora_alpha=config.alpha,  # type: ignore[arg-type] # a factor, and whole numbers alone are no need of peft's
        use_rslora=config.rslora,
        target_modules=list(target_layers(policy, config, path)),
    )
    # On the meta device at first: peft's own first values would be taken from the run's generators.
    inject_adapter_in_model(settings, policy, adapter_name=ADAPTER, low_cpu_mem_usage=True)
    policy.requires_grad_(False)
    for layer in adapted_layers(policy).values():
        for part in (layer.lora_A[ADAPTER], layer.lora_B[ADAPTER]):
            part.weight = nn.Parameter(torch.zeros_like(part.weight, device=layer.get_base_layer().weight.device))
        # Inputs are in autocast's type where it is on. Cast to float32 by peft, each adapter would keep a copy of them.
        layer.cast_input_dtype_enabled = False


def first_values(policy: "PreTrainedModel", seed: int) -> None:
    """Give A its first values: uniform in +-1/sqrt(in) as in peft, by the run's seed and the layer's name alone."""
    for name, layer in adapted_layers(policy).items():
        generator = torch.Generator().manual_seed(derive_seed("lora", seed, name))
        weight: Tensor = layer.lora_A[ADAPTER].weight.data
        weight.copy_(torch.empty_like(weight, device="cpu").uniform_(-1, 1, generator=generator))
        weight.mul_(weight.shape[1] ** -0.5)


def hold_in_bfloat16(policy: "PreTrainedModel") -> None:
    """Hold the frozen weights of linear layers in bfloat16, for a policy that is trained under bf16-mixed.

    Autocast would round them to the same numbers before each product, so no result changes by a bit; they take half the
    memory and are not rounded again. Other weights stay float32: a bfloat16 embedding would make the residual stream
    bfloat16.
    """
    embedding: Any = policy.get_input_embeddings()
    for module in policy.modules():
        if isinstance(module, nn.Linear) and not module.weight.requires_grad and module.weight is not embedding.weight:
            module.weight.data = module.weight.data.to(torch.bfloat16)


# ---- names, scales and merged weights ----


def is_adapter(name: str) -> bool:
    """Whether a parameter of a policy with adapters is part of one."""
    return _A in name or _B in name


def plain_name(name: str) -> str:
    """Name of a module or a frozen parameter in the model without adapters."""
    return name.replace(f".{_BASE}", "")


@contextmanager
def adapters_off(policy: "PreTrainedModel") -> Iterator[None]:
    """Context without a policy's adapters, if it has any: it is then the policy that training started from."""
    layers = adapted_layers(policy).values()
    for layer in layers:
        layer.enable_adapters(False)
    try:
        yield
    finally:
        for layer in layers:
            layer.enable_adapters(True)


def merged(named: Iterable[tuple[str, Tensor]], policy: "PreTrainedModel") -> Iterator[tuple[str, Tensor]]:
    """Merge a policy's adapters into its weights, one at a time, by their names in the model without adapters.

    Inputs are not changed, and a merged weight is freed as soon as the consumer lets go of it.

    Args:
        named: All its parameters, whole, in the order of `named_parameters`: those of a layer follow each other.
        policy: The policy, with or without adapters.

    Yields:
        Names and weights: W + s B A of a layer with an adapter, in the adapter's type; all others as they are.
    """
    layers = adapted_layers(policy)
    for layer, group in groupby(named, key=lambda pair: _PART.split(pair[0])[0]):
        if layer not in layers:
            yield from group
            continue
        factor = float(layers[layer].scaling[ADAPTER])
        parts = {name.removeprefix(f"{layer}."): tensor for name, tensor in group}
        down, up = parts.pop(f"{_A}.weight"), parts.pop(f"{_B}.weight")
        for name, tensor in parts.items():
            # No local variable holds a merged weight, so that it is freed as soon as the consumer lets go of it.
            adds = name == f"{_BASE}.weight"
            yield plain_name(f"{layer}.{name}"), _sum(tensor, down, up, factor) if adds else tensor


@torch.no_grad()
def _sum(weight: Tensor, down: Tensor, up: Tensor, factor: float) -> Tensor:
    """W + s B A in the type of B, with autocast off."""
    with torch.autocast(weight.device.type, enabled=False):
        return torch.addmm(weight.to(up.dtype), up, down, alpha=factor)


def adapted_layers(policy: "PreTrainedModel") -> dict[str, Any]:
    """The layers that have an adapter, by name."""
    if not hasattr(policy, "peft_config"):  # most policies have none, and peft takes its time to load
        return {}
    from peft.tuners.lora import LoraLayer

    return {name: module for name, module in policy.named_modules() if isinstance(module, LoraLayer)}
