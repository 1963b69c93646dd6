"""The evaluating part of the LightningModule, shared by validate, test, predict and a run's validations."""

from collections.abc import Mapping
from time import perf_counter
from typing import Any

import torch
from lightning.pytorch import LightningModule

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
        return step % int(self.trainer.val_check_interval) == 0 or step >= self.total_steps

    def on_validation_epoch_start(self) -> None:
        self._evaluation_started = perf_counter()
        data: Any = self.trainer.datamodule  # type: ignore[attr-defined]
        self.evaluations = {name: chosen.metrics().to(self.device) for name, chosen in data.evaluation_sets.items()}

    def validation_step(self, batch: PromptBatch, batch_idx: int, dataloader_idx: int = 0) -> None:
        """Add the outcomes of the batch's problems to the metrics of their set."""
        rollouts = batch.require_rollouts() if batch.prompts else None
        self.evaluations[batch.set_name].update(outcomes_of(batch.set_name, rollouts) if rollouts else [])

    def on_validation_epoch_end(self) -> None:
        self.validation_pending = False
        values = {
            f"val/{name}/{key}": estimate.value
            for name, metric in self.evaluations.items()
            for key, estimate in metric.compute().items()
            if key.partition("@")[0] in ACCURACIES
        }
        self.publish(values | {"timing_s/testing": perf_counter() - self._evaluation_started})

    on_test_epoch_start = on_validation_epoch_start
    test_step = validation_step
    on_test_epoch_end = on_validation_epoch_end

    def predict_step(self, batch: PromptBatch, batch_idx: int, dataloader_idx: int = 0) -> int:
        """Return the number of problems in the batch; their completions are attached to the batch."""
        return len(batch.prompts)

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
