"""The folder of a run: its files, checks that a run may use it, and a lock for one run at a time."""

import contextlib
import errno
import fcntl
import os
import re
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml

from asymgrpo_app.errors import UserError
from asymgrpo_app.runtime.bounded_yaml import load_yaml
from asymgrpo_app.runtime.whole_files import written_whole

CONFIG_NAME = "config.yaml"
DISK_TROUBLE = frozenset(
    {errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS, errno.EACCES, errno.EPERM, errno.EIO, errno.ESTALE}
)
"""Error numbers of a full disk, a quota, a lost mount and the like in the middle of a run."""
_RESUMED = re.compile(r"config\.resumed-(\d+)\.yaml")


def tensorboard_folder(run_dir: str | Path) -> Path:
    """The folder of a run's TensorBoard events."""
    return Path(run_dir) / "tensorboard"


def is_used(run_dir: str | Path) -> bool:
    """Whether the folder holds (part of) a run that has completed a step; one that ended before that is ignored."""
    return any((Path(run_dir) / name).exists() for name in (CONFIG_NAME, "checkpoints", "export"))


def refuse_used(run_dir: str | Path) -> None:
    """Raise `UserError` if a fresh run would write into another run's folder."""
    if is_used(run_dir):
        raise UserError(
            f"run_dir {run_dir} already holds a run: continue it with --ckpt_path last, "
            "or choose another folder with --run_dir."
        )


def refuse_unusable(run_dir: str | Path) -> None:
    """Raise `UserError` for a folder that no run can write to, as far as can be told without writing."""
    if "://" in str(run_dir):
        raise UserError(
            f"run_dir {run_dir} is an address: give a local folder (a mounted one will do), and copy it from there."
        )
    nearest = Path(run_dir).absolute()
    try:
        while not nearest.exists():
            nearest = nearest.parent
    except OSError as error:
        raise UserError(f"run_dir {run_dir} cannot be used: {error.strerror}.") from error
    if not nearest.is_dir():
        raise UserError(f"run_dir {run_dir} cannot be made: {nearest} is a file.")
    if not os.access(nearest, os.W_OK | os.X_OK, effective_ids=True):
        raise UserError(f"run_dir {run_dir} cannot be written: no permission to write in {nearest}.")


@contextlib.contextmanager
def claimed(folder: str | Path, option: str = "run_dir", use: str = "trains in it") -> Iterator[None]:
    """Lock the folder of a run or of an evaluation: it can be written, and no other process does.

    The lock is on the folder itself and ends with the process, however it ends; nothing is left behind. Some network
    file systems have no locks: there, nothing stops a second run.

    Args:
        folder: The folder; made if it does not exist.
        option: The option that names it; for messages.
        use: What another process does that has it; for messages.

    Raises:
        UserError: It cannot be written, or another process has it.
    """
    try:
        Path(folder).mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder) as probe:  # permissions alone do not tell, nor does a full disk
            probe.write(bytes(4096))
        descriptor = os.open(folder, os.O_RDONLY)
    except OSError as error:
        raise UserError(f"{option} {folder} cannot be written: {(error.strerror or str(error)).lower()}.") from error
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise UserError(
                f"{option} {folder} is in use, another process {use}: wait for its end, or choose another folder with "
                f"--{option.removeprefix('--')}."
            ) from error
        except OSError:  # no locks here
            pass
        yield
    finally:
        os.close(descriptor)


def record_config(run_dir: str | Path, text: str) -> None:
    """Write the resolved config of a run that starts or resumes.

    The first config is `config.yaml`. A resumed run never overwrites it: it adds `config.resumed-<n>.yaml` if its
    config differs from the newest one in more than the checkpoint it resumes from.

    Raises:
        OSError: It cannot be written.
    """
    folder = Path(run_dir)
    first = folder / CONFIG_NAME
    if not first.exists():
        write_atomically(first, text)
        return
    number = max((int(match[1]) for path in folder.iterdir() if (match := _RESUMED.fullmatch(path.name))), default=0)
    newest = folder / f"config.resumed-{number}.yaml" if number else first
    if _settings(newest.read_text(encoding="utf-8")) != _settings(text):
        write_atomically(folder / f"config.resumed-{number + 1}.yaml", text)


def write_atomically(path: Path, text: str) -> None:
    """Write a text so that `path` is absent or whole, whenever the process ends.

    Raises:
        OSError: It cannot be written; nothing is left behind.
    """
    with written_whole(path) as file:
        file.write(text.encode())


def _settings(text: str) -> Any:
    """A config without the checkpoint it resumes from; None if it cannot be read."""
    try:
        settings = load_yaml(text)
    except yaml.YAMLError:
        return None
    if isinstance(settings, dict):
        settings.pop("ckpt_path", None)
    return settings
