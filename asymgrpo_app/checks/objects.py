"""Checks of a run's objects across the sections of its config, before a model is loaded."""

from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import Trainer
from lightning.pytorch.strategies import DDPStrategy, SingleDeviceStrategy

from asymgrpo_app.algorithm.advantages import GroupRewards, checked_advantages
from asymgrpo_app.checkpoints.files import read_state
from asymgrpo_app.checks.optimization import check_optimization
from asymgrpo_app.checks.options import other_strategy
from asymgrpo_app.datamodule import PromptDataModule
from asymgrpo_app.errors import UserError, with_key
from asymgrpo_app.module import AsymGRPOModule
from asymgrpo_app.parallel.requirements import check_optimizer, check_sampler
from asymgrpo_app.parallel.strategy import FSDP2Strategy
from asymgrpo_app.policy.compilation import check_compiler
from asymgrpo_app.policy.loading import check_attention, empty_policy, load_config
from asymgrpo_app.policy.lora import summary
from asymgrpo_app.policy.lora_files import check_settings
from asymgrpo_app.rollout.vllm_engine import check_in_process

_CUTS_NOTHING = {"top_p": 1.0, "top_k": 0, "min_p": 0.0}
_ROUNDING = 1e-6  # of an advantage that is 0
_STRATEGIES = (SingleDeviceStrategy, DDPStrategy, FSDP2Strategy)


def check_training(module: AsymGRPOModule, data: PromptDataModule, trainer: Trainer, section: Any) -> None:
    """Check all that a training run needs, except its data and its lengths.

    Raises:
        UserError: With the keys that do not go together.
    """
    if data.train_source is None:
        raise UserError("data.train is not set: fit needs a source of prompts.")
    check_processes(module, data, trainer, section)
    check_method(module, section.rollout)
    check_optimization(module.make_optimizer, module.make_lr_scheduler, section.model)
    device = trainer.strategy.root_device.type
    check_attention(module.attention, device=device, precision=str(trainer.precision))
    if module.compile_blocks:
        check_compiler(device)


def check_processes(module: AsymGRPOModule, data: PromptDataModule, trainer: Trainer, section: Any) -> None:
    """Check strategy and number of processes, and whether optimizer, sampler and checkpoints go with them."""
    if not isinstance(trainer.strategy, _STRATEGIES):
        raise other_strategy(type(trainer.strategy).__name__)
    share = data.prompts_per_step // module.updates_per_step
    processes = trainer.world_size
    if share < processes:
        raise UserError(
            f"data.prompts_per_step / model.updates_per_step is {share}, fewer than the {processes} processes: "
            "every process needs at least one prompt per update."
        )
    rollout = section.rollout
    if isinstance(trainer.strategy, FSDP2Strategy):
        check_optimizer(module.make_optimizer)
        check_sampler(rollout)
    elif section.checkpoint.layout == "sharded":
        raise UserError("checkpoint.layout is sharded, but weights are sharded by trainer.strategy fsdp2 alone.")
    check_engine(trainer, rollout)


def check_engine(trainer: Trainer, rollout: Any) -> None:
    """Check the options of an engine in the processes of a run, also of an evaluation."""
    if rollout.sampler in ("vllm", "auto"):
        check_in_process(rollout.engine, trainer.world_size, on_gpu=trainer.strategy.root_device.type == "cuda")


def check_method(module: AsymGRPOModule, rollout: Any) -> None:
    """Check the sampling settings against the method, and try the advantage on every number of right completions."""
    cuts = [f"rollout.{name} ({rollout[name]})" for name, value in _CUTS_NOTHING.items() if rollout[name] != value]
    if cuts and module.loss.correction.mode == "off":
        raise UserError(
            f"{' and '.join(cuts)} cuts the distribution that training samples from, which biases the ratio of "
            f"policy and sampler: leave it out, or set model.loss.correction.mode."
        )
    buffer, limit = module.loss.overlong_buffer, rollout.max_completion_tokens
    if buffer is not None and buffer > limit:
        raise UserError(f"model.loss.overlong_buffer is {buffer}, longer than rollout.max_completion_tokens, {limit}.")
    size = rollout.group_size
    rewards = torch.tensor([[float(index < k) for index in range(size)] for k in range(size + 1)])
    for progress in (0.0, 1.0):
        try:
            groups = GroupRewards(rewards, torch.ones_like(rewards).bool(), progress)
            advantages = checked_advantages(module.advantage, groups)
        except UserError as error:
            raise UserError(with_key(str(error), "model.advantage")) from error
        if rollout.dynamic_sampling is not None and advantages[[0, -1]].abs().max() > _ROUNDING:
            raise UserError(
                f"rollout.dynamic_sampling replaces groups that are all right or all wrong, but model.advantage "
                f"({type(module.advantage).__name__}) learns from them: turn one of the two off."
            )


def check_lengths(module: AsymGRPOModule, data: PromptDataModule, rollout: Any) -> None:
    """Check the tokenizer and the longest sequence against the limits of the architecture."""
    limits = (chosen.max_completion_tokens or 0 for chosen in data.evaluation_sets.values())
    prompt = data.max_prompt_tokens
    completion = max(rollout.max_completion_tokens, *limits, 0)
    config = load_config(module.policy_path)
    known, rows = len(data.tokenizer), getattr(config, "vocab_size", None)
    if rows is not None and known > rows:
        raise UserError(
            f"The tokenizer of {data.tokenizer_path} knows {known:,} tokens, but the model has only "
            f"{rows:,}: they do not belong together."
        )
    limit = getattr(config, "max_position_embeddings", None)
    if limit is not None and prompt + completion > limit:
        raise UserError(
            f"data.max_prompt_tokens ({prompt}) and rollout.max_completion_tokens ({completion}) add up to more "
            f"than the {limit} positions of {module.policy_path}."
        )
    own_limit = rollout.engine.max_model_len
    if own_limit is not None and own_limit < prompt + completion:
        raise UserError(
            f"rollout.engine.max_model_len is {own_limit}, less than data.max_prompt_tokens ({prompt}) and the "
            f"longest completion ({completion}) together."
        )


def check_adapters(module: AsymGRPOModule, trainer: Trainer, checkpoint: str | None) -> list[str]:
    """Check a checkpoint's adapters against the run's; returns a line on what is trained if that is adapters."""
    if checkpoint is not None:
        check_settings(read_state(Path(checkpoint)), module.lora, checkpoint)
    if module.lora is None:
        return []
    if isinstance(trainer.strategy, FSDP2Strategy):
        raise UserError(
            "model.lora does not go with trainer.strategy fsdp2, which cannot keep frozen weights and adapters of "
            "different types in one group: use trainer.strategy ddp."
        )
    return [summary(empty_policy(load_config(module.policy_path)), module.lora, module.policy_path)]
