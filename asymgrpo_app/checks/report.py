"""The batch sizes of a run as text."""

from typing import Any

from lightning.pytorch import Trainer

from asymgrpo_app.datamodule import PromptDataModule
from asymgrpo_app.module import AsymGRPOModule


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
