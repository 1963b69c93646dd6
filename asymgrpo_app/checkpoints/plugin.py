"""The CheckpointIO plugin, through which Lightning's strategies read and write our checkpoint files."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from lightning.fabric.plugins.io.checkpoint_io import CheckpointIO
from torch import Tensor

from asymgrpo_app.checkpoints.files import DamagedCheckpointError, Label, read_checkpoint, write_checkpoint
from asymgrpo_app.checkpoints.folder import reason
from asymgrpo_app.checkpoints.shards import ALIASES, read_whole, remove_checkpoint, write_sharded
from asymgrpo_app.errors import UserError


class WholeCheckpointIO(CheckpointIO):
    """Writes checkpoints that are absent or whole, and reads only whole ones.

    A strategy that shards the policy calls `save_sharded` and `load_mapped` where every process handles its own part.
    """

    def save_checkpoint(self, checkpoint: dict[str, Any], path: Any, storage_options: Label | None = None) -> None:
        """Write a checkpoint.

        Args:
            checkpoint: Tensors and plain values.
            path: Final path of the file.
            storage_options: Label of the checkpoint; None: a label without validation values.

        Raises:
            OSError: It cannot be written; an older file of that name is kept.
        """
        write_checkpoint(checkpoint, Path(path), storage_options or _label(checkpoint))

    def save_sharded(
        self, tensors: Mapping[str, Tensor], checkpoint: dict[str, Any], path: Any, storage_options: Label | None
    ) -> None:
        """Write a sharded checkpoint, each process its parts; `state_dict` has only the names of shared weights.

        Raises:
            OSError: It cannot be written; raised on every process. An older checkpoint of that name is kept.
        """
        content = {key: value for key, value in checkpoint.items() if key != "state_dict"}
        content[ALIASES] = checkpoint["state_dict"]
        write_sharded(tensors, content, Path(path), storage_options or _label(checkpoint))

    def load_checkpoint(self, path: Any, map_location: Any = None, weights_only: bool | None = None) -> dict[str, Any]:
        """Read a checkpoint, tensors on the CPU; only tensors and plain values are built.

        Raises:
            UserError: It is not whole.
        """
        return _read(read_whole, path)

    def load_mapped(self, path: Any) -> dict[str, Any]:
        """Read a checkpoint with tensors left in the file, for callers that need parts; those of shards are left out.

        Raises:
            UserError: It is not whole.
        """
        return _read(lambda file: read_checkpoint(file, mapped=True), path)

    def remove_checkpoint(self, path: Any) -> None:
        remove_checkpoint(Path(path))


def _label(checkpoint: Mapping[str, Any]) -> Label:
    return Label(int(checkpoint["asymgrpo"]["completed_steps"]))


def _read(read: Callable[[Path], dict[str, Any]], path: Any) -> dict[str, Any]:
    try:
        return read(Path(path))
    except (DamagedCheckpointError, OSError) as damage:
        raise UserError(f"--ckpt_path {path}: not a checkpoint of asymgrpo, or damaged: {reason(damage)}.") from damage
