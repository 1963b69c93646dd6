"""Sharded checkpoints: every process writes its own tensors, with torch's distributed checkpoints (DCP).

`step-00000003.ckpt` holds everything else and is written last. It names a folder beside it, with the digest of each
file in there; a folder whose `.ckpt` file was never written is no checkpoint, and the next run removes it. DCP reshards
the tensors for any number of processes, and one process alone reads them whole.
"""

import errno
import pickle
import shutil
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from dataclasses import replace
from math import prod
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, distributed
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.filesystem import FileSystemReader, FileSystemWriter
from torch.distributed.checkpoint.metadata import Metadata, StorageMeta, TensorStorageMetadata
from torch.distributed.checkpoint.state_dict_loader import load
from torch.distributed.checkpoint.state_dict_saver import save
from torch.distributed.tensor import DTensor

from asymgrpo_app.checkpoints.files import (
    SHARDS_FILE,
    SHARDS_FOLDER,
    DamagedCheckpointError,
    Label,
    Shards,
    digest_of,
    free_path,
    read_checkpoint,
    read_label,
    verified_label,
    write_checkpoint,
)
from asymgrpo_app.errors import one_line
from asymgrpo_app.runtime.whole_files import sync

ALIASES = "shared_tensors"
"""Entry of a sharded checkpoint: names of shared weights, each with the name that its tensor is stored under."""

_WEIGHT, _STATE = "weight", "state"


def weight_key(name: str) -> str:
    """The key of a weight among the tensors."""
    return f"{_WEIGHT}/{name}"


def state_key(optimizer: int, parameter: int, name: str) -> str:
    """The key of a tensor of an optimizer's state, from the optimizer's index, the parameter's number and its name."""
    return f"{_STATE}/{optimizer}/{parameter}/{name}"


def parse_state_key(key: str) -> tuple[int, int, str] | None:
    """The arguments of `state_key` for a key; None for the key of a weight."""
    kind, *rest = key.split("/", 3)
    return (int(rest[0]), int(rest[1]), rest[2]) if kind == _STATE else None


# ---- writing: every process takes part in each of these calls ----


def write_sharded(tensors: Mapping[str, Tensor], content: Mapping[str, Any], path: Path, label: Label) -> None:
    """Write a checkpoint that is, at every moment and after a power cut, absent or whole.

    Args:
        tensors: Tensors by `weight_key` and `state_key`; sharded, or the same on every process.
        content: Everything else.
        path: Final path of the file.
        label: Label of the checkpoint.

    Raises:
        OSError: It cannot be written; raised on every process.
    """
    rank = distributed.get_rank()
    before = _own_folder(path) if rank == 0 else None
    folder: Path = _together(lambda: free_path(path.with_suffix(".shards")), on=0)[0]  # DCP makes it
    try:
        save(dict(tensors), storage_writer=FileSystemWriter(folder))
    except CheckpointException as error:
        if rank == 0:
            shutil.rmtree(folder, ignore_errors=True)
        failure = next(iter(error.failures.values()))[0]
        raise failure if isinstance(failure, OSError) else OSError(errno.EIO, one_line(str(failure))) from error
    files: dict[str, tuple[int, str]] = {}
    for written in _together(lambda: _digests(folder, rank)):
        files |= written
    whole = replace(label, shards=Shards(folder.name, files))
    _together(lambda: write_checkpoint(content, path, whole), on=0)
    if before is not None:
        shutil.rmtree(before, ignore_errors=True)


def _digests(folder: Path, rank: int) -> dict[str, tuple[int, str]]:
    """Size and digest of the files that this process wrote, read back from the disk."""
    files = [*folder.glob(f"__{rank}_*.distcp"), *[folder / ".metadata"] * (rank == 0)]
    sync(folder)
    return {file.name: (file.stat().st_size, digest_of(file, file.stat().st_size)) for file in files}


def _together(action: Callable[[], Any], on: int | None = None) -> list[Any]:
    """Run an action on one process (`on`) or on all; returns the results of all processes, on every process.

    Raises:
        OSError: The action failed on a process; raised on all, so that no process goes on alone.
    """
    outcome: Any = None
    if on in (None, distributed.get_rank()):
        try:
            outcome = action()
        except OSError as error:
            outcome = error
    outcomes: list[Any] = [None] * distributed.get_world_size()
    distributed.all_gather_object(outcomes, outcome)
    for failure in outcomes:
        if isinstance(failure, OSError):
            raise failure
    return outcomes


# ---- reading ----


def read_into(tensors: dict[str, Tensor], path: Path) -> None:
    """Fill tensors from a sharded checkpoint that was verified; sharded tensors on every process at the same time.

    Raises:
        DamagedCheckpointError: The tensors are not those of the checkpoint.
    """
    alone = not any(isinstance(tensor, DTensor) for tensor in tensors.values())
    try:
        load(tensors, storage_reader=_reader(path), no_dist=alone)
    except (CheckpointException, RuntimeError, KeyError) as error:
        reason = " ".join(str(error).split())[-200:]
        raise DamagedCheckpointError(f"its tensors are not those of this model ({reason})") from error


def tensor_shapes(path: Path) -> dict[str, tuple[torch.Size, torch.dtype]]:
    """Shape and type of each tensor of a sharded checkpoint, by its key."""
    entries = _reader(path).read_metadata().state_dict_metadata.items()
    return {
        key: (entry.size, entry.properties.dtype) for key, entry in entries if isinstance(entry, TensorStorageMetadata)
    }


def read_whole(path: Path) -> dict[str, Any]:
    """The content of a full or sharded checkpoint with all of its tensors, in the form of a full one.

    Raises:
        DamagedCheckpointError: It is not whole.
        OSError: It cannot be read.
    """
    content = read_checkpoint(path)
    if read_label(path).shards is None:
        return content
    tensors = {key: torch.empty(shape, dtype=dtype) for key, (shape, dtype) in tensor_shapes(path).items()}
    read_into(tensors, path)
    try:
        return _whole(content, tensors)
    except (LookupError, TypeError, AttributeError, ValueError) as error:
        raise DamagedCheckpointError("its file and its shards do not belong together") from error


def _whole(content: dict[str, Any], tensors: Mapping[str, Tensor]) -> dict[str, Any]:
    state: dict[str, Tensor] = {}
    for key, tensor in tensors.items():
        if (found := parse_state_key(key)) is None:
            state[key.removeprefix(f"{_WEIGHT}/")] = tensor
        else:
            optimizer, parameter, name = found
            content["optimizer_states"][optimizer]["state"][parameter][name] = tensor
    state |= {name: state[other] for name, other in content.pop(ALIASES).items()}
    return content | {"state_dict": state}


def check_readable(path: Path) -> Label:
    """Verify a checkpoint, and that it holds what a run can be read from; tensors stay on the disk.

    Raises:
        DamagedCheckpointError: It is not whole, or it holds more than tensors and plain values.
        OSError: It cannot be read.
    """
    read_checkpoint(path, mapped=True)
    label = read_label(path)
    if label.shards is not None:
        tensor_shapes(path)
    return label


def _reader(path: Path) -> "_Reader":
    shards = read_label(path).shards
    assert shards is not None
    return _Reader(path.parent / shards.folder)


class _Reader(FileSystemReader):
    """Reads DCP's table of contents, which is a pickle, and builds no objects but those of such a table."""

    def read_metadata(self, *args: Any, **kwargs: Any) -> Metadata:
        with (Path(self.path) / ".metadata").open("rb") as file:
            try:
                metadata = _Unpickler(file).load()
                _check_contents(metadata, sum(own.stat().st_size for own in Path(self.path).iterdir()))
            except (DamagedCheckpointError, OSError):
                raise
            except Exception as error:  # a file that was made to do harm raises errors of any kind
                raise DamagedCheckpointError("its table of contents cannot be read") from error
        metadata.storage_meta = metadata.storage_meta or StorageMeta()
        metadata.storage_meta.load_id = self.load_id
        return metadata  # type: ignore[no-any-return]


def _check_contents(metadata: Any, limit: int) -> None:
    """Refuse a table of other files, and one of more tensors than a folder with so many bytes can hold."""
    if not isinstance(metadata, Metadata):
        raise DamagedCheckpointError("its table of contents is something else")
    for stored in metadata.storage_data.values():
        if not SHARDS_FILE.fullmatch(stored.relative_path) or stored.transform_descriptors:
            raise DamagedCheckpointError("its table of contents names other files")
    entries = [own for own in metadata.state_dict_metadata.values() if isinstance(own, TensorStorageMetadata)]
    if sum(prod(own.size) * own.properties.dtype.itemsize for own in entries) > limit:
        raise DamagedCheckpointError("its table of contents names larger tensors than its files hold")


_KNOWN_OBJECTS = {
    "pathlib": {"PosixPath"},
    "pathlib._local": {"PosixPath"},
    "torch": {"Size", "float64", "float32", "bfloat16", "float16", "int64", "int32", "bool"},
    "torch.serialization": {"_get_layout"},
    "torch.distributed.checkpoint.filesystem": {"_StorageInfo"},
    "torch.distributed.checkpoint.metadata": {
        "_MEM_FORMAT_ENCODING",
        "BytesStorageMetadata",
        "ChunkStorageMetadata",
        "Metadata",
        "MetadataIndex",
        "StorageMeta",
        "TensorProperties",
        "TensorStorageMetadata",
    },
}


class _Unpickler(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        if name not in _KNOWN_OBJECTS.get(module, ()):
            raise DamagedCheckpointError(f"its table of contents holds {module}.{name}")
        return super().find_class(module, name)


# ---- removing ----


def remove_checkpoint(path: Path) -> None:
    """Remove a checkpoint and, once it is gone, its shards.

    Raises:
        OSError: It cannot be removed.
    """
    folder = _own_folder(path)
    path.unlink(missing_ok=True)
    if folder is not None:
        shutil.rmtree(folder)


def _own_folder(path: Path) -> Path | None:
    """The folder of a checkpoint's shards; None if it has none that is there and its alone.

    Whoever can put a file among the checkpoints must not have anything else removed by it: a label that is not verified
    says nothing, nor does a link, nor is a folder of the same step that another file names, too.
    """
    try:
        if read_label(path).shards is None:  # before all of a large file is read
            return None
        shards = verified_label(path).shards
    except (DamagedCheckpointError, OSError):
        return None
    assert shards is not None
    others = [other for other in path.parent.glob("step-*.ckpt*") if other != path]
    folder = path.parent / shards.folder
    return folder if _is_folder(folder) and shards.folder not in _named_by(others) else None


def _is_folder(path: Path) -> bool:
    return path.is_dir() and not path.is_symlink()


def _named_by(paths: Iterable[Path]) -> set[str]:
    """Names of the folders of checkpoints' shards; of those whose label cannot be read nothing is known."""
    names = set()
    for path in paths:
        with suppress(DamagedCheckpointError, OSError):
            if (shards := read_label(path).shards) is not None:
                names.add(shards.folder)
    return names


def sweep_shards(folder: Path) -> None:
    """Remove shards without a checkpoint, left by a process that was killed before it wrote the file or in a removal.

    Raises:
        OSError: They cannot be removed.
    """
    found = [entry for entry in folder.glob("step-*") if _is_folder(entry) and SHARDS_FOLDER.fullmatch(entry.name)]
    try:
        labels = [read_label(path) for path in folder.glob("step-*.ckpt*")]
    except (DamagedCheckpointError, OSError):
        return  # it is not known which shards belong to this checkpoint
    known = {label.shards.folder for label in labels if label.shards is not None}
    for entry in found:
        if entry.name not in known:
            shutil.rmtree(entry)
