"""Writes the resolved config of a run to its folder and to TensorBoard."""

from typing import Any

import yaml
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.cli import SaveConfigCallback
from lightning.pytorch.loggers import TensorBoardLogger

from asymgrpo_app.checkpoints.run_folder import is_used, record_config
from asymgrpo_app.module import AsymGRPOModule


class SaveRunConfig(SaveConfigCallback):
    """Writes the resolved config of a `fit` to the run folder, never over another, and to TensorBoard.

    In a new folder it is written after the first RL step: a run that ends before, however it does, leaves a folder that
    the next one may use.
    """

    _recorded = False

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Does nothing, in place of what Lightning's callback does here: that is too early."""

    def on_fit_start(self, trainer: Trainer, pl_module: AsymGRPOModule) -> None:
        if is_used(trainer.default_root_dir):
            self._record(trainer, pl_module)

    def on_train_batch_end(self, trainer: Trainer, pl_module: AsymGRPOModule, *_: Any) -> None:
        self._record(trainer, pl_module)

    def on_train_start(self, trainer: Trainer, pl_module: AsymGRPOModule) -> None:
        for logger in trainer.loggers:
            if isinstance(logger, TensorBoardLogger) and trainer.is_global_zero:
                # As a code block in Markdown.
                indented = "".join(f"    {line}\n" for line in pl_module.config_text.splitlines())
                # A resumed run writes it at its next step: if it dies and resumes there again, this text goes, too.
                first = pl_module.completed_steps + 1 if trainer.ckpt_path else 0
                logger.experiment.add_text("config", indented, first)

    def on_train_end(self, trainer: Trainer, pl_module: AsymGRPOModule) -> None:
        """Write the settings and the final validation for TensorBoard's tab HParams."""
        if pl_module.completed_steps > 0:
            self._record(trainer, pl_module)
        settings = flat_settings(yaml.safe_load(pl_module.config_text)) if trainer.is_global_zero else {}
        final = {f"hparam/{tag}": float(v) for tag, v in trainer.callback_metrics.items() if tag.startswith("val/")}
        for logger in trainer.loggers:
            if isinstance(logger, TensorBoardLogger) and final:
                logger.log_hyperparams(settings, metrics=final, step=pl_module.completed_steps)

    def _record(self, trainer: Trainer, pl_module: AsymGRPOModule) -> None:
        if trainer.is_global_zero and not self._recorded:
            record_config(trainer.default_root_dir, pl_module.config_text)
            self._recorded = True


def flat_settings(config: dict[str, Any], prefix: str = "") -> dict[str, bool | int | float | str]:
    """Flatten nested settings to `section.key: value`; settings that are not set are left out."""
    flat: dict[str, bool | int | float | str] = {}
    for key, value in config.items():
        if isinstance(value, dict):
            flat |= flat_settings(value, f"{prefix}{key}.")
        elif isinstance(value, bool | int | float | str):
            flat[f"{prefix}{key}"] = value
    return flat
