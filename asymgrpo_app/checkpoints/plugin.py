"""The CheckpointIO plugin, through which Lightning's strategies read and write our checkpoint files."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from lightning.fabric.plugins.io.checkpoint_io import CheckpointIO

from asymgrpo_app.checkpoints.files import Label, write_checkpoint
from asymgrpo_app.checkpoints.folder import damage_as_user_error
from asymgrpo_app.checkpoints.shards import read_whole, remove_checkpoint


class WholeCheckpointIO(CheckpointIO):
    """Writes checkpoints that are absent or whole, and reads only whole ones."""

    def save_checkpoint(self, checkpoint: dict[str, Any], path: Any, storage_options: Label | None = None) -> None:
        """Write a checkpoint.

        Args:
            checkpoint: Tensors and plain values.
            path: Final path of the file.
            storage_options: Label of the checkpoint; None: a label without validation values.

        Raises:
            OSError: It cannot be written; an older file of that name is kept.
        """
        write_checkpoint(checkpoint, Path(path), storage_options or plain_label(checkpoint))

    def load_checkpoint(self, path: Any, map_location: Any = None, weights_only: bool | None = None) -> dict[str, Any]:
        """Read a checkpoint, tensors on the CPU; only tensors and plain values are built.

        Raises:
            UserError: It is not whole.
        """
        with damage_as_user_error(path):
            return read_whole(Path(path))

    def remove_checkpoint(self, path: Any) -> None:
        remove_checkpoint(Path(path))


def plain_label(checkpoint: Mapping[str, Any]) -> Label:
    """The label of a checkpoint without validation values."""
    return Label(int(checkpoint["asymgrpo"]["completed_steps"]))
