"""Estimates the memory of a run from the model's configuration and the run's settings alone."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from typing import Any, Literal

import psutil
import torch
from torch import Tensor, nn

from asymgrpo_app.checks.activation_memory import body_memory
from asymgrpo_app.microbatch.microbatch import MicroBatch, TokenSequence, build, cut_by_tokens
from asymgrpo_app.microbatch.packing import cut_packed, pack
from asymgrpo_app.policy.head import working_bytes
from asymgrpo_app.policy.loading import attention_name, empty_policy
from asymgrpo_app.policy.lora import LoRAConfig, add_adapters, hold_in_bfloat16, is_adapter
from asymgrpo_app.runtime.compat import block_names

_GIB = 1024**3
_DTYPE_BYTES = {"float32": 4, "bfloat16": 2, "float16": 2}
_HOLD_A_COPY = (torch.optim.Adam, torch.optim.AdamW, torch.optim.NAdam, torch.optim.RAdam)  # with foreach
_PROGRAM = int(1.1 * _GIB)  # Python, torch, transformers and vLLM as measured, before a model is loaded
_ROOM = 0.95  # share of the device's memory beyond which a run gets a warning
TOLERANCE = 0.25
"""Largest relative difference between the estimate and a measured peak that tests allow."""


@dataclass(frozen=True)
class MemorySettings:
    """The settings that the memory of a run depends on, beside the model.

    Attributes:
        precision: As in `trainer.precision`.
        attention: As in `model.attention`.
        gradient_checkpointing: As in `model.gradient_checkpointing`.
        micro_batch_tokens: As in `model.micro_batch_tokens`.
        max_prompt_tokens: Longest prompt in tokens.
        max_completion_tokens: Longest completion in tokens.
        group_size: Completions per prompt.
        completions_per_update: Completions of one optimizer update on this process.
        optimizer_copies: Tensors of a weight's size that the optimizer keeps for each weight: 2 for Adam.
        optimizer_works_on_all: Whether its step holds one more such tensor for each weight, see `works_on_all`.
        reference: Whether a reference model is held.
        sampler_dtype: The type that the sampler computes in, or None where it runs in another process.
        sampler_cache: Bytes of the sampler's key-value cache; for vLLM on a GPU, all of vLLM's memory.
        sampler_tokens: For a sampler without such a cache, the most tokens whose keys and values it holds.
        sampler_sleeps: Whether the sampler gives its memory back while the policy is updated.
        device: Kind of the policy's device, `cpu` or `cuda`.
        lora: The adapters, which alone are trained; None: all weights are trained.
        processes: Processes of the run on this machine; on CPU they share its memory.
        shards: Processes that weights and optimizer state are sharded over.
        ddp: Whether several processes hold all weights and exchange whole gradients.
    """

    precision: str
    attention: Literal["sdpa", "eager", "flash_attention_2"]
    gradient_checkpointing: bool
    micro_batch_tokens: int
    max_prompt_tokens: int
    max_completion_tokens: int
    group_size: int
    completions_per_update: int
    optimizer_copies: int
    reference: bool
    sampler_dtype: str | None
    sampler_cache: int
    device: Literal["cpu", "cuda"] = "cpu"
    lora: LoRAConfig | None = None
    processes: int = 1
    shards: int = 1
    ddp: bool = False
    optimizer_works_on_all: bool = False
    sampler_tokens: int | None = None
    sampler_sleeps: bool = False


@dataclass(frozen=True)
class MemoryEstimate:
    """Estimated bytes by use; the parts of the update are held at the same time as all others.

    Attributes:
        parts: Bytes by name, in the order in which they are shown.
        available: Bytes of the device's memory.
    """

    parts: dict[str, int]
    available: int

    @property
    def total(self) -> int:
        """Sum of all parts in bytes."""
        return sum(self.parts.values())

    @property
    def fits(self) -> bool:
        """Whether the total fits the device with a margin of 5 %."""
        return self.total <= _ROOM * self.available

    def lines(self) -> list[str]:
        """One line on the sum and its parts, and a warning where it does not fit."""
        shown = ", ".join(f"{name} {size / _GIB:.2f}" for name, size in self.parts.items() if size >= 0.005 * _GIB)
        lines = [f"Memory, estimated: {self.total / _GIB:.1f} of {self.available / _GIB:.1f} GiB ({shown})."]
        if not self.fits:
            lines.append(
                "WARNING: this run is likely to run out of memory: lower model.micro_batch_tokens, turn on "
                "model.gradient_checkpointing, or give the sampler less (rollout.engine)."
            )
        return lines


def estimate_memory(config: Any, settings: MemorySettings, available: int | None = None) -> MemoryEstimate:
    """Estimate the peak memory of one process of a run, in bytes.

    Args:
        config: The model's configuration in transformers.
        settings: The run's settings.
        available: Bytes of the device's memory for this process; None: found out here.
    """
    text = config.get_text_config()
    policy = _held(config, settings)
    weights = sum(parameter.numel() for name, parameter in policy.named_parameters() if not is_adapter(name))
    held = sum(parameter.nbytes for parameter in policy.parameters())
    trained = sum(parameter.nbytes for parameter in policy.parameters() if parameter.requires_grad)
    trained_here = trained // settings.shards
    batch = largest_micro_batch(config, settings)
    body = body_memory(
        config,
        attention_name(config, settings.attention),
        batch,
        precision=settings.precision,
        gradient_checkpointing=settings.gradient_checkpointing,
        lora=settings.lora,
    )
    head = working_bytes(
        len(batch.targets),
        text.hidden_size,
        text.vocab_size,
        matmul_dtype=torch.float32 if settings.precision == "32-true" else torch.bfloat16,
        weight_dtype=policy.get_output_embeddings().weight.dtype,
        on_cpu=settings.device == "cpu",
        weight_grad=settings.lora is None,
    )
    on_gpu = settings.device == "cuda"
    # Activations are gone when the optimizer makes its step.
    step = trained_here - body.kept if settings.optimizer_works_on_all else 0
    parts = {
        "program": 0 if on_gpu else _PROGRAM,
        "weights": held // settings.shards,
        # Micro-batches add up whole gradients, which are exchanged once per update.
        "gradients": trained + (trained_here if settings.shards > 1 else 0),
        "optimizer": trained_here * settings.optimizer_copies,
        # DDP exchanges gradients from a copy of its own.
        "DDP buckets": trained if settings.ddp else 0,
        "reference": held // settings.shards if settings.reference else 0,
        "unsharded block": _put_together(policy) * 4 if settings.shards > 1 else 0,
        **_sampler(text, settings, weights),
        "activations": body.kept,
        "temporary buffers": max(body.peak - body.kept, head, step),
    }
    parts = _one_at_a_time(parts, settings)
    shared_by = 1 if on_gpu else settings.processes
    return MemoryEstimate(parts, device_memory(settings.device) // shared_by if available is None else available)


def _sampler(config: Any, settings: MemorySettings, weights: int) -> dict[str, int]:
    """Bytes of the sampler's weights, and of its keys and values."""
    if settings.sampler_dtype is None:
        return {"sampler's weights": 0, "sampler's cache": 0}
    size = _DTYPE_BYTES[settings.sampler_dtype]
    if settings.sampler_tokens is None:  # vLLM, whose share of a GPU has its weights in it
        held = 0 if settings.device == "cuda" else weights * size
        return {"sampler's weights": held, "sampler's cache": settings.sampler_cache}
    width = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    heads = getattr(config, "num_key_value_heads", None) or config.num_attention_heads
    token = 2 * config.num_hidden_layers * heads * width * size
    return {"sampler's weights": weights * size, "sampler's cache": token * settings.sampler_tokens}


def _one_at_a_time(parts: dict[str, int], settings: MemorySettings) -> dict[str, int]:
    """The parts, the smaller of sampling and updating set to 0 if each frees its memory before the other begins."""
    sampling: tuple[str, ...]
    if settings.sampler_sleeps:
        sampling = ("sampler's weights", "sampler's cache")
    elif settings.sampler_tokens is not None:
        sampling = ("sampler's cache",)
    else:
        return parts
    updating = ("gradients", "unsharded block", "activations", "temporary buffers")
    smaller = min(sampling, updating, key=lambda names: sum(parts[name] for name in names))
    return {name: 0 if name in smaller else size for name, size in parts.items()}


def _put_together(model: Any) -> int:
    """Number of sharded weights that are gathered at the same time: the largest block, and all outside of blocks."""
    names = block_names(model)
    blocks: list[int] = [
        sum(parameter.numel() for parameter in module.parameters())
        for module in model.modules()
        if type(module).__name__ in names
    ]
    weights: int = sum(parameter.numel() for parameter in model.parameters())
    return weights - sum(blocks) + max(blocks, default=0)


def memory_lines(config: Any, settings: MemorySettings) -> list[str]:
    """The estimate for the user; for an architecture that cannot be estimated, a line that says so."""
    try:
        return estimate_memory(config, settings).lines()
    except (AttributeError, KeyError, NotImplementedError, RuntimeError, TypeError, ValueError) as error:
        reason = " ".join(str(error).split())[:200]
        return [f"Memory is not estimated for architecture {config.model_type}: {type(error).__name__}, {reason}."]


def optimizer_copies(make_optimizer: Callable[[Iterable[nn.Parameter]], torch.optim.Optimizer]) -> int:
    """Number of tensors of a weight's size that the optimizer keeps for each weight, found by a step on a tiny one."""
    weight = nn.Parameter(torch.ones(3, 2))
    optimizer = make_optimizer([weight])
    weight.grad = torch.ones_like(weight)
    optimizer.step()
    kept = optimizer.state[weight].values()
    return sum(isinstance(value, Tensor) and value.shape == weight.shape for value in kept)


def works_on_all(make_optimizer: Callable[[Iterable[nn.Parameter]], torch.optim.Optimizer], *, on_gpu: bool) -> bool:
    """Whether the optimizer's step works on all weights at once and holds one more tensor of each weight's size.

    Adam and its kin do so on a GPU unless they are told `fused: true` or `foreach: false`.
    """
    optimizer = make_optimizer([nn.Parameter(torch.ones(3, 2))])
    foreach = optimizer.defaults.get("foreach", False)
    if not isinstance(optimizer, _HOLD_A_COPY) or optimizer.defaults.get("fused"):
        return False
    return on_gpu if foreach is None else bool(foreach)


def device_memory(device: str) -> int:
    """Bytes of the machine's memory, or of the first GPU's."""
    if device == "cuda":
        return int(torch.cuda.get_device_properties(0).total_memory)
    return int(psutil.virtual_memory().total)


def largest_micro_batch(config: Any, settings: MemorySettings) -> MicroBatch:
    """The largest forward pass that the settings allow: prompts and completions of full length."""
    groups = -(-settings.completions_per_update // settings.group_size)
    sequences = [
        TokenSequence([number + 1] * settings.max_prompt_tokens, [0] * settings.max_completion_tokens)
        for number in range(groups)
        for _ in range(settings.group_size)
    ][: settings.completions_per_update]
    if attention_name(config, settings.attention) != settings.attention:
        batch = pack(sequences, cut_packed(sequences, settings.micro_batch_tokens)[0])
    else:
        lengths = [len(sequence) for sequence in sequences]
        batch = build(sequences, cut_by_tokens(lengths, settings.micro_batch_tokens)[0])
    return replace(batch, input_ids=torch.zeros_like(batch.input_ids))  # ids told prompts apart; a model may lack them


def _held(config: Any, settings: MemorySettings) -> Any:
    """The policy of the run without contents, its weights in the types that the run holds them in."""
    policy: Any = empty_policy(config)
    policy.to(torch.float32)
    if settings.lora is not None:
        add_adapters(policy, settings.lora, config.model_type)
        if settings.precision == "bf16-mixed":
            hold_in_bfloat16(policy)
    return policy
