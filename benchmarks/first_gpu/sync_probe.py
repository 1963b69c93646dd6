"""Counts, with torch's own debug mode, how often an update waits for the GPU."""

import warnings
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import Callback, Trainer


class SyncProbe(Callback):
    """Writes the number of reads of the device and of micro-batches of the last step's update to a file.

    Args:
        path: The file.
    """

    def __init__(self, path: str) -> None:
        self.path = Path(path)

    def on_fit_start(self, trainer: Trainer, pl_module: Any) -> None:
        training_step, logprobs = pl_module.training_step, pl_module.passes.logprobs
        self.batches = 0

        def counted(*arguments: Any, **named: Any) -> Any:
            self.batches += torch.is_grad_enabled()
            return logprobs(*arguments, **named)

        def watched(*arguments: Any) -> None:
            self.batches = 0
            with warnings.catch_warnings(record=True) as said:
                warnings.simplefilter("always")
                if torch.cuda.is_available():
                    torch.cuda.set_sync_debug_mode("warn")
                try:
                    training_step(*arguments)
                finally:
                    if torch.cuda.is_available():
                        torch.cuda.set_sync_debug_mode("default")
            reads = sum("synchroniz" in str(one.message) for one in said)
            self.path.write_text(f"{reads} {self.batches}")

        pl_module.training_step, pl_module.passes.logprobs = watched, counted
