"""Estimates the memory of a run from its settings and its model's configuration, before the model is loaded.

What allocators add is left out. On CPU, tests hold the estimate of a pass to within `TOLERANCE` of measured peaks; on a
GPU it is not tested.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import psutil
import torch
from lightning.pytorch import Trainer
from lightning.pytorch.strategies import DDPStrategy

from asymgrpo_app.checks.activation_memory import body_memory, optimizer_memory
from asymgrpo_app.datamodule import PromptDataModule
from asymgrpo_app.microbatch.cutting import MicroBatches, cut
from asymgrpo_app.microbatch.microbatch import Form, MicroBatch, TokenSequence
from asymgrpo_app.module import AsymGRPOModule
from asymgrpo_app.parallel.strategy import FSDP2Strategy
from asymgrpo_app.policy.head import working_bytes
from asymgrpo_app.policy.loading import (
    AttentionImplementation,
    attention_name,
    empty_policy,
    load_config,
    packs,
    transformer_blocks,
)
from asymgrpo_app.policy.lora import LoRAConfig, add_adapters, hold_in_bfloat16, is_adapter
from asymgrpo_app.rollout.samplers import installed_sampler
from asymgrpo_app.rollout.vllm_engine import resolve_dtype

if TYPE_CHECKING:  # transformers takes seconds to import, which a wrong key should not wait for
    from transformers import PreTrainedModel

TOLERANCE = 0.25
"""Largest relative difference between the estimate of a pass and a measured peak that tests allow."""
_GIB = 1024**3
_PROGRAM = int(1.1 * _GIB)  # Python, torch, transformers and vLLM as measured, before a model is loaded
_ROOM = 0.95  # share of the device's memory beyond which a run gets a warning


def memory_lines(module: AsymGRPOModule, data: PromptDataModule, trainer: Trainer, rollout: Any) -> list[str]:
    """The estimate for one process, and a warning where it does not fit; or a line that says that there is none."""
    config = load_config(module.policy_path)
    try:
        parts = memory_parts(config, module, data, trainer, rollout)
    except (AttributeError, KeyError, NotImplementedError, RuntimeError, TypeError, ValueError) as error:
        reason = " ".join(str(error).split())[:200]
        return [f"Memory is not estimated for architecture {config.model_type}: {type(error).__name__}, {reason}."]
    device = trainer.strategy.root_device.type
    processes = 1 if device == "cuda" else trainer.world_size // trainer.num_nodes  # which share the machine's memory
    return _lines(parts, device_memory(device) // processes)


def _lines(parts: dict[str, int], available: int) -> list[str]:
    total = sum(parts.values())
    shown = ", ".join(f"{name} {size / _GIB:.2f}" for name, size in parts.items() if size >= 0.005 * _GIB)
    lines = [f"Memory, estimated: {total / _GIB:.1f} of {available / _GIB:.1f} GiB ({shown})."]
    if total > _ROOM * available:
        lines.append(
            "WARNING: this run is likely to run out of memory: lower model.micro_batch_tokens, turn on "
            "model.gradient_checkpointing, or give the sampler less (rollout.engine)."
        )
    return lines


def memory_parts(
    config: Any, module: AsymGRPOModule, data: PromptDataModule, trainer: Trainer, rollout: Any
) -> dict[str, int]:
    """Bytes that one process holds when it holds the most, by use."""
    policy = held_policy(config, module.attention, str(trainer.precision), module.lora)
    numbers = sum(parameter.numel() for name, parameter in policy.named_parameters() if not is_adapter(name))
    held, sampling = _sampler_parts(config, numbers, trainer, rollout)
    always, updating = _training_parts(policy, module, data, trainer, rollout)
    # Sampling and updating take turns: of what each frees before the other begins, the larger counts.
    return always | held | max(sampling, updating, key=lambda parts: sum(parts.values()))


def _training_parts(
    policy: PreTrainedModel, module: AsymGRPOModule, data: PromptDataModule, trainer: Trainer, rollout: Any
) -> tuple[dict[str, int], dict[str, int]]:
    """What training holds all the time, and what it holds during an update alone."""
    strategy, precision = trainer.strategy, str(trainer.precision)
    shards = trainer.world_size if isinstance(strategy, FSDP2Strategy) else 1
    held = sum(parameter.nbytes for parameter in policy.parameters()) // shards
    trained = sum(parameter.nbytes for parameter in policy.parameters() if parameter.requires_grad)
    unsharded = _unsharded(policy) if shards > 1 else 0
    copies, copies_in_step = optimizer_memory(module.make_optimizer, strategy.root_device)
    prompts = -(-data.prompts_per_step // trainer.world_size)
    batch = largest_micro_batch(
        (-(-prompts // module.updates_per_step), rollout.group_size),
        (data.max_prompt_tokens, rollout.max_completion_tokens),
        module.micro_batch_tokens,
        packed=packs(policy),
    )
    activations, temporary = pass_memory(
        policy, batch, precision, checkpointing=module.gradient_checkpointing, on_gpu=_on_gpu(trainer)
    )
    always = {
        "program": 0 if _on_gpu(trainer) else _PROGRAM,
        "weights": held,
        "optimizer": trained // shards * copies,
        # DDP exchanges gradients from a copy of its own.
        "DDP buckets": trained if isinstance(strategy, DDPStrategy) else 0,
        "reference": held if module.loss.kl_coef > 0 and module.lora is None else 0,
    }
    updating = {
        # Micro-batches add up whole gradients, which are exchanged once per update.
        "gradients": trained + (trained // shards if shards > 1 else 0),
        "unsharded block": unsharded,
        "activations": activations,
        # Activations are gone when the optimizer makes its step.
        "temporary buffers": max(temporary, trained // shards * copies_in_step - activations),
    }
    return always, updating


def _sampler_parts(config: Any, numbers: int, trainer: Trainer, rollout: Any) -> tuple[dict[str, int], dict[str, int]]:
    """What the sampler of a model with so many weights holds all the time, and what while it samples alone."""
    kind = installed_sampler(rollout.sampler)
    if kind not in ("vllm", "transformers"):  # it runs elsewhere
        return {}, {}
    options = rollout.engine if kind == "vllm" else rollout.transformers
    size = getattr(torch, resolve_dtype(options.dtype, str(trainer.precision))).itemsize
    weights = {"sampler's weights": numbers * size}
    if kind == "transformers":
        text = config.get_text_config()
        width = getattr(text, "head_dim", None) or text.hidden_size // text.num_attention_heads
        heads = getattr(text, "num_key_value_heads", None) or text.num_attention_heads
        return weights, {"sampler's cache": 2 * text.num_hidden_layers * heads * width * size * options.batch_tokens}
    parts = weights | {"sampler's cache": int(options.kv_cache_gib * _GIB)}
    if _on_gpu(trainer):  # vLLM's share of the GPU has its weights in it
        parts = {"sampler's cache": int(options.gpu_memory_utilization * device_memory("cuda"))}
    return ({}, parts) if options.sleep_level > 0 else (parts, {})


def _on_gpu(trainer: Trainer) -> bool:
    return trainer.strategy.root_device.type == "cuda"


def _unsharded(policy: PreTrainedModel) -> int:
    """Bytes of sharded weights that are gathered at the same time: the largest block, and all outside of blocks."""
    blocks = [sum(parameter.numel() for parameter in block.parameters()) for block in transformer_blocks(policy)]
    return 4 * (policy.num_parameters() - sum(blocks) + max(blocks, default=0))


def device_memory(device: str) -> int:
    """Bytes of the machine's memory, or of the first GPU's."""
    if device == "cuda":
        return int(torch.cuda.get_device_properties(0).total_memory)
    return int(psutil.virtual_memory().total)


def held_policy(
    config: Any, attention: AttentionImplementation, precision: str, lora: LoRAConfig | None
) -> PreTrainedModel:
    """The policy as a run holds it, on the meta device: shapes and types without contents."""
    policy = empty_policy(config)
    policy.float().set_attn_implementation(attention_name(config, attention))
    if lora is not None:
        add_adapters(policy, lora, config.model_type)
        if precision == "bf16-mixed":
            hold_in_bfloat16(policy)
    return policy


def largest_micro_batch(
    groups: tuple[int, int], lengths: tuple[int, int], max_tokens: int, *, packed: bool
) -> MicroBatch:
    """The largest forward pass of an update.

    Args:
        groups: Prompts of an update, and completions of each.
        lengths: The most tokens of a prompt, and of a completion.
        max_tokens: Bound on the micro-batch.
        packed: Whether the model takes packed rows.
    """
    sequences = [
        TokenSequence([prompt] * lengths[0], [0] * lengths[1]) for prompt in range(groups[0]) for _ in range(groups[1])
    ][: max_tokens // lengths[1] + 1]  # no more go into one
    form: Form = "buckets" if packed else "padded"  # the form `varlen` holds less
    cuts = cut(sequences, range(len(sequences)), max_tokens, form)
    return MicroBatches(sequences, cuts, form, torch.device("cpu"))[0]


def pass_memory(
    policy: PreTrainedModel, batch: MicroBatch, precision: str, *, checkpointing: bool, on_gpu: bool
) -> tuple[int, int]:
    """Activations that a forward pass keeps for the backward pass, and the most that is held for a moment beside them.

    Args:
        policy: As from `held_policy`; it is of no use afterwards, see `body_memory`.
        batch: The tokens; only their shape matters.
        precision: As in `trainer.precision`.
        checkpointing: As in `model.gradient_checkpointing`.
        on_gpu: Whether the output head works on a GPU.
    """
    output: Any = policy.get_output_embeddings()
    head = working_bytes(
        len(batch.targets),
        output.in_features,
        output.out_features,
        matmul_dtype=torch.float32 if precision == "32-true" else torch.bfloat16,
        weight_dtype=output.weight.dtype,
        on_cpu=not on_gpu,
        weight_grad=output.weight.requires_grad,
    )
    kept, peak = body_memory(policy, batch, precision=precision, gradient_checkpointing=checkpointing)
    return kept, max(peak - kept, head)
