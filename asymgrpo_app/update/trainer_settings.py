"""Refuses settings of a Lightning Trainer that have another meaning here, or none, as a script may give them.

The command refuses them by their keys before it builds a trainer (`asymgrpo_app.checks.options`).
"""

from typing import Any

from lightning.pytorch import Trainer
from lightning.pytorch.strategies import DDPStrategy, SingleDeviceStrategy
from lightning.pytorch.trainer.states import TrainerFn

from asymgrpo_app.errors import UserError
from asymgrpo_app.parallel.strategy import FSDP2Strategy
from asymgrpo_app.rollout.types import AttachesRollouts
from asymgrpo_app.runtime.compat import replaces_samplers

_PRECISIONS = ("32-true", "bf16-mixed")
_SAME_PRECISIONS = (None, 32, "32", "bf16")  # other names of the two above
_STRATEGIES = (SingleDeviceStrategy, DDPStrategy, FSDP2Strategy)

_STEPS = "set total_steps of AsymGRPOModule, which counts RL steps"
# What attributes of the trainer may be, its defaults among it, and what to do instead.
_SETTINGS: dict[str, tuple[tuple[Any, ...], str]] = {
    "barebones": ((False,), "leave it out"),
    "fast_dev_run": ((False,), _STEPS),
    "overfit_batches": ((0.0,), "set repeat_steps of PromptDataModule"),
    "limit_train_batches": ((1.0, None), _STEPS),
    "max_steps": ((-1,), _STEPS),
    "min_steps": ((None,), _STEPS),
    "max_epochs": ((None, -1, 1000), _STEPS),  # 1000 is what Lightning makes of None
    "min_epochs": ((None, 0), _STEPS),
    "gradient_clip_val": ((None,), "set max_grad_norm of AsymGRPOModule"),
    "gradient_clip_algorithm": ((None,), "set max_grad_norm of AsymGRPOModule"),
    "accumulate_grad_batches": ((1,), "set micro_batch_tokens of AsymGRPOModule"),
    "check_val_every_n_epoch": ((None, 1), "set val_check_interval, which counts RL steps"),
}


def check_trainer(trainer: Trainer) -> None:
    """Check a trainer that is about to run, before Lightning looks at it and before the policy is loaded.

    Raises:
        UserError: With the setting, its value and what to set instead.
    """
    fitting = trainer.state.fn == TrainerFn.FITTING
    _check_parts(trainer)
    check_precision("precision of the Trainer", trainer.precision)
    if not isinstance(trainer.strategy, _STRATEGIES):
        raise UserError(
            f"strategy {type(trainer.strategy).__name__} of the Trainer is not supported: use ddp, or fsdp2 to shard "
            "weights."
        )
    if trainer.world_size > 1 and replaces_samplers(trainer):
        raise UserError(
            "use_distributed_sampler of the Trainer must be False with several processes: PromptDataModule deals out "
            "the prompts itself."
        )
    if not fitting:
        return
    for name, (allowed, instead) in _SETTINGS.items():
        if (value := getattr(trainer, name)) not in allowed:
            raise UserError(f"{name} of the Trainer is not used here, got {value}: {instead}.")
    interval: Any = trainer.val_check_interval
    if interval != 1.0 and not (isinstance(interval, int) and interval >= 1):
        raise UserError(
            f"val_check_interval of the Trainer must be a whole number of RL steps >= 1, got {interval}: leave it out "
            "to validate before the first step and after the last."
        )
    if (every := trainer.log_every_n_steps) < 1:  # type: ignore[attr-defined]
        raise UserError(f"log_every_n_steps of the Trainer must be at least 1, got {every}.")


def check_precision(key: str, precision: object) -> None:
    """Check the precision of a trainer.

    Args:
        key: What the precision is called, for the message.
        precision: Its value.

    Raises:
        UserError: It is not supported.
    """
    if precision == "bf16-true":
        raise UserError(
            f"{key} bf16-true is not supported, as weights in bfloat16 lose most updates of a usual "
            "learning rate: use bf16-mixed, which computes in bfloat16 and holds weights in float32."
        )
    if precision not in (*_PRECISIONS, *_SAME_PRECISIONS):
        raise UserError(f"{key} must be one of {', '.join(_PRECISIONS)}, got {precision}.")


def _check_parts(trainer: Trainer) -> None:
    assert trainer.state.fn is not None
    method = trainer.state.fn.value
    if trainer.datamodule is None:  # type: ignore[attr-defined]
        raise UserError(
            f"trainer.{method} needs datamodule=PromptDataModule(...): its batches are RL steps and evaluation sets, "
            "which a DataLoader's are not."
        )
    samplers = [callback for callback in trainer.callbacks if isinstance(callback, AttachesRollouts)]  # type: ignore[attr-defined]
    if len(samplers) != 1:
        raise UserError(
            f"trainer.{method} needs one VLLMRolloutCallback, which samples the completions, got {len(samplers)}: "
            "build the Trainer with callbacks=[VLLMRolloutCallback(...)]."
        )
