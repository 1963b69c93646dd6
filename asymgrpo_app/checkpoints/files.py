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
import reprlib
import stat
import struct
import zipfile
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from itertools import count
from pathlib import Path
from pickle import PicklingError
from typing import IO, Annotated, Any

import torch
import xxhash
from pydantic import Field, StrictInt, TypeAdapter

from asymgrpo_app.runtime.whole_files import part_of, written_whole

_FORMAT = 1
_CHUNK = 8 * 2**20
_DIGEST_CHARS = 32
_LENGTH_BYTES = 2  # the last field of a ZIP archive: the length of the comment that follows
SHARDS_FOLDER = re.compile(r"(step-[0-9]{8,})\.shards(-[0-9]+)?")
"""Names of folders with the parts of sharded checkpoints; the group is the stem of their checkpoint."""
SHARDS_FILE = re.compile(r"\.metadata|__[0-9]+_[0-9]+\.distcp")
"""Names of the files in them, as torch's distributed checkpoints give them."""


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

    step: Annotated[StrictInt, Field(ge=0, lt=2**63)]
    validation: Mapping[str, float] = field(default_factory=dict)
    shards: Shards | None = None


def write_checkpoint(content: Mapping[str, Any], path: Path, label: Label) -> None:
    """Write a checkpoint so that `path` is, at every moment and after a power cut, absent or whole.

    The file is written under another name, forced to the disk, read back and compared, and only then renamed.

    Raises:
        OSError: It cannot be written; nothing of it is left behind.
    """
    with written_whole(path) as file:
        _save(content, file)
        _append_label(file, label, part_of(path))
        file.flush()
        os.fsync(file.fileno())
        try:
            read_checkpoint(part_of(path), mapped=True)  # whole, and such that a resume can load it
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
    return _label(_comment(path), path)


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
    label = verified_label(path)
    if label.shards is not None:
        _verify_shards(path.parent, label.shards)
    return label


def verified_label(path: Path) -> Label:
    """The label of a checkpoint whose file is whole; the further files of a sharded one are not looked at.

    Raises:
        DamagedCheckpointError: It is not whole.
        OSError: It cannot be read.
    """
    comment = _comment(path)
    if digest_of(path, path.stat().st_size - _DIGEST_CHARS).encode() != comment[-_DIGEST_CHARS:]:
        raise DamagedCheckpointError("its content is not what was written: it does not match its digest")
    return _label(comment, path)


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
    label = verify(path)
    content = _plain_content(path, mapped=mapped)
    found = content["asymgrpo"].get("completed_steps", label.step)
    if not isinstance(found, int) or found != label.step:
        raise DamagedCheckpointError(f"its label says step {label.step}, its content {reprlib.repr(found)}")
    return content


def _plain_content(path: Path, *, mapped: bool) -> dict[str, Any]:
    try:
        content: Any = torch.load(path, map_location="cpu", weights_only=True, mmap=mapped)
    except OSError:
        raise
    except Exception as error:  # a file that was made to do harm has torch raise errors of any kind
        raise DamagedCheckpointError("it holds something else than tensors and plain values") from error
    kinds = {"state_dict": dict, "optimizer_states": list, "lr_schedulers": list, "callbacks": dict, "loops": dict}
    fits = isinstance(content, dict) and isinstance(content.get("asymgrpo"), dict)
    if not fits or not all(isinstance(content.get(name, kind()), kind) for name, kind in kinds.items()):
        raise DamagedCheckpointError("it is no run's state")
    return content  # type: ignore[no-any-return]


def read_state(path: Path) -> dict[str, Any]:
    """The run's state in a checkpoint that was verified; tensors are not read.

    Raises:
        DamagedCheckpointError: It holds more than tensors and plain values.
        OSError: It cannot be read.
    """
    state: dict[str, Any] = _plain_content(path, mapped=True)["asymgrpo"]
    return state


def _comment(path: Path) -> bytes:
    kind = path.stat().st_mode
    if not stat.S_ISREG(kind):
        raise DamagedCheckpointError("it is a folder" if stat.S_ISDIR(kind) else "it is no file")
    try:
        with zipfile.ZipFile(path) as archive:
            comment, entries = archive.comment, archive.infolist()
    except (zipfile.BadZipFile, NotImplementedError, ValueError, struct.error) as error:
        empty = path.stat().st_size == 0
        raise DamagedCheckpointError("it is empty" if empty else "it is cut off, or something else") from error
    if len(comment) <= _DIGEST_CHARS:
        raise DamagedCheckpointError("it has no digest of its content, which every checkpoint has")
    # torch looks for the archive's parts by itself: neither may take for one what the other does not.
    if b"PK\5\6" in comment or not _begins_as_archive(path):
        raise DamagedCheckpointError("it is not laid out as torch writes it")
    stored = all(entry.compress_type == zipfile.ZIP_STORED for entry in entries)
    if not stored or sum(entry.file_size for entry in entries) > path.stat().st_size:
        raise DamagedCheckpointError("it would unpack to more than its size, and no checkpoint is compressed")
    return comment


def _begins_as_archive(path: Path) -> bool:
    with path.open("rb") as file:
        return file.read(4) == b"PK\3\4"


def _label(comment: bytes, path: Path) -> Label:
    try:
        values = json.loads(comment[:-_DIGEST_CHARS])
        if (version := values["format"]) != _FORMAT:
            raise DamagedCheckpointError(f"its format is {reprlib.repr(version)}, from another version of asymgrpo")
        label: Label = _LABELS.validate_python(values)
    except (ValueError, KeyError, TypeError, AttributeError, OverflowError, RecursionError) as error:
        raise DamagedCheckpointError("its label cannot be read") from error
    if label.shards is not None:
        _check_own(label.shards, path.resolve())
    return label


def _check_own(shards: Shards, path: Path) -> None:
    """Refuse a label that names another folder than this file alone can have, or in it other files than such have."""
    folder = SHARDS_FOLDER.fullmatch(shards.folder)
    if folder is None or not all(map(SHARDS_FILE.fullmatch, shards.files)):
        raise DamagedCheckpointError("its label names files that are not its own")
    stem = path.name.removeprefix(".").partition(".")[0]  # also while it is written, and once it is set aside
    if folder[1] != stem:
        raise DamagedCheckpointError(f"it belongs to {shards.folder}, so its name must be {folder[1]}.ckpt")


_LABELS = TypeAdapter(Label)
