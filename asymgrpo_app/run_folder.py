"""The folder of a run: what is in it, and when a new run may use it."""

from pathlib import Path

from asymgrpo_app.errors import UserError

CONFIG_NAME = "config.yaml"


def tensorboard_folder(run_dir: str | Path) -> Path:
    """Where a run's TensorBoard events are."""
    return Path(run_dir) / "tensorboard"


def is_used(run_dir: str | Path) -> bool:
    """Whether the folder holds (part of) a run: one that began to train, not one that failed before.

    Raises:
        UserError: It is no folder, or it cannot be read.
    """
    folder = Path(run_dir)
    try:
        if folder.exists() and not folder.is_dir():
            raise UserError(f"run_dir {run_dir} is a file: give a folder.")
        return any((folder / name).exists() for name in (CONFIG_NAME, "checkpoints", "export"))
    except OSError as error:
        raise UserError(f"run_dir {run_dir} cannot be used: {error.strerror}.") from error


def refuse_used(run_dir: str | Path) -> None:
    """Raise `UserError` if a fresh run would write into another run's folder."""
    if is_used(run_dir):
        raise UserError(
            f"run_dir {run_dir} already holds a run: continue it with --ckpt_path last, "
            "or choose another folder with --run_dir."
        )


def config_path(run_dir: str | Path) -> Path:
    """A free name for the resolved config: a resumed run does not overwrite what it was started with."""
    first = Path(run_dir) / CONFIG_NAME
    if not first.exists():
        return first
    number = 1
    while (candidate := Path(run_dir) / f"config.resumed-{number}.yaml").exists():
        number += 1
    return candidate
