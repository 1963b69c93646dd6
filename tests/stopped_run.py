"""A run whose sampler takes its time, to be stopped from outside; says on stdout where it is.

python -m tests.stopped_run ARGUMENTS... is `asymgrpo ARGUMENTS...`. From the environment: SAMPLING_S and SAVING_S, how
long a call of the sampler and a save take; POISONED, an RL step (from 1) and a rank whose loss is not finite.
"""

import dataclasses
import os
import sys
import time
from typing import Any

from asymgrpo_app.callbacks import rollout
from asymgrpo_app.checkpoints.plugin import WholeCheckpointIO
from asymgrpo_app.cli import main
from asymgrpo_app.module import AsymGRPOModule
from tests.scripted_engine import ScriptedEngine


class SlowEngine(ScriptedEngine):
    """Answers by script, after a while."""

    def generate(self, *arguments: Any) -> Any:
        print("sampling", flush=True)
        time.sleep(float(os.environ.get("SAMPLING_S", "0")))
        return super().generate(*arguments)


class SlowCheckpointIO(WholeCheckpointIO):
    """Saves after a while."""

    def save_checkpoint(self, *arguments: Any, **named: Any) -> None:
        print("saving", flush=True)
        time.sleep(float(os.environ.get("SAVING_S", "0")))
        super().save_checkpoint(*arguments, **named)


_plain_loss = AsymGRPOModule._loss


def _loss(module: AsymGRPOModule, *arguments: Any, **named: Any) -> Any:
    poisoned = os.environ.get("POISONED", "") == f"{module.completed_steps + 1} {module.global_rank}"
    loss = _plain_loss(module, *arguments, **named)
    return dataclasses.replace(loss, total=loss.total * (float("nan") if poisoned else 1.0))


if __name__ == "__main__":
    AsymGRPOModule._loss = _loss  # type: ignore[method-assign]
    rollout.VLLMEngine = SlowEngine  # type: ignore[assignment, misc]
    from asymgrpo_app.callbacks import checkpoint

    checkpoint.WholeCheckpointIO = SlowCheckpointIO  # type: ignore[misc]
    sys.exit(main())
