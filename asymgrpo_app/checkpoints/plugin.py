"""The seam between Lightning's strategies and our files."""

from pathlib import Path
from typing import Any

from lightning.fabric.plugins.io.checkpoint_io import CheckpointIO

from asymgrpo_app.checkpoints.files import DamagedCheckpointError, Label, read_checkpoint, write_checkpoint
from asymgrpo_app.checkpoints.folder import reason
from asymgrpo_app.errors import UserError


class WholeCheckpointIO(CheckpointIO):
    """Writes checkpoints that are absent or whole, and reads none that is not.

    Strategies that gather the state on one rank go through it; those that write a folder of shards have their own way.
    """

    def save_checkpoint(self, checkpoint: dict[str, Any], path: Any, storage_options: Label | None = None) -> None:
        """Write it.

        Args:
            checkpoint: Tensors and plain values.
            path: Its final name.
            storage_options: Its label; without one there are no validation results in it.

        Raises:
            OSError: It cannot be written; what was there before still is.
        """
        label = storage_options or Label(int(checkpoint["asymgrpo"]["completed_steps"]))
        write_checkpoint(checkpoint, Path(path), label)

    def load_checkpoint(self, path: Any, map_location: Any = None, weights_only: bool | None = None) -> dict[str, Any]:
        """Read it, tensors on the CPU; never anything else than tensors and plain values.

        Raises:
            UserError: It is not whole.
        """
        try:
            return read_checkpoint(Path(path))
        except (DamagedCheckpointError, OSError) as damage:
            raise UserError(
                f"--ckpt_path {path}: not a checkpoint of asymgrpo, or damaged: {reason(damage)}."
            ) from damage

    def remove_checkpoint(self, path: Any) -> None:
        Path(path).unlink(missing_ok=True)
