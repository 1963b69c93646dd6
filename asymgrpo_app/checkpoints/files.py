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
import struct
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from pickle import PicklingError, UnpicklingError
from typing import IO, Any, BinaryIO, cast

import torch
import xxhash

PART_SUFFIX = ".part"
_FORMAT = 1
_CHUNK = 8 * 2**20
_DIGEST_CHARS = 32
_END_RECORD = struct.Struct("<4s4H2LH")  # ZIP's last record; the comment follows it, and its length is the last field
_END_SIGNATURE = b"PK\x05\x06"
_MAX_COMMENT = 2**16 - 1
SHARDS_FOLDER = re.compile(r"step-\d{8,}\.shards(-\d+)?")
"""Names of folders with the parts of sharded checkpoints."""
_SHARDS_FILE = re.compile(r"\.metadata|__\d+_\d+\.distcp")  # as torch's distributed checkpoints name them


class DamagedCheckpointError(Exception):
    """A file is not a whole checkpoint; the message gives the reason in a few words."""


@dataclass(frozen=True)
class Label:
    """Metadata of a checkpoint that can be read without its weights.

    Attributes:
        step: Completed RL steps.
        validation: Values by tag (`val/{set}/{metric}`) of the validation after this step; empty if there was none.
    """

    step: int
    validation: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class Shards:
    """The further files of a sharded checkpoint, in a folder beside it.

    Attributes:
        folder: Name of the folder.
        files: Size in bytes and digest of each, by name.
    """

    folder: str
    files: Mapping[str, tuple[int, str]]


def part_of(path: Path) -> Path:
    """The path of a checkpoint while it is being written."""
    return path.with_name(f".{path.name}{PART_SUFFIX}")


def write_checkpoint(content: Mapping[str, Any], path: Path, label: Label, shards: Shards | None = None) -> None:
    """Write a checkpoint so that `path` is, at every moment and after a power cut, absent or whole.

    The file is written under another name in the same folder, forced to the disk, read back and compared, and only then
    renamed. An older file of that name stays until then.

    Raises:
        OSError: It cannot be written; nothing of it is left behind.
    """
    part = part_of(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    try:
        with part.open("wb") as file:
            archive = _ArchiveWriter(file)
            _save(content, archive)
            archive.end(label, shards)
            file.flush()
            os.fsync(file.fileno())
        try:
            read_checkpoint(part, mapped=True)  # whole, and such that a resume can load it
        except DamagedCheckpointError as damage:
            raise OSError(errno.EIO, f"what was read back is not what was written ({damage})") from damage
        part.replace(path)
        sync_folder(path.parent)
    finally:
        part.unlink(missing_ok=True)


def sync_folder(folder: Path) -> None:
    """Force the names in a folder to the disk."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def read_label(path: Path) -> Label:
    """Read the label of a checkpoint from its last bytes alone; `verify` tells whether the rest is whole.

    Raises:
        DamagedCheckpointError: The file has no label.
        OSError: The file cannot be read.
    """
    return _label(_comment(path))


def read_shards(path: Path) -> Shards | None:
    """Read the further files of a checkpoint from its last bytes alone; None if it has none.

    Raises:
        DamagedCheckpointError: The entry is damaged.
        OSError: The file cannot be read.
    """
    return _shards(_comment(path))


def digest_of(path: Path, size: int) -> str | None:
    """The digest of a file's first `size` bytes; None if it has fewer.

    Raises:
        OSError: It cannot be read.
    """
    digest = xxhash.xxh3_128()
    buffer = memoryview(bytearray(min(_CHUNK, max(size, 1))))
    with path.open("rb", buffering=0) as file:
        left = size
        while left > 0 and (number := file.readinto(buffer[: min(_CHUNK, left)])):
            digest.update(buffer[:number])
            left -= number
    return None if left else digest.hexdigest()


def verify(path: Path) -> Label:
    """Read a checkpoint to its end, with all files that belong to it, and compare it with its digests.

    Raises:
        DamagedCheckpointError: It is not whole.
        OSError: It cannot be read.
    """
    comment = _comment(path)
    digest = digest_of(path, path.stat().st_size - _DIGEST_CHARS)
    if digest is None or digest.encode() != comment[-_DIGEST_CHARS:]:
        raise DamagedCheckpointError("its content is not what was written: it does not match its digest")
    if (shards := _shards(comment)) is not None:
        _verify_shards(path.parent / shards.folder, shards)
    return _label(comment)


def _verify_shards(folder: Path, shards: Shards) -> None:
    for name, (size, digest) in shards.files.items():
        file = folder / name
        if not file.is_file():
            raise DamagedCheckpointError(f"{shards.folder}/{name} is missing")
        if file.stat().st_size != size or digest_of(file, size) != digest:
            raise DamagedCheckpointError(f"{shards.folder}/{name} does not match its digest")


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


class _ArchiveWriter:
    """The file object for `torch.save`: passes bytes on, digests them, and holds the archive's last record back."""

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        self._digest = xxhash.xxh3_128()
        self._held = b""
        self.error: OSError | None = None

    def write(self, data: Any) -> int:
        """Called by torch with bytes or a view of memory."""
        view = memoryview(data).cast("B")
        size, kept = len(view), _END_RECORD.size
        if size < kept:
            joined = self._held + bytes(view)
            self._put(joined[:-kept])
            self._held = joined[-kept:]
        else:
            self._put(self._held)
            self._put(view[: size - kept])
            self._held = bytes(view[size - kept :])
        return size

    def flush(self) -> None:
        """Flush the file; torch expects this method."""
        self._file.flush()

    def end(self, label: Label, shards: Shards | None) -> None:
        """Write the archive's last record, with the label and the digest as its comment."""
        values: dict[str, Any] = {"format": _FORMAT, "step": label.step, "validation": dict(label.validation)}
        if shards is not None:
            values["shards"] = {"folder": shards.folder, "files": dict(shards.files)}
        text = json.dumps(values)
        comment = f"{text}\n".encode()
        fields = _END_RECORD.unpack(self._held)
        length = len(comment) + _DIGEST_CHARS
        if fields[0] != _END_SIGNATURE or fields[-1] or length > _MAX_COMMENT:
            raise OSError(errno.EINVAL, "the checkpoint's archive cannot take its label")
        self._put(_END_RECORD.pack(*fields[:-1], length))
        self._put(comment)
        self._file.write(self._digest.hexdigest().encode())

    def _put(self, data: bytes | memoryview) -> None:
        self._digest.update(data)
        try:
            self._file.write(data)
        except OSError as error:
            self.error = error
            raise


def _save(content: Mapping[str, Any], archive: _ArchiveWriter) -> None:
    try:
        torch.save(content, cast(IO[bytes], archive))
    except RuntimeError as error:
        # After a failed write torch complains about the end of the archive; the failure itself says more.
        raise archive.error or OSError(errno.EIO, str(error)) from error
    except (PicklingError, AttributeError, TypeError) as error:
        raise OSError(errno.EINVAL, f"it would hold something else than tensors and plain values: {error}") from error


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


def _shards(comment: bytes) -> Shards | None:
    try:
        values = json.loads(comment[:-_DIGEST_CHARS]).get("shards")
        if values is None:
            return None
        files = {str(name): (int(size), str(digest)) for name, (size, digest) in values["files"].items()}
        folder = str(values["folder"])
        if not SHARDS_FOLDER.fullmatch(folder) or not all(map(_SHARDS_FILE.fullmatch, files)):
            raise DamagedCheckpointError("its label names files that belong to no checkpoint")
        return Shards(folder, files)
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise DamagedCheckpointError("its label cannot be read") from error


def _label(comment: bytes) -> Label:
    try:
        values = json.loads(comment[:-_DIGEST_CHARS])
        if values["format"] != _FORMAT:
            raise DamagedCheckpointError(f"its format is {values['format']}, from another version of asymgrpo")
        return Label(int(values["step"]), {str(tag): float(value) for tag, value in values["validation"].items()})
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise DamagedCheckpointError("its label cannot be read") from error
