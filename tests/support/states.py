"""What a checkpoint holds of a run, and whether two are the same to the last bit."""

from pathlib import Path
from typing import Any

import torch

from asymgrpo_app.checkpoints.folder import checkpoint_path, list_checkpoints


def content(run_dir: Path, step: int) -> dict[str, Any]:
    """All of it."""
    return torch.load(checkpoint_path(run_dir, step), weights_only=True)


def weights(run_dir: Path, step: int) -> dict[str, torch.Tensor]:
    """The policy's weights by name."""
    return content(run_dir, step)["state_dict"]


def state(run_dir: Path, step: int) -> dict[str, Any]:
    """Weights, optimizer, schedule, callbacks and the project's own entries, but for the config."""
    whole = content(run_dir, step)
    own = {key: value for key, value in whole["asymgrpo"].items() if key not in ("config", "validation_pending")}
    parts = ("state_dict", "optimizer_states", "lr_schedulers", "callbacks")
    return {name: whole[name] for name in parts} | {"asymgrpo": own}


def saved_steps(run_dir: Path) -> list[int]:
    """The steps of a run's checkpoints."""
    return list(list_checkpoints(run_dir))


def assert_same(found: Any, expected: Any, place: str = "") -> None:
    """Equal to the last bit, whatever is nested in what."""
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


def differs(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> bool:
    """Whether weights of the same names have other values."""
    assert one.keys() == other.keys()
    return not all(torch.equal(one[name], other[name]) for name in one)
