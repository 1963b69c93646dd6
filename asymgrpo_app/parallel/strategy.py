"""`trainer.strategy: fsdp2`: weights, gradients and optimizer state sharded over all ranks."""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch.strategies import ModelParallelStrategy, Strategy, StrategyRegistry
from torch import Tensor, nn
from torch.distributed.tensor import DTensor
from torch.optim import Optimizer

from asymgrpo_app.checkpoints.files import DamagedCheckpointError, read_checkpoint
from asymgrpo_app.checkpoints.folder import damage_as_user_error
from asymgrpo_app.checkpoints.plugin import plain_label
from asymgrpo_app.checkpoints.shards import (
    ALIASES,
    parse_state_key,
    read_into,
    state_key,
    tensor_shapes,
    weight_key,
    write_sharded,
)
from asymgrpo_app.parallel.sharding import gathered_state, part_of_whole, whole

NAME = "fsdp2"


class FSDP2Strategy(ModelParallelStrategy):
    """FSDP2 over all ranks of a run, with checkpoints that any other strategy reads as well.

    The module shards its policy itself, in `configure_model`. Lightning's own way to save and restore (one file with
    names in place of the optimizer's numbers, or a folder that can be half-written) is replaced: a checkpoint has the
    same form as on one process, in one file or, if `sharded_checkpoints`, with its tensors in one part per rank.

    Attributes:
        sharded_checkpoints: Whether every rank writes its part of a checkpoint's tensors; otherwise they are gathered
            on the first rank.
    """

    def __init__(self) -> None:
        super().__init__(tensor_parallel_size=1, save_distributed_checkpoint=False)
        self.sharded_checkpoints = False
        self._restored_from = Path()

    def setup_environment(self) -> None:
        self._data_parallel_size = self.num_nodes * self.num_processes
        super().setup_environment()

    # As on one process: the module shards itself before `setup`, and the start of a run (newer checkpoints are set
    # aside, say) depends on the step that was restored.
    @property
    def restore_checkpoint_after_setup(self) -> bool:
        return False

    @property
    def lightning_restore_optimizer(self) -> bool:
        return True

    # ---- saving: every rank takes part ----

    def lightning_module_state_dict(self) -> dict[str, Any]:
        """Whole tensors, on the first rank alone; with `sharded_checkpoints` only names (see `ALIASES`)."""
        assert self.lightning_module is not None
        if self.sharded_checkpoints:
            return _aliases(self.lightning_module)
        return gathered_state(self.lightning_module, keep=self.is_global_zero)

    def optimizer_state(self, optimizer: Optimizer) -> dict[str, Any]:
        """State of the optimizer as on one process, on the first rank alone; without tensors that all ranks write."""
        state = optimizer.state_dict()
        entries: dict[int, dict[str, Any]] = {}
        for number, entry in state["state"].items():
            entries[number] = {}
            for key, value in entry.items():
                if isinstance(value, DTensor) and self.sharded_checkpoints:
                    continue
                gathered = whole(value) if isinstance(value, Tensor) else value
                if self.is_global_zero:
                    entries[number][key] = gathered.cpu() if isinstance(gathered, Tensor) else gathered
        return {**state, "state": entries}

    def save_checkpoint(self, checkpoint: dict[str, Any], filepath: str | Path, storage_options: Any = None) -> None:
        """Write a checkpoint; `storage_options` is its label, None for one without validation values.

        Raises:
            OSError: It cannot be written; on the first rank alone if that alone writes.
        """
        if not self.sharded_checkpoints:
            Strategy.save_checkpoint(self, checkpoint, filepath, storage_options)
            return
        content = {key: value for key, value in checkpoint.items() if key != "state_dict"}
        content[ALIASES] = aliases = checkpoint["state_dict"]
        label = storage_options or plain_label(checkpoint)
        write_sharded(dict(self._tensors(aliases)), content, Path(filepath), label)

    def _tensors(self, aliases: Mapping[str, str]) -> Iterator[tuple[str, Tensor]]:
        """Tensors of a sharded checkpoint of which every rank writes its part, by name."""
        assert self.lightning_module is not None
        for name, tensor in self.lightning_module.state_dict().items():
            if name not in aliases:
                yield weight_key(name), tensor.detach()
        for index, optimizer in enumerate(self.optimizers):
            for number, entry in optimizer.state_dict()["state"].items():
                for key, value in entry.items():
                    if isinstance(value, DTensor):
                        yield state_key(index, number, key), value

    # ---- restoring ----

    def load_checkpoint(self, checkpoint_path: str | Path, weights_only: bool | None = None) -> dict[str, Any]:
        """Load a checkpoint; its tensors stay in their files until each rank takes its parts."""
        self._restored_from = Path(checkpoint_path)
        with damage_as_user_error(checkpoint_path):
            return read_checkpoint(self._restored_from, mapped=True)

    def load_model_state_dict(self, checkpoint: Mapping[str, Any], strict: bool = True) -> None:
        """Load this rank's parts of the weights.

        Raises:
            RuntimeError: They are the weights of another model.
        """
        assert self.lightning_module is not None
        parts = {name: tensor.detach() for name, tensor in self.lightning_module.state_dict().items()}
        if ALIASES in checkpoint:
            stored = {weight_key(name): tensor for name, tensor in parts.items() if name not in checkpoint[ALIASES]}
            try:
                read_into(stored, self._restored_from)
            except DamagedCheckpointError as error:
                raise RuntimeError(f"loading state_dict: {error}") from error
            return
        saved = checkpoint["state_dict"]
        shapes, saved_shapes = ({name: tensor.shape for name, tensor in own.items()} for own in (parts, saved))
        if other := sorted({name for name, _ in shapes.items() ^ saved_shapes.items()}):
            raise RuntimeError(f"loading state_dict: {len(other)} weights differ, {other[0]} among them")
        for name, tensor in parts.items():
            tensor.copy_(part_of_whole(saved[name], like=tensor))

    def load_optimizer_state_dict(self, checkpoint: Mapping[str, Any]) -> None:
        """Load this rank's parts of the optimizers' state."""
        for index, optimizer in enumerate(self.optimizers):
            saved = checkpoint["optimizer_states"][index]
            weights = [weight.detach() for group in optimizer.param_groups for weight in group["params"]]
            entries = {
                number: {key: part_of_whole(value, like=weights[number]) for key, value in entry.items()}
                for number, entry in saved["state"].items()
            }
            if ALIASES in checkpoint:
                self._read_state(index, weights, entries)
            optimizer.load_state_dict({**saved, "state": entries})

    def _read_state(self, index: int, weights: list[Tensor], entries: dict[int, dict[str, Any]]) -> None:
        tensors: dict[str, Tensor] = {}
        for key, (_, dtype) in tensor_shapes(self._restored_from).items():
            if (found := parse_state_key(key)) is not None and found[0] == index:
                _, number, name = found
                tensors[key] = entries[number][name] = torch.zeros_like(weights[number], dtype=dtype)
        read_into(tensors, self._restored_from)


def _aliases(module: nn.Module) -> dict[str, str]:
    """Names of weights that share another weight's tensor, such as a tied head's, with that weight's name."""
    first: dict[int, str] = {}
    named: dict[str, Tensor] = module.state_dict(keep_vars=True)
    return {name: first[id(tensor)] for name, tensor in named.items() if first.setdefault(id(tensor), name) != name}


StrategyRegistry.register(
    NAME, FSDP2Strategy, description="FSDP2: weights, gradients and optimizer state spread over all processes."
)
