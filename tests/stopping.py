"""Stopping a run at a chosen moment, and comparing what it became with the run that nobody stopped."""

import os
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from asymgrpo_app.checkpoints.folder import checkpoint_path
from asymgrpo_app.checkpoints.plugin import WholeCheckpointIO
from asymgrpo_app.module import AsymGRPOModule

UNEQUAL = ("timing_s/", "perf/", "hparam/")  # seconds and memory; hparam/ is written when a run ends


# Where the signal comes: owner and name of a function, and whether it comes before it or after it.
MOMENTS: dict[str, tuple[Any, str, str]] = {
    "backward": (AsymGRPOModule, "manual_backward", "before"),
    "between two updates": (AsymGRPOModule, "_step_optimizer", "after"),
    "end of the step": (AsymGRPOModule, "_finish_step", "before"),
    "validation": (AsymGRPOModule, "validation_step", "before"),
    "end of validation": (AsymGRPOModule, "on_validation_epoch_end", "before"),
    "before saving": (WholeCheckpointIO, "save_checkpoint", "before"),
    "after saving": (WholeCheckpointIO, "save_checkpoint", "after"),
}


def interrupted(
    function: Callable[..., Any], number: int, when: str, signum: signal.Signals = signal.SIGTERM
) -> Callable[..., Any]:
    """The function, with a signal to this process before or after its call of this number (from 1)."""
    calls = 0

    def wrapper(*arguments: Any, **named: Any) -> Any:
        nonlocal calls
        calls += 1
        if calls == number and when == "before":
            os.kill(os.getpid(), signum)
        result = function(*arguments, **named)
        if calls == number and when == "after":
            os.kill(os.getpid(), signum)
        return result

    return wrapper


def state(run_dir: Path, step: int) -> dict[str, Any]:
    """What a checkpoint holds of the run: weights, optimizer, schedule, and our own entries but for the config."""
    content = torch.load(checkpoint_path(run_dir, step), weights_only=True)
    own = {key: value for key, value in content["asymgrpo"].items() if key not in ("config", "validation_pending")}
    parts = ("state_dict", "optimizer_states", "lr_schedulers", "callbacks")
    return {name: content[name] for name in parts} | {"asymgrpo": own}


def assert_same(found: Any, expected: Any, place: str = "") -> None:
    """Equal to the last bit."""
    assert type(found) is type(expected), place
    if isinstance(expected, dict):
        assert found.keys() == expected.keys(), place
        for key in expected:
            assert_same(found[key], expected[key], f"{place}/{key}")
    elif isinstance(expected, list | tuple):
        assert len(found) == len(expected), place
        for number, (a, b) in enumerate(zip(found, expected, strict=True)):
            assert_same(a, b, f"{place}/{number}")
    elif isinstance(expected, torch.Tensor):
        assert torch.equal(found, expected), f"{place}: largest difference {(found - expected).abs().max():.3g}"
    else:
        assert found == expected, place


def scalars(run_dir: Path) -> dict[str, list[tuple[int, float]]]:
    """Step and value of all scalars that a run promises to repeat, by tag."""
    events = EventAccumulator(str(run_dir / "tensorboard"), size_guidance={"scalars": 0}).Reload()
    tags = [tag for tag in events.Tags()["scalars"] if not tag.startswith(UNEQUAL)]
    return {tag: [(event.step, event.value) for event in events.Scalars(tag)] for tag in tags}
