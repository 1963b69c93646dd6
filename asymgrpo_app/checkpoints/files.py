"""Checkpoint files that prove to be whole.

The file is what `torch.save` writes, a ZIP archive, and `torch.load(weights_only=True)` reads it anywhere. The
archive's comment, which ends the file, holds a label in JSON and then a digest of everything before the digest, the
label included. So one rename makes a checkpoint appear together with its proof, and a copy takes both along; a second
file could be lost or belong to another checkpoint. torch itself reads an archive without looking at its checksums.

The digest is XXH3 with 128 bits: a flipped bit or a missing end goes unnoticed with probability 2^-128, at the speed of
memory, where SHA-256 would slow reading and writing down. It does not protect against forged files: `weights_only`
does, which builds tensors and plain values alone.

A sharded checkpoint is such a file without tensors, and a folder beside it with the tensors of each process
(`asymgrpo_app.checkpoints.shards`). The label then names the folder's files with their digests, and the file is written
last: without the file there is no checkpoint, whatever is in the folder.
"""

import errno
import json
import os
import re
import zipfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from itertools import count
from pathlib import Path
from pickle import PicklingError, UnpicklingError
from typing import IO, Any

import torch
import xxhash

PART_SUFFIX = ".part"
_FORMAT = 1
_CHUNK = 8 * 2**20
_DIGEST_CHARS = 32
_LENGTH_BYTES = 2  # the last field of a ZIP archive: the length of the comment that follows
SHARDS_FOLDER = re.compile(r"step-\d{8,}\.shards(-\d+)?")
"""Names of folders with the parts of sharded checkpoints."""
_SHARDS_FILE = re.compile(r"\.metadata|__\d+_\d+\.distcp")  # as torch's distributed checkpoints name them


class DamagedCheckpointError(Exception):
    """A file is not a whole checkpoint; the message gives the reason in a few words."""


@dataclass(frozen=True)
class Shards:
    """The further files of a sharded checkpoint, in a folder beside it.

    Attributes:
        folder: Name of the folder.
        files: Size in bytes and digest of each, by name.
    """

    folder: str
    files: Mapping[str, tuple[int, str]]


@dataclass(frozen=True)
class Label:
    """Metadata of a checkpoint that can be read without its weights.

    Attributes:
        step: Completed RL steps.
        validation: Values by tag (`val/{set}/{metric}`) of the validation after this step; empty if there was none.
        shards: Its further files; None if the checkpoint is one file.
    """

    step: int
    validation: Mapping[str, float] = field(default_factory=dict)
    shards: Shards | None = None


def part_of(path: Path) -> Path:
    """The path of a file while it is being written."""
    return path.with_name(f".{path.name}{PART_SUFFIX}")


@contextmanager
def written_whole(path: Path) -> Iterator[Path]:
    """Gives another name in the same folder to write to; what was written there is renamed to `path` at the end.

    An older file of that name stays until then. If the body fails, nothing of the new one is left behind.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    part = part_of(path)
    try:
        yield part
        part.replace(path)
        sync(path.parent)
    finally:
        part.unlink(missing_ok=True)


def write_checkpoint(content: Mapping[str, Any], path: Path, label: Label) -> None:
    """Write a checkpoint so that `path` is, at every moment and after a power cut, absent or whole.

    The file is written under another name, forced to the disk, read back and compared, and only then renamed.

    Raises:
        OSError: It cannot be written; nothing of it is left behind.
    """
    with written_whole(path) as part:
        with part.open("wb") as file:
            _save(content, file)
            _append_label(file, label, part)
            file.flush()
            os.fsync(file.fileno())
        try:
            read_checkpoint(part, mapped=True)  # whole, and such that a resume can load it
        except DamagedCheckpointError as damage:
            raise OSError(errno.EIO, f"what was read back is not what was written ({damage})") from damage


def _save(content: Mapping[str, Any], file: IO[bytes]) -> None:
    try:
        torch.save(content, file)
    except RuntimeError as error:
        # After a failed write torch complains about the end of the archive; the failure itself says more.
        if isinstance(error.__context__, OSError):
            raise error.__context__ from None
        raise OSError(errno.EIO, str(error)) from error
    except (PicklingError, AttributeError, TypeError) as error:
        raise OSError(errno.EINVAL, f"it would hold something else than tensors and plain values: {error}") from error


def _append_label(file: IO[bytes], label: Label, path: Path) -> None:
    """Make the label, and the digest of all bytes before the digest, the comment of the archive in an open file."""
    comment = f"{json.dumps({'format': _FORMAT, **asdict(label)})}\n".encode()
    file.seek(-_LENGTH_BYTES, os.SEEK_END)
    file.write((len(comment) + _DIGEST_CHARS).to_bytes(_LENGTH_BYTES, "little") + comment)
    file.flush()
    file.write(digest_of(path, file.tell()).encode())


def sync(path: Path) -> None:
    """Force a file, or the names in a folder, to the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def free_path(path: Path) -> Path:
    """The path, or the first with `-2`, `-3` and so on appended, of which there is nothing yet."""
    paths = (path.with_name(path.name + f"-{number}" * (number > 1)) for number in count(1))
    return next(own for own in paths if not own.exists())


def read_label(path: Path) -> Label:
    """Read the label of a checkpoint from its last bytes alone; `verify` tells whether the rest is whole.

    Raises:
        DamagedCheckpointError: The file has no label.
        OSError: The file cannot be read.
    """
    return _label(_comment(path))


def digest_of(path: Path, size: int) -> str:
    """The digest of a file's first `size` bytes, or of all if it has fewer.

    Raises:
        OSError: It cannot be read.
    """
    digest = xxhash.xxh3_128()
    with path.open("rb", buffering=0) as file:
        while size > 0 and (chunk := file.read(min(_CHUNK, size))):
            digest.update(chunk)
            size -= len(chunk)
    return digest.hexdigest()


def verify(path: Path) -> Label:
    """Read a checkpoint to its end, with all files that belong to it, and compare it with its digests.

    Raises:
        DamagedCheckpointError: It is not whole.
        OSError: It cannot be read.
    """
    comment = _comment(path)
    if digest_of(path, path.stat().st_size - _DIGEST_CHARS).encode() != comment[-_DIGEST_CHARS:]:
        raise DamagedCheckpointError("its content is not what was written: it does not match its digest")
    label = _label(comment)
    if label.shards is not None:
        _verify_shards(path.parent, label.shards)
    return label


def _verify_shards(parent: Path, shards: Shards) -> None:
    for name, (size, digest) in shards.files.items():
        file = parent / shards.folder / name
        if not file.is_file() or file.stat().st_size != size or digest_of(file, size) != digest:
            raise DamagedCheckpointError(f"{shards.folder}/{name} is missing, or does not match its digest")


def read_checkpoint(path: Path, *, mapped: bool = False) -> dict[str, Any]:
    """Verify and read a checkpoint; its tensors are on the CPU, those of a sharded checkpoint are left out.

    Args:
        path: The file.
        mapped: Leave tensors in the file until they are used; for callers that need a few values or copy the tensors.

    Raises:
        DamagedCheckpointError: It is not whole, or it holds more than tensors and plain values.
        OSError: It cannot be read.
    """
    verify(path)
    try:
        content = torch.load(path, map_location="cpu", weights_only=True, mmap=mapped)
    except (RuntimeError, ValueError, KeyError, EOFError, UnpicklingError) as error:
        raise DamagedCheckpointError("it holds something else than tensors and plain values") from error
    if not isinstance(content, dict) or not isinstance(content.get("asymgrpo"), dict):
        raise DamagedCheckpointError("it is no run's state")
    return content


def read_state(path: Path) -> dict[str, Any]:
    """The run's state in a checkpoint that was verified; tensors are not read.

    Raises:
        OSError: It cannot be read.
    """
    content: dict[str, Any] = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    state: dict[str, Any] = content["asymgrpo"]
    return state


def _comment(path: Path) -> bytes:
    if path.is_dir():
        raise DamagedCheckpointError("it is a folder")
    try:
        with zipfile.ZipFile(path) as archive:
            comment = archive.comment
    except (zipfile.BadZipFile, NotImplementedError, ValueError) as error:
        empty = path.stat().st_size == 0
        raise DamagedCheckpointError("it is empty" if empty else "it is cut off, or something else") from error
    if len(comment) <= _DIGEST_CHARS:
        raise DamagedCheckpointError("it has no digest of its content, which every checkpoint has")
    return comment


def _label(comment: bytes) -> Label:
    try:
        values = json.loads(comment[:-_DIGEST_CHARS])
        if values["format"] != _FORMAT:
            raise DamagedCheckpointError(f"its format is {values['format']}, from another version of asymgrpo")
        validation = {str(tag): float(value) for tag, value in values["validation"].items()}
        shards = values.get("shards")
        return Label(int(values["step"]), validation, None if shards is None else _shards(shards))
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise DamagedCheckpointError("its label cannot be read") from error


def _shards(values: dict[str, Any]) -> Shards:
    files = {str(name): (int(size), str(digest)) for name, (size, digest) in values["files"].items()}
    folder = str(values["folder"])
    if not SHARDS_FOLDER.fullmatch(folder) or not all(map(_SHARDS_FILE.fullmatch, files)):
        raise DamagedCheckpointError("its label names files that belong to no checkpoint")
    return Shards(folder, files)
