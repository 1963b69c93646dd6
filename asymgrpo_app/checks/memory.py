"""Estimates the memory of a run from its settings and its model's configuration, before the model is loaded.

What allocators add is left out. On CPU, tests hold the estimate of a pass to within `TOLERANCE` of measured peaks; on a
GPU it is not tested.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import psutil
import torch
from lightning.pytorch import Trainer
from lightning.pytorch.strategies import DDPStrategy

from asymgrpo_app.checks.activation_memory import body_memory, optimizer_memory
from asymgrpo_app.datamodule import PromptDataModule
from asymgrpo_app.errors import UserError
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
from asymgrpo_app.rollout.vllm_engine import TRAINING_SHARE, resolve_dtype

if TYPE_CHECKING:  # transformers takes seconds to import, which a wrong key should not wait for
    from transformers import PreTrainedModel

TOLERANCE = 0.25
"""Largest relative difference between the estimate of a pass and a measured peak that tests allow."""
_GIB = 1024**3
_PROGRAM = int(1.1 * _GIB)  # Python, torch, transformers and vLLM as measured, before a model is loaded
_ROOM = 0.95  # share of the device's memory beyond which a run gets a warning
_CONTEXT = _GIB  # of a GPU for CUDA itself and the libraries' work space, an assumption


def memory_lines(module: AsymGRPOModule, data: PromptDataModule, trainer: Trainer, rollout: Any) -> list[str]:
    """The estimate for one process, and a warning where it does not fit; or a line that says that there is none.

    Raises:
        UserError: vLLM's share of the GPU and what the policy holds do not fit beside each other.
    """
    config = load_config(module.policy_path)
    try:
        phases = memory_phases(config, module, data, trainer, rollout)
    except (AttributeError, KeyError, NotImplementedError, RuntimeError, TypeError, ValueError) as error:
        reason = " ".join(str(error).split())[:200]
        return [f"Memory is not estimated for architecture {config.model_type}: {type(error).__name__}, {reason}."]
    device = trainer.strategy.root_device.type
    if device == "cuda" and installed_sampler(rollout.sampler) == "vllm":
        engine = phases.sampler | phases.sampling
        check_share(phases.training, engine["sampler's weights"], _share(rollout.engine), device_memory("cuda"))
        cache = _cache_line(config, engine["sampler's cache"], data, trainer, rollout)
        return [*_lines(phases.largest(), device_memory("cuda")), cache]
    processes = 1 if device == "cuda" else trainer.world_size // trainer.num_nodes  # which share the machine's memory
    return _lines(phases.largest(), device_memory(device) // processes)


def check_share(training: dict[str, int], weights: int, share: float, total: int) -> None:
    """Refuse a share of the GPU that vLLM cannot have, at the start or later.

    vLLM wants all of its share free whenever it starts, also in a run that goes on and already has its optimizer's
    state, and whenever it wakes from sleep; what `kv_cache_memory_bytes` says changes nothing about it.

    Args:
        training: What training holds all the time, as in `Phases`.
        weights: What vLLM's weights take, in bytes.
        share: Share of the GPU's memory.
        total: The GPU's memory in bytes.

    Raises:
        UserError: With the numbers, and the largest share that fits.
    """
    held, own = sum(training.values()), share * total
    said = f"rollout.engine.gpu_memory_utilization is {share:g}, {own / _GIB:.1f} of the GPU's {total / _GIB:.1f} GiB"
    if own < weights:
        raise UserError(f"{said}, but vLLM's weights alone take {weights / _GIB:.1f} GiB: give more.")
    if own + held + _CONTEXT <= total:
        return
    fitting = int(100 * (total - held - _CONTEXT) / total) / 100
    raise UserError(
        f"{said}, but while vLLM samples the policy holds {held / _GIB:.1f} GiB from the first update on "
        f"({(held - training['optimizer']) / _GIB:.1f} before it), and CUDA about {_CONTEXT / _GIB:.0f}: "
        + (
            f"set at most {fitting:g}."
            if fitting * total > weights
            else "spread it over GPUs (trainer.strategy: fsdp2), or sample on a server."
        )
    )


def _share(options: Any) -> float:
    return TRAINING_SHARE if options.gpu_memory_utilization is None else options.gpu_memory_utilization


def _cache_line(config: Any, cache: int, data: PromptDataModule, trainer: Trainer, rollout: Any) -> str:
    """How many sequences a cache of so many bytes on a GPU holds at once."""
    size = getattr(torch, resolve_dtype(rollout.engine.dtype, str(trainer.precision))).itemsize
    tokens = cache * rollout.engine.tensor_parallel_size // _cached_token(config, size)
    longest = data.max_prompt_tokens + rollout.max_completion_tokens
    return (
        f"vLLM's cache holds at most {tokens:,} tokens, {tokens // longest:,} sequences of full length at once "
        f"(rollout.engine.max_num_seqs: {rollout.engine.max_num_seqs})."
    )


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


@dataclass(frozen=True)
class Phases:
    """Bytes that one process holds, by use.

    Attributes:
        training: What training holds all the time.
        sampler: What the sampler holds all the time.
        sampling: What is held while the sampler samples, alone.
        updating: What is held during an update, alone.
    """

    training: dict[str, int]
    sampler: dict[str, int]
    sampling: dict[str, int]
    updating: dict[str, int]

    def largest(self) -> dict[str, int]:
        """When it holds the most: of what sampling and updating free before the other begins, the larger counts."""
        in_turn = max(self.sampling, self.updating, key=lambda parts: sum(parts.values()))
        return self.training | self.sampler | in_turn


def memory_phases(
    config: Any, module: AsymGRPOModule, data: PromptDataModule, trainer: Trainer, rollout: Any
) -> Phases:
    """Bytes that one process holds, by use and by when."""
    policy = held_policy(config, module.attention, str(trainer.precision), module.lora)
    numbers = sum(parameter.numel() for name, parameter in policy.named_parameters() if not is_adapter(name))
    sampler, sampling = _sampler_parts(config, numbers, trainer, rollout)
    training, updating = _training_parts(policy, module, data, trainer, rollout)
    return Phases(training, sampler, sampling, updating)


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
        return weights, {"sampler's cache": _cached_token(config, size) * options.batch_tokens}
    if _on_gpu(trainer):  # vLLM's share of the GPU has its weights in it, and its CUDA graphs
        weights = {"sampler's weights": numbers * size // options.tensor_parallel_size}
        room = int(_share(options) * device_memory("cuda")) - weights["sampler's weights"]
        parts = weights | {"sampler's cache": max(0, room)}
    else:
        parts = weights | {"sampler's cache": int(options.kv_cache_gib * _GIB)}
    return ({}, parts) if options.sleep_level > 0 else (parts, {})


def _cached_token(config: Any, size: int) -> int:
    """Bytes of a token's keys and values in all layers, where a number has `size` bytes."""
    text = config.get_text_config()
    width = getattr(text, "head_dim", None) or text.hidden_size // text.num_attention_heads
    heads = getattr(text, "num_key_value_heads", None) or text.num_attention_heads
    return int(2 * text.num_hidden_layers * heads * width * size)


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
