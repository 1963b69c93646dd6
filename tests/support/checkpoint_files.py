"""Small checkpoints, and the ways in which they break."""

import json
import os
import signal
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import IO, Any

import torch

from asymgrpo_app.checkpoints.files import Label, write_checkpoint
from asymgrpo_app.checkpoints.folder import checkpoint_path


def state(step: int, numbers: int = 50_000) -> dict[str, Any]:
    """What a checkpoint of this step holds, in small; about 200 kB."""
    values = torch.arange(numbers, dtype=torch.float32) + step
    return {"state_dict": {"policy.weight": values}, "asymgrpo": {"completed_steps": step, "config": "steps: 9\n"}}


def save(run_dir: Path, step: int, **validation: float) -> Path:
    path = checkpoint_path(run_dir, step)
    write_checkpoint(state(step), path, Label(step, {f"val/{name}": value for name, value in validation.items()}))
    return path


def flip(path: Path, place: int) -> None:
    """Change one bit; a negative place counts from the end."""
    content = bytearray(path.read_bytes())
    content[place] ^= 0b100
    path.write_bytes(content)


def cut(path: Path, size: int) -> None:
    path.write_bytes(path.read_bytes()[:size])


DAMAGES: dict[str, Callable[[Path], object]] = {
    "cut off at the end": lambda path: cut(path, path.stat().st_size - 1),
    "cut off in the digest": lambda path: cut(path, path.stat().st_size - 20),
    "cut off in the middle": lambda path: cut(path, path.stat().st_size // 2),
    "empty": lambda path: cut(path, 0),
    "a bit in the tensors": lambda path: flip(path, path.stat().st_size // 2),
    "a bit in the first bytes": lambda path: flip(path, 3),
    "a bit in the archive's directory": lambda path: flip(path, path.read_bytes().rfind(b"PK\x01\x02") + 30),
    "a bit in the archive's last record": lambda path: flip(path, path.read_bytes().rfind(b"PK\x05\x06") + 14),
    "a bit in the label": lambda path: flip(path, path.read_bytes().rfind(b'"step"') + 8),
    "a bit in the digest": lambda path: flip(path, -1),
    "something appended": lambda path: path.write_bytes(path.read_bytes() + b"\0"),
    "a text": lambda path: path.write_text("steps: 9\n"),
    "a folder": lambda path: (path.unlink(), path.mkdir()),
}


def in_a_child(action: Callable[[], None]) -> int:
    """Do something in a forked process, which it may kill; its wait status."""
    child = os.fork()
    if child == 0:
        signal.alarm(60)
        torch.set_num_threads(1)  # earlier tests left a pool of threads, of which a fork has none
        try:
            action()
        finally:
            os._exit(99)  # was not killed
    return os.waitpid(child, 0)[1]


def die(*_: Any, **__: Any) -> None:
    os.kill(os.getpid(), signal.SIGKILL)


class DyingFile:
    """A file for `torch.save`; the process is killed once so many bytes are in it."""

    def __init__(self, file: IO[bytes], after: int = 1) -> None:
        self.file = file
        self.after = after

    def write(self, data: Any) -> int:
        number = self.file.write(data)
        self.file.flush()
        self.after -= number
        if self.after <= 0:
            die()
        return number

    def flush(self) -> None:
        self.file.flush()


def forge(path: Path, folder: str, files: list[str], version: int = 1) -> Path:
    """An archive whose label names a folder and files, as anybody can make one; the digest is not its own."""
    shards = {"folder": folder, "files": {name: [0, "0" * 32] for name in files}}
    label = {"format": version, "step": 1, "validation": {}, "shards": shards}
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("nothing", "")
        archive.comment = f"{json.dumps(label)}\n".encode() + b"0" * 32
    return path
