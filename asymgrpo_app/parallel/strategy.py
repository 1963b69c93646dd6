"""`trainer.strategy: fsdp2`: weights, gradients and optimizer state spread over all processes."""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch.core.optimizer import LightningOptimizer
from lightning.pytorch.strategies import ModelParallelStrategy, Strategy, StrategyRegistry
from torch import Tensor, nn
from torch.distributed.tensor import DTensor
from torch.optim import Optimizer

from asymgrpo_app.checkpoints.files import Label
from asymgrpo_app.checkpoints.plugin import WholeCheckpointIO
from asymgrpo_app.checkpoints.shards import (
    ALIASES,
    parse_state_key,
    read_into,
    state_key,
    tensor_shapes,
    weight_key,
)
from asymgrpo_app.parallel.sharding import gathered_state, part_of_whole, whole
from asymgrpo_app.runtime.compat import unwrapped

NAME = "fsdp2"


class FSDP2Strategy(ModelParallelStrategy):
    """FSDP2 over all processes of a run, with checkpoints that any other strategy reads as well.

    The module shards its policy itself, in `configure_model`. Lightning's own way to save and restore (one file with
    names in place of the optimizer's numbers, or a folder that can be half-written) is replaced: what is saved has the
    form that one process gives it, in one file or, if `sharded_checkpoints`, with its tensors in a part per process.

    Attributes:
        sharded_checkpoints: Whether the tensors of a checkpoint are gathered on the first process or written by all.
    """

    def __init__(self) -> None:
        super().__init__(tensor_parallel_size=1, save_distributed_checkpoint=False)
        self.sharded_checkpoints = False
        self._restored_from = Path()

    def setup_environment(self) -> None:
        self._data_parallel_size = self.num_nodes * self.num_processes
        super().setup_environment()

    # As one process does it: the module shards itself before `setup`, and what happens when a run starts (newer
    # checkpoints are set aside, say) goes by the step that was restored.
    @property
    def restore_checkpoint_after_setup(self) -> bool:
        return False

    @property
    def lightning_restore_optimizer(self) -> bool:
        return True

    # ---- saving: every process takes part ----

    def lightning_module_state_dict(self) -> dict[str, Any]:
        """Whole tensors, on the first process alone; if each process writes its own, only names (see `ALIASES`)."""
        assert self.lightning_module is not None
        if self.sharded_checkpoints:
            return _aliases(self.lightning_module)
        return gathered_state(self.lightning_module, keep=self.is_global_zero)

    def optimizer_state(self, optimizer: Optimizer) -> dict[str, Any]:
        """What the optimizer gives on one process, on the first process alone; without tensors that all write."""
        state = _plain(optimizer).state_dict()
        entries: dict[int, dict[str, Any]] = {}
        for number, own in state["state"].items():
            entries[number] = {}
            for key, value in own.items():
                if isinstance(value, DTensor) and self.sharded_checkpoints:
                    continue
                gathered = whole(value) if isinstance(value, Tensor) else value
                if self.is_global_zero:
                    entries[number][key] = gathered.cpu() if isinstance(gathered, Tensor) else gathered
        return {**state, "state": entries}

    def save_checkpoint(
        self, checkpoint: dict[str, Any], filepath: str | Path, storage_options: Label | None = None
    ) -> None:
        """Write it.

        Raises:
            OSError: It cannot be written; on the first process alone if that alone writes.
        """
        if not self.sharded_checkpoints:
            Strategy.save_checkpoint(self, checkpoint, filepath, storage_options)
            return
        assert isinstance(self.checkpoint_io, WholeCheckpointIO)
        self.checkpoint_io.save_sharded(dict(self._tensors()), checkpoint, filepath, storage_options)

    def _tensors(self) -> Iterator[tuple[str, Tensor]]:
        """What a sharded checkpoint leaves to every process, by name."""
        assert self.lightning_module is not None
        aliases = _aliases(self.lightning_module)
        for name, tensor in self.lightning_module.state_dict().items():
            if name not in aliases:
                yield weight_key(name), tensor.detach()
        for place, optimizer in enumerate(map(_plain, self.optimizers)):
            for number, own in optimizer.state_dict()["state"].items():
                for key, value in own.items():
                    if isinstance(value, DTensor):
                        yield state_key(place, number, key), value

    # ---- restoring ----

    def load_checkpoint(self, checkpoint_path: str | Path, weights_only: bool | None = None) -> dict[str, Any]:
        """The content; its tensors stay in their files until each process takes its parts."""
        assert isinstance(self.checkpoint_io, WholeCheckpointIO)
        self._restored_from = Path(checkpoint_path)
        return self.checkpoint_io.load_mapped(checkpoint_path)

    def load_model_state_dict(self, checkpoint: Mapping[str, Any], strict: bool = True) -> None:
        """Take this process's parts of the weights.

        Raises:
            RuntimeError: They are those of another model.
        """
        assert self.lightning_module is not None
        own = {name: tensor.detach() for name, tensor in self.lightning_module.state_dict().items()}
        if ALIASES in checkpoint:
            shapes = tensor_shapes(self._restored_from)
            saved = {name: shapes[key][0] for name in own if (key := weight_key(name)) in shapes}
            saved |= {name: saved[other] for name, other in checkpoint[ALIASES].items() if other in saved}
        else:
            saved = {name: tensor.shape for name, tensor in checkpoint["state_dict"].items()}
        if other := [name for name in {**own, **saved} if name not in own or saved.get(name) != own[name].shape]:
            raise RuntimeError(f"loading state_dict: {len(other)} weights differ, {other[0]} among them")
        if ALIASES in checkpoint:
            read_into(
                {weight_key(name): own[name] for name in own if name not in checkpoint[ALIASES]}, self._restored_from
            )
            return
        for name, tensor in own.items():
            tensor.copy_(part_of_whole(checkpoint["state_dict"][name], like=tensor))

    def load_optimizer_state_dict(self, checkpoint: Mapping[str, Any]) -> None:
        """Take this process's parts of the optimizers' state."""
        for place, optimizer in enumerate(map(_plain, self.optimizers)):
            saved = checkpoint["optimizer_states"][place]
            parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
            entries = {number: dict(own) for number, own in saved["state"].items()}
            for number, own in entries.items():
                for key, value in own.items():
                    if isinstance(value, Tensor) and value.shape == parameters[number].shape:
                        own[key] = part_of_whole(value, like=parameters[number].detach())
            if ALIASES in checkpoint:
                self._read_state(place, parameters, entries)
            optimizer.load_state_dict({**saved, "state": entries})

    def _read_state(self, place: int, parameters: list[Tensor], entries: dict[int, dict[str, Any]]) -> None:
        tensors: dict[str, Tensor] = {}
        for key, (_, dtype) in tensor_shapes(self._restored_from).items():
            if (found := parse_state_key(key)) is not None and found[0] == place:
                _, number, name = found
                tensors[key] = entries[number][name] = torch.zeros_like(parameters[number].detach(), dtype=dtype)
        read_into(tensors, self._restored_from)


def _plain(optimizer: Optimizer) -> Optimizer:
    return unwrapped(optimizer) if isinstance(optimizer, LightningOptimizer) else optimizer


def _aliases(module: nn.Module) -> dict[str, str]:
    """Names of weights that are another one's as well, such as a tied head's, with that one's name."""
    first: dict[int, str] = {}
    named: dict[str, Tensor] = module.state_dict(keep_vars=True)
    return {name: first[id(own)] for name, own in named.items() if first.setdefault(id(own), name) != name}


StrategyRegistry.register(
    NAME, FSDP2Strategy, description="FSDP2: weights, gradients and optimizer state spread over all processes."
)
