"""Runs that are killed while they save. A script, so that the processes it forks have no threads yet.

python -m tests.support.killed_saves FOLDER NAME... makes a run in FOLDER/NAME for each of these KILLS, killed by
SIGKILL at that moment.
"""

import os
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from asymgrpo_app.callbacks import checkpoint, rollout
from asymgrpo_app.checkpoints import files
from asymgrpo_app.checkpoints.folder import list_checkpoints
from asymgrpo_app.checkpoints.plugin import WholeCheckpointIO
from asymgrpo_app.cli import main
from asymgrpo_app.runtime import whole_files
from tests.support.checkpoint_files import DyingFile
from tests.support.scripted_engine import ScriptedEngine, command

STEPS = 4
# A schedule, an adaptive coefficient, a pass over the data that ends in the run, and each save removes a checkpoint.
ARGUMENTS = [
    f"--steps={STEPS}",
    "--checkpoint.keep=1",
    "--tensorboard.every_n_steps=1",
    "--model.loss.adaptive_entropy={}",
    "--model.lr_scheduler={class_path: torch.optim.lr_scheduler.StepLR, init_args: {step_size: 1, gamma: 0.9}}",
]
ROWS = 30
# At which step the run is killed, and which one it goes on from.
KILLS: dict[str, tuple[int, int]] = {
    "before the first checkpoint": (1, 0),
    "before writing": (2, 1),
    "while writing": (2, 1),
    "before renaming": (2, 1),
    "after renaming": (2, 2),
    "before removing": (2, 2),
    "in the step after": (2, 2),
}


def die(*_: Any, **__: Any) -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def _saving(step: int, action: Callable[..., Any], *, after: bool = False) -> Callable[..., Any]:
    """The action, with death before or after it once the checkpoint of this step is being saved."""

    def wrapped(*args: Any, **kwargs: Any) -> Any:
        if not after and _step == step:
            die()
        result = action(*args, **kwargs)
        if after and _step == step:
            die()
        return result

    return wrapped


_step = 0


def arm(name: str) -> None:
    """Have this process killed at that moment."""
    step, _ = KILLS[name]
    write, save = WholeCheckpointIO.save_checkpoint, torch.save

    def noted(self: WholeCheckpointIO, content: Any, path: Any, storage_options: files.Label) -> None:
        global _step
        _step = storage_options.step
        write(self, content, path, storage_options)

    WholeCheckpointIO.save_checkpoint = noted  # type: ignore[method-assign, assignment]
    if name in ("before the first checkpoint", "before writing"):
        torch.save = _saving(step, save)
    elif name == "while writing":
        torch.save = lambda content, file: save(content, DyingFile(file) if _step == step else file)
    elif name == "before renaming":
        Path.replace = _saving(step, Path.replace)  # type: ignore[method-assign]
    elif name == "after renaming":
        whole_files.sync = _saving(step, whole_files.sync)
    elif name == "before removing":
        checkpoint.obsolete = _saving(step, checkpoint.obsolete, after=True)
    else:
        ScriptedEngine.generate = _saving(step, ScriptedEngine.generate, after=True)  # type: ignore[method-assign]


def run(folder: Path) -> int:
    """The run, undisturbed unless `arm` was called; the exit code."""
    rollout.import_vllm = lambda: None  # type: ignore[assignment]
    rollout.VLLMEngine = ScriptedEngine  # type: ignore[misc, assignment]
    return main([*command(folder, ROWS), *ARGUMENTS])


if __name__ == "__main__":
    for name in sys.argv[2:]:
        child = os.fork()
        if child == 0:
            arm(name)
            os._exit(run(Path(sys.argv[1]) / name))
        status = os.waitpid(child, 0)[1]
        assert os.WIFSIGNALED(status), (name, status)
        assert os.WTERMSIG(status) == signal.SIGKILL, (name, status)
        print(name, list(list_checkpoints(Path(sys.argv[1]) / name / "run")))
