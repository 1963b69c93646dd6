"""Callbacks as users write them, for tests of what is said of them."""

from enum import StrEnum
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import Callback
from lightning.pytorch.callbacks import EarlyStopping, GradientAccumulationScheduler, ModelCheckpoint
from lightning.pytorch.loggers.logger import Logger
from lightning.pytorch.plugins.environments import LightningEnvironment

from asymgrpo_app.rollout.types import PromptBatch

# ---- with hooks that Lightning could not call, or never calls ----


class WithoutStage(Callback):
    def setup(self, trainer, pl_module) -> None: ...


class Waits(Callback):
    async def on_train_start(self, trainer, pl_module) -> None: ...


class NoMethod(Callback):
    on_train_end = 5  # type: ignore[assignment]


class OfOneSet(Callback):
    """Right with one evaluation set, as Lightning then gives no index of it."""

    def on_validation_batch_end(self, trainer, pl_module, outputs, batch, batch_idx) -> None: ...


class ByAnyName(Callback):
    """Right, whatever Lightning calls it with."""

    def setup(self, *arguments, **more) -> None: ...
    def on_train_batch_end(self, trainer, *arguments) -> None: ...
    def on_validation_end(self, trainer, module) -> None: ...


class OfOldTimes(Callback):
    def on_epoch_end(self, trainer, pl_module) -> None: ...
    def on_before_zero_grad(self, trainer, pl_module, optimizer) -> None: ...
    def on_train_epoch_end(self, trainer, pl_module) -> None: ...


class StateOfPaths(Callback):
    def state_dict(self) -> dict[str, Any]:
        return {"path": Path("a")}


class StateOfNumbers(Callback):
    def state_dict(self) -> dict[str, Any]:
        return {"best": torch.tensor(0.5), "steps": [1, 2], "name": None}


class StateOfSetup(Callback):
    """Has a state once it is set up."""

    def setup(self, trainer, pl_module, stage) -> None:
        self.number = 1

    def state_dict(self) -> dict[str, Any]:
        return {"number": self.number}


def of_trainer(trainer: Any) -> None: ...


# ---- that inherit from Lightning's ----


class Saver(ModelCheckpoint): ...


class Stopper(EarlyStopping): ...


class OwnAccumulation(GradientAccumulationScheduler):
    def on_train_start(self, trainer, pl_module) -> None: ...


class OwnEnvironment(LightningEnvironment):
    made = 0

    def __init__(self) -> None:
        super().__init__()
        OwnEnvironment.made += 1


# ---- that do something ----


class Kind(StrEnum):
    PLAIN = "plain"


class WithKind(Callback):
    def __init__(self, kind: str = Kind.PLAIN) -> None: ...


class Logs(Callback):
    """Gives a scalar of its own after each step."""

    def on_train_batch_end(self, trainer, pl_module, *_) -> None:
        pl_module.publish({"my/tag": 1.0})


class Flags(Callback):
    """Notes how torch was set, by the hook."""

    seen: dict[str, Any] = {}  # noqa: RUF012 (the test reads it from the class, as the run makes the object)

    def on_train_batch_start(self, trainer, pl_module, *_) -> None:
        Flags.seen["anomaly"] = torch.is_anomaly_enabled()
        Flags.seen["deterministic"] = torch.are_deterministic_algorithms_enabled()
        Flags.seen["benchmark"] = torch.backends.cudnn.benchmark

    def on_validation_batch_start(self, trainer, pl_module, *_) -> None:
        Flags.seen["inference"] = torch.is_inference_mode_enabled()


class OwnLogger(Logger):
    """Keeps what it is given."""

    written: list[tuple[int | None, dict[str, float]]] = []  # noqa: RUF012 (as above)
    name = version = None

    def log_hyperparams(self, *_, **__) -> None: ...

    def log_metrics(self, metrics, step=None) -> None:
        OwnLogger.written.append((step, metrics))


def completions(batch: PromptBatch) -> int:
    """A `batch_size_fn` of ThroughputMonitor."""
    return sum(map(len, batch.require_rollouts().groups))


def say_end(trainer: Any, pl_module: Any) -> None:
    """A hook for LambdaCallback."""
    print(f"ended after {pl_module.completed_steps} steps")
