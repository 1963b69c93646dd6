"""The trained policy as a Hugging Face folder."""

from pathlib import Path
from typing import Any

from lightning.pytorch import Callback, Trainer
from transformers import GenerationConfig, PreTrainedModel, PreTrainedTokenizerBase

from asymgrpo_app import __version__


class ExportCallback(Callback):
    """Writes `<run_dir>/export` when a run ends: weights (safetensors), tokenizer and a model card."""

    def on_train_end(self, trainer: Trainer, pl_module: Any) -> None:
        if trainer.is_global_zero and pl_module.completed_steps >= pl_module.total_steps:
            data: Any = trainer.datamodule  # type: ignore[attr-defined]
            write_export(export_folder(trainer.default_root_dir), pl_module, data.tokenizer)


def export_folder(run_dir: str | Path) -> Path:
    """Where a run puts its exported policy."""
    return Path(run_dir) / "export"


def write_export(folder: Path, pl_module: Any, tokenizer: PreTrainedTokenizerBase) -> None:
    """Save the policy with everything that vLLM or transformers need to serve it."""
    policy: PreTrainedModel = pl_module.policy
    policy.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    _generation_config(pl_module.policy_path, policy).save_pretrained(folder)
    (folder / "README.md").write_text(_model_card(pl_module), encoding="utf-8")


def _generation_config(base: str, policy: PreTrainedModel) -> GenerationConfig:
    """The base model's own, where it has one."""
    try:
        return GenerationConfig.from_pretrained(base)
    except OSError:
        return GenerationConfig.from_model_config(policy.config)


def _model_card(pl_module: Any) -> str:
    settings = ", ".join(f"{name} {value:g}" for name, value in pl_module.advantage.scalars(1.0).items())
    method = type(pl_module.advantage).__name__
    return (
        "---\nlibrary_name: transformers\npipeline_tag: text-generation\n---\n\n"
        f"# {Path(pl_module.policy_path).name}, trained with {method}\n\n"
        f"- Base model: `{pl_module.policy_path}`\n"
        f"- Method: {method}{f' ({settings})' if settings else ''}, arXiv 2604.04894\n"
        f"- RL steps: {pl_module.completed_steps}\n"
        f"- Made with asymgrpo {__version__}\n"
    )
