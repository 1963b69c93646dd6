"""Export of a policy in Hugging Face's format, with a model card."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

import yaml
from torch import Tensor

from asymgrpo_app.policy.lora import merged
from asymgrpo_app.policy.lora_files import write_adapter
from asymgrpo_app.runtime.console import printable
from asymgrpo_app.version import __version__

if TYPE_CHECKING:  # transformers takes seconds to import, which a wrong key should not wait for
    from transformers import GenerationConfig, PreTrainedModel, PreTrainedTokenizerBase


@dataclass(frozen=True)
class ModelCard:
    """Model card of an exported policy.

    Attributes:
        base_model: Folder or hub id that training started from.
        method: Class of the advantage estimator.
        settings: Its settings, e.g. the exponents.
        data: The training problems, in words.
        steps: RL steps that it was trained for.
        results: Evaluations, by name.
        adapter: Whether the folder holds an adapter of the base model, not a model.
        total_steps: Length of the run in RL steps; 0 if it is not known.
    """

    base_model: str
    method: str
    settings: Mapping[str, float]
    data: str
    steps: int
    results: Mapping[str, str] = field(default_factory=dict)
    adapter: bool = False
    total_steps: int = 0

    def text(self) -> str:
        """The card as Markdown, with the head that model hubs read."""
        settings = ", ".join(f"{name} {value:g}" for name, value in self.settings.items())
        head = {"library_name": "transformers", "pipeline_tag": "text-generation"}
        if self.adapter:
            head |= {"library_name": "peft", "base_model": self.base_model}
        lines = [
            "---",
            yaml.safe_dump(head, sort_keys=False).rstrip(),
            "---",
            "",
            f"# {_code(Path(self.base_model).name)}, trained with {_code(self.method)}",
            "",
            f"- Base model: {_code(self.base_model)}",
            f"- Method: {_code(self.method)}{f' ({_code(settings)})' if settings else ''}, arXiv 2604.04894",
            f"- Training problems: {_code(self.data)}",
            f"- RL steps: {self.steps}{f' of {self.total_steps}' if self.steps < self.total_steps else ''}",
            f"- Made with asymgrpo {__version__}",
        ]
        if self.results:
            lines += ["", "| evaluation | value |", "| --- | --- |"]
            lines += [f"| {_cell(name)} | {value} |" for name, value in self.results.items()]
        return "\n".join([*lines, ""])


def _code(text: str) -> str:
    """A text from elsewhere as code in Markdown, of which nothing is a link, HTML or another line."""
    return f"`{printable(text).replace('`', chr(39)).strip() or '-'}`"


def _cell(text: str) -> str:
    """The same in a table, whose columns are divided before code is looked for."""
    return _code(text).replace("\\", "/").replace("|", "\\|")


def write_export(
    folder: Path,
    policy: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    card: ModelCard,
    state: dict[str, Tensor] | None = None,
) -> None:
    """Save a policy with all that vLLM or transformers need to serve it; the chat template is the tokenizer's.

    Adapters are merged into the weights, unless the card says that they are to be saved alone.

    Args:
        folder: Target folder.
        policy: The model.
        tokenizer: Its tokenizer.
        card: Its model card.
        state: The weights as whole tensors, if the policy itself is sharded.
    """
    if card.adapter:
        write_adapter(folder, policy)
    else:
        weights = merged((policy.state_dict() if state is None else state).items(), policy)
        policy.save_pretrained(folder, state_dict={name: weight.to(policy.dtype) for name, weight in weights})
        _generation_config(card.base_model, policy).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    (folder / "README.md").write_text(card.text(), encoding="utf-8")


def _generation_config(base: str, policy: PreTrainedModel) -> GenerationConfig:
    """The base model's generation config, or one made from the policy's config if there is none."""
    from transformers import GenerationConfig

    try:
        return GenerationConfig.from_pretrained(base)
    except OSError:
        return GenerationConfig.from_model_config(policy.config)
