"""The evaluating part of the LightningModule, shared by validate, test, predict and a run's validations."""

from collections.abc import Mapping
from time import perf_counter
from typing import Any

import torch
from lightning.pytorch import LightningModule
from lightning.pytorch.trainer.states import TrainerFn

from asymgrpo_app.evaluation.metrics import SetMetrics
from asymgrpo_app.evaluation.outcomes import ACCURACIES, outcomes_of
from asymgrpo_app.rollout.types import PromptBatch


class EvaluatingModule(LightningModule):
    """Evaluates sets of problems, and publishes scalars over completed RL steps.

    Attributes:
        total_steps: Length of the run in RL steps.
        completed_steps: Number of RL steps that the policy was trained for.
        validation_pending: Whether a validation of this policy is still due.
        evaluations: The metrics of the last evaluation, by name of the set.
    """

    def __init__(self, total_steps: int) -> None:
        super().__init__()
        self.total_steps = total_steps
        self.completed_steps = 0
        self.validation_pending = True  # before the first step, too
        self.evaluations: dict[str, SetMetrics] = {}
        self._evaluation_started = 0.0

    def validation_due(self, step: int) -> bool:
        """Whether Lightning validates after this many completed RL steps."""
        if not any(self.trainer.num_val_batches):
            return False
        # Infinite if the trainer has no interval: then it validates before the first step and after the last.
        interval: Any = self.trainer.val_check_batch
        return step % interval == 0 or step >= self.total_steps

    def on_validation_epoch_start(self) -> None:
        self._evaluation_started = perf_counter()
        data: Any = self.trainer.datamodule  # type: ignore[attr-defined]
        self.evaluations = {name: chosen.metrics().to(self.device) for name, chosen in data.evaluation_sets.items()}

    def validation_step(self, batch: PromptBatch, batch_idx: int, dataloader_idx: int = 0) -> None:
        """Add the outcomes of the batch's problems to the metrics of their set."""
        rollouts = batch.require_rollouts() if batch.prompts else None
        self.evaluations[batch.set_name].update(outcomes_of(batch.set_name, rollouts) if rollouts else [])
        if self._returns_metrics and batch_idx + 1 == self._batches_of_sets()[dataloader_idx]:
            for name, value in self._accuracies(batch.set_name).items():
                # Of one batch alone, so that Lightning's mean over batches is the value itself.
                self.log(name, value, batch_size=1, on_step=False, on_epoch=True, add_dataloader_idx=False)

    def on_validation_epoch_end(self) -> None:
        self.validation_pending = False
        values = {tag: value for name in self.evaluations for tag, value in self._accuracies(name).items()}
        values["timing_s/testing"] = perf_counter() - self._evaluation_started
        self.publish(values, write=not self._returns_metrics)
        if self._returns_metrics and self.loggers:
            self.log("step", float(self.completed_steps))  # what Lightning takes as the step of its loggers

    on_test_epoch_start = on_validation_epoch_start
    test_step = validation_step
    on_test_epoch_end = on_validation_epoch_end

    def predict_step(self, batch: PromptBatch, batch_idx: int, dataloader_idx: int = 0) -> list[dict[str, Any]]:
        """The completions of the batch's problems, problem by problem: the fields of `Prediction` by name."""
        outcomes = outcomes_of(batch.set_name, batch.require_rollouts()) if batch.prompts else []
        return [{**vars(prediction)} for outcome in outcomes for prediction in outcome.completions]

    @property
    def _returns_metrics(self) -> bool:
        """Whether the trainer returns the metrics, as `validate` and `test` do; a run writes them by itself."""
        return self.trainer.state.fn in (TrainerFn.VALIDATING, TrainerFn.TESTING)

    def _batches_of_sets(self) -> list[int | float]:
        return self.trainer.num_test_batches if self.trainer.testing else self.trainer.num_val_batches

    def _accuracies(self, name: str) -> dict[str, float]:
        """The metrics of right and wrong of a set, by tag; every rank takes part, the first time."""
        estimates = self.evaluations[name].compute().items()
        return {f"val/{name}/{key}": e.value for key, e in estimates if key.partition("@")[0] in ACCURACIES}

    def publish(self, values: Mapping[str, float], *, write: bool = True) -> None:
        """Put values under their names in `trainer.callback_metrics`, and hand them to the loggers if `write`.

        Lightning's `log` would put them in the same place, but prepares each for a mean over batches and ranks first,
        which takes longer than all the rest of logging.
        """
        self.trainer.callback_metrics.update({name: torch.tensor(value) for name, value in values.items()})
        if write:
            self.write(values)

    def write(self, values: Mapping[str, float]) -> None:
        """Hand values to the loggers under the number of completed RL steps."""
        for logger in self.loggers:
            logger.log_metrics(dict(values), step=self.completed_steps)
