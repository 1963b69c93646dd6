"""A run whose sampler takes its time, to be stopped from outside; says on stdout where it is.

python -m tests.support.stopped_run ARGUMENTS... is `asymgrpo ARGUMENTS...`. From the environment: SAMPLING_S, how long
each call of the sampler takes, one number after the other, the last one for all further calls; SAVING_S, how long a
save takes; POISONED, an RL step (from 1) and a rank whose loss is `nan`, and so is its gradient, or `inf` alone.
"""

import os
import time
from typing import Any

import pytest

from asymgrpo_app.callbacks import rollout
from asymgrpo_app.checkpoints.plugin import WholeCheckpointIO
from asymgrpo_app.cli import entry_point
from tests.support.poison import plus_infinity, poison, times_nan
from tests.support.scripted_engine import ScriptedEngine


class SlowEngine(ScriptedEngine):
    """Answers by script, after a while."""

    calls = 0

    def generate(self, *arguments: Any) -> Any:
        print("sampling", flush=True)
        seconds = os.environ.get("SAMPLING_S", "0").split()
        SlowEngine.calls += 1
        time.sleep(float(seconds[min(SlowEngine.calls, len(seconds)) - 1]))
        return super().generate(*arguments)


class SlowCheckpointIO(WholeCheckpointIO):
    """Saves after a while."""

    def save_checkpoint(self, *arguments: Any, **named: Any) -> None:
        print("saving", flush=True)
        time.sleep(float(os.environ.get("SAVING_S", "0")))
        super().save_checkpoint(*arguments, **named)


if __name__ == "__main__":
    if poisoned := os.environ.get("POISONED"):
        step, rank, how = poisoned.split()

        def here(module: Any) -> bool:
            return (module.completed_steps + 1, module.global_rank) == (int(step), int(rank))

        poison(pytest.MonkeyPatch(), here, {"nan": times_nan, "inf": plus_infinity}[how])
    rollout.import_vllm = lambda: None  # type: ignore[assignment]
    rollout.VLLMEngine = SlowEngine  # type: ignore[assignment, misc]
    from asymgrpo_app.callbacks import checkpoint

    checkpoint.WholeCheckpointIO = SlowCheckpointIO  # type: ignore[misc]
    entry_point()
