"""Refuses options that have another meaning here, or none, before any object is built."""

from typing import Any

from asymgrpo_app.errors import UserError, at_least_1
from asymgrpo_app.parallel.strategy import NAME as FSDP2
from asymgrpo_app.rollout.vllm_engine import require_vllm
from asymgrpo_app.update.trainer_settings import check_precision

# Trainer options that mean something else here, with the key to use instead.
_REPLACED = {
    "max_steps": "steps, which counts RL steps",
    "min_steps": "steps",
    "max_epochs": "steps, which counts RL steps",
    "min_epochs": "steps",
    "max_time": "time_limit",
    "gradient_clip_val": "model.max_grad_norm",
    "gradient_clip_algorithm": "model.max_grad_norm",
    "default_root_dir": "run_dir",
    "enable_checkpointing": "checkpoint.every_n_steps",
}
# Trainer options that must keep one value, with what to do instead.
_DERIVED = {
    "overfit_batches": (0.0, "set data.repeat_steps"),
    "accumulate_grad_batches": (1, "set model.micro_batch_tokens"),
    "use_distributed_sampler": (False, "leave it out"),
    "fast_dev_run": (False, "set steps"),
    "limit_train_batches": (None, "set steps"),
    "check_val_every_n_epoch": (None, "set trainer.val_check_interval"),
    "num_sanity_val_steps": (0, "a run validates before its first step by itself"),
    "reload_dataloaders_every_n_epochs": (0, "leave it out"),
    "barebones": (False, "leave it out"),
}
# FSDP's first version fails in manual optimization; model_parallel alone would leave each process its own gradients.
_OTHER_STRATEGIES = ("fsdp", "deepspeed", "model_parallel")


def check_options(section: Any) -> None:
    """Check the parsed config of a subcommand.

    Raises:
        UserError: With the key, the value and what to set instead.
    """
    check_trainer_options(section.trainer)
    at_least_1("steps", section.steps)
    if not 0 <= section.seed_everything < 2**32:
        raise UserError(f"seed_everything must be in [0, 2**32), got {section.seed_everything}.")
    scheduler = section.model.lr_scheduler
    if scheduler is not None and "ReduceLROnPlateau" in scheduler.class_path:
        raise UserError(f"model.lr_scheduler may not be {scheduler.class_path}: use one that goes by steps.")
    if section.rollout.sampler == "vllm":
        require_vllm()


def check_trainer_options(options: Any) -> None:
    """Check the section `trainer`.

    Raises:
        UserError: With the key, the value and what to set instead.
    """
    for name, instead in _REPLACED.items():
        if options.get(name) not in (None, -1):
            raise UserError(f"trainer.{name} is not used here: set {instead}.")
    for name, (value, instead) in _DERIVED.items():
        if options.get(name) != value:
            raise UserError(f"trainer.{name} must stay {value}, got {options.get(name)}: {instead}.")
    check_precision("trainer.precision", options.precision)
    strategy = str(options.strategy).lower()
    if strategy.startswith(_OTHER_STRATEGIES) and strategy != FSDP2:  # before Lightning misses their packages
        raise other_strategy(options.strategy)
    if (every := options.log_every_n_steps) is None or every < 1:
        raise UserError(f"trainer.log_every_n_steps must be at least 1, got {every}.")
    interval = options.val_check_interval
    if not isinstance(interval, int) or interval < 1:
        raise UserError(f"trainer.val_check_interval must be a whole number of RL steps >= 1, got {interval}.")


def other_strategy(name: str) -> UserError:
    """The error for a strategy that is not supported."""
    return UserError(f"trainer.strategy {name} is not supported: use ddp, or fsdp2 to shard weights.")
