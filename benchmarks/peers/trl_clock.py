"""What both peers measure: seconds of each step and of the generation in it, and peak memory."""

import json
import resource
import time
from pathlib import Path
from typing import Any

from transformers import TrainerCallback
from trl import GRPOTrainer


class TimedTrainer(GRPOTrainer):
    """Writes down the seconds of each generation."""

    def _generate(self, *arguments: Any, **options: Any) -> Any:
        begun = time.perf_counter()
        outcome = super()._generate(*arguments, **options)
        self.generation.append(time.perf_counter() - begun)
        return outcome

    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **options)
        self.generation: list[float] = []


class StepClock(TrainerCallback):
    """Writes down the seconds of each step."""

    def __init__(self) -> None:
        self.seconds: list[float] = []
        self.started = 0.0

    def on_step_begin(self, *_: Any, **__: Any) -> None:
        self.started = time.perf_counter()

    def on_step_end(self, *_: Any, **__: Any) -> None:
        self.seconds.append(time.perf_counter() - self.started)


def write_result(path: str, clock: StepClock, trainer: TimedTrainer) -> None:
    """Leave what was measured in a JSON file."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    found = {"seconds": clock.seconds, "generation": trainer.generation, "peak_gib": peak}
    Path(path).write_text(json.dumps(found))
