"""Exports the trained policy as a Hugging Face folder."""

from pathlib import Path

from lightning.pytorch import Callback, Trainer
from safetensors import SafetensorError
from torch import Tensor

from asymgrpo_app.datamodule import data_of
from asymgrpo_app.errors import RunError, one_line
from asymgrpo_app.module import AsymGRPOModule
from asymgrpo_app.parallel.ranks import on_first_rank
from asymgrpo_app.parallel.sharding import gathered_state, is_sharded
from asymgrpo_app.policy.export import ModelCard, write_export
from asymgrpo_app.runtime.whole_files import whole_folder


class ExportCallback(Callback):
    """Writes `<run_dir>/export` when a run ends, early or not: weights, tokenizer, generation config and a model card.

    With adapters, `model.lora.export` says which weights are written.
    """

    def on_train_end(self, trainer: Trainer, pl_module: AsymGRPOModule) -> None:
        if pl_module.completed_steps == 0:  # nothing was trained
            return
        # Sharded weights are gathered here, which every process takes part in.
        state = gathered_state(pl_module.policy, keep=trainer.is_global_zero) if is_sharded(pl_module.policy) else None
        on_first_rank(trainer, lambda: _write(trainer, pl_module, state))


def _write(trainer: Trainer, module: AsymGRPOModule, state: dict[str, Tensor] | None) -> None:
    data = data_of(trainer)
    done, total = module.completed_steps, module.total_steps
    card = ModelCard(
        base_model=module.policy_path,
        method=type(module.advantage).__name__,
        settings=module.advantage.scalars((done - 1) / (total - 1) if 1 < done < total else 1.0),
        data=str(data.train_source),
        steps=done,
        total_steps=total,
        adapter=module.lora is not None and module.lora.export == "adapter",
        results={
            tag.removeprefix("val/"): f"{float(value):.3f}"
            for tag, value in trainer.callback_metrics.items()
            if tag.startswith("val/")
        },
    )
    folder = export_folder(trainer.default_root_dir)
    try:
        with whole_folder(folder) as part:
            write_export(part, module.policy, data.tokenizer, card, state)
    except (OSError, SafetensorError) as error:
        raise RunError(
            f"The run is at its end, but its model cannot be written to {folder} ({one_line(str(error))}): make "
            "room, and run the command again with --ckpt_path last."
        ) from error


def export_folder(run_dir: str | Path) -> Path:
    """The folder of a run's exported policy."""
    return Path(run_dir) / "export"
