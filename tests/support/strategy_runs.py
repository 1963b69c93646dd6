"""Runs of the command on two processes, one after the other in the same two: torchrun starts them once.

python -m tests.support.two_processes tests.support.strategy_runs FOLDER NAME,NAME...
"""

import shutil
import sys
from pathlib import Path

import pytest
from torch import distributed

from asymgrpo_app.callbacks import rollout
from asymgrpo_app.checkpoints.folder import list_checkpoints
from asymgrpo_app.checkpoints.shards import remove_checkpoint
from asymgrpo_app.cli import main
from tests.support.once import once_per_process
from tests.support.scripted_engine import command
from tests.support.seeded_engine import SeededEngine

STEPS, STOP = 4, 2
SETTINGS = [
    f"--steps={STEPS}",
    "--checkpoint.keep=null",
    "--model.updates_per_step=2",
    "--model.loss.kl_coef=0.01",
    "--model.micro_batch_tokens=300",
    "--model.lr_scheduler={class_path: torch.optim.lr_scheduler.StepLR, init_args: {step_size: 1, gamma: 0.9}}",
    "--rollout.group_size=8",
]
ADAMW = "--model.optimizer={class_path: torch.optim.AdamW, init_args: {lr: 0.001, weight_decay: 0.1}}"
# Linear in the gradient, so that rounding stays rounding.
SGD = "--model.optimizer={class_path: torch.optim.SGD, init_args: {lr: 0.02, momentum: 0.9}}"
DDP = "--trainer.strategy=ddp"
FSDP2, SHARDED = "--trainer.strategy=fsdp2", "--checkpoint.layout=sharded"
# Name: its strategy and layout, and the run whose first steps it goes on from.
RUNS: dict[str, tuple[list[str], str | None]] = {
    "ddp with SGD": ([DDP, SGD], None),
    "fsdp2 with SGD": ([FSDP2, SGD], None),
    "full": ([FSDP2, ADAMW], None),
    "sharded": ([FSDP2, SHARDED, ADAMW], None),
    "full from full": ([FSDP2, ADAMW], "full"),
    "sharded from sharded": ([FSDP2, SHARDED, ADAMW], "sharded"),
    "full from sharded": ([FSDP2, ADAMW], "sharded"),
    "sharded from full": ([FSDP2, SHARDED, ADAMW], "full"),
    "ddp from sharded": ([DDP, ADAMW], "sharded"),
}


def run(folder: Path, *options: str) -> int:
    """The command in this process, and in all that were started with it."""
    return main([*command(folder), *SETTINGS, *options])


def first_steps(of: Path, folder: Path) -> None:
    """A copy of a run as it was after `STOP` steps."""
    shutil.copytree(of / "run", folder / "run", ignore=shutil.ignore_patterns("tensorboard", "export"))
    for step, path in list_checkpoints(folder / "run").items():
        if step > STOP:
            remove_checkpoint(path)


def make_runs(folder: Path, names: list[str]) -> None:
    rollout.import_vllm = lambda: None  # type: ignore[assignment]
    rollout.VLLMEngine = SeededEngine  # type: ignore[misc, assignment]
    for name in names:
        options, origin = RUNS[name]
        if origin is not None:
            if distributed.get_rank() == 0:
                first_steps(folder / origin, folder / name)
            distributed.barrier()
            options = [*options, "--ckpt_path=last"]
        code = run(folder / name, "--trainer.devices=2", *options)
        assert code == 0, f"{name}: {code}"


if __name__ == "__main__":
    once_per_process(pytest.MonkeyPatch())
    make_runs(Path(sys.argv[1]), sys.argv[2].split(","))
