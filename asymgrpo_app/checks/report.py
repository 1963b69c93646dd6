"""The report of a run before it starts: batch sizes and memory."""

from typing import Any

from lightning.pytorch import Trainer
from lightning.pytorch.strategies import DDPStrategy

from asymgrpo_app.checks.memory import MemorySettings, device_memory, memory_lines, optimizer_copies, works_on_all
from asymgrpo_app.checks.precision import bfloat16_lines
from asymgrpo_app.datamodule import PromptDataModule
from asymgrpo_app.module import AsymGRPOModule
from asymgrpo_app.parallel.strategy import FSDP2Strategy
from asymgrpo_app.policy.loading import load_config
from asymgrpo_app.rollout.samplers import installed_sampler
from asymgrpo_app.rollout.vllm_engine import resolve_dtype


def arithmetic(module: AsymGRPOModule, data: PromptDataModule, trainer: Trainer, section: Any) -> str:
    """The run's folder, batch sizes, processes and precision as text."""
    group_size = section.rollout.group_size
    updates = module.updates_per_step * module.passes_per_step
    return (
        f"Run folder: {section.run_dir}\n"
        f"{section.steps} RL steps; a step is {data.prompts_per_step} prompts x {group_size} completions = "
        f"{data.prompts_per_step * group_size} completions and {updates} optimizer update{'s' * (updates > 1)} of "
        f"{data.prompts_per_step // module.updates_per_step * group_size} completions; "
        f"{trainer.world_size} process{'es' * (trainer.world_size > 1)}, {trainer.precision}"
    )


def memory(module: AsymGRPOModule, data: PromptDataModule, trainer: Trainer, rollout: Any) -> list[str]:
    """Lines on the run's memory, with a warning if it does not fit or if its precision is very slow."""
    precision, device = str(trainer.precision), trainer.strategy.root_device.type
    on_gpu = device == "cuda"
    kind = installed_sampler(rollout.sampler)
    sampler = {"vllm": rollout.engine, "transformers": rollout.transformers}.get(kind)  # None if elsewhere
    cache = int(rollout.engine.kv_cache_gib * 2**30)
    if on_gpu:
        cache = int(rollout.engine.gpu_memory_utilization * device_memory(device))
    prompts = -(-data.prompts_per_step // trainer.world_size)
    at_once = rollout.transformers.batch_tokens
    if not data.evaluation_sets:  # a validation is likely to fill it
        longest = data.max_prompt_tokens + rollout.max_completion_tokens
        at_once = min(at_once, prompts * rollout.group_size * longest)
    settings = MemorySettings(
        precision=precision,
        attention=module.attention,
        gradient_checkpointing=module.gradient_checkpointing,
        micro_batch_tokens=module.micro_batch_tokens,
        max_prompt_tokens=data.max_prompt_tokens,
        max_completion_tokens=rollout.max_completion_tokens,
        group_size=rollout.group_size,
        completions_per_update=-(-prompts // module.updates_per_step) * rollout.group_size,
        optimizer_copies=optimizer_copies(module.make_optimizer),
        optimizer_works_on_all=works_on_all(module.make_optimizer, on_gpu=on_gpu),
        reference=module.loss.kl_coef > 0 and module.lora is None,
        lora=module.lora,
        sampler_dtype=resolve_dtype(sampler.dtype, precision) if sampler else None,
        sampler_cache=cache if kind == "vllm" else 0,
        sampler_tokens=at_once if kind == "transformers" else None,
        sampler_sleeps=kind == "vllm" and rollout.engine.sleep_level > 0,
        device="cuda" if on_gpu else "cpu",
        processes=trainer.world_size // trainer.num_nodes,
        shards=trainer.world_size if isinstance(trainer.strategy, FSDP2Strategy) else 1,
        ddp=isinstance(trainer.strategy, DDPStrategy),
    )
    lines = memory_lines(load_config(module.policy_path), settings)
    section = "engine" if kind == "vllm" else kind
    dtypes = {f"rollout.{section}.dtype": sampler.dtype} if sampler else {}
    return lines + bfloat16_lines(precision=precision, sampler=dtypes, device=settings.device)
