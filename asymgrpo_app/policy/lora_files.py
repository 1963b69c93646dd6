"""Adapters on disk: in checkpoints, and as the folder of an exported adapter."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
import xxhash
from safetensors.torch import save_file
from torch import Tensor

from asymgrpo_app.errors import UserError
from asymgrpo_app.policy.lora import ADAPTER, LoRAConfig, add_adapters, first_values, hold_in_bfloat16, is_adapter

if TYPE_CHECKING:  # transformers takes seconds to import, which a wrong key should not wait for
    from transformers import PreTrainedModel


def fingerprint(policy: PreTrainedModel) -> str:
    """Fingerprint of the base weights, before adapters (XXH3, 128 bits), which checkpoints of adapters store."""
    digest = xxhash.xxh3_128()
    for name, parameter in policy.named_parameters():
        digest.update(name.encode())
        digest.update(parameter.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().data)
    return digest.hexdigest()


def adapted(policy: PreTrainedModel, config: LoRAConfig, path: str, seed: int, *, in_bfloat16: bool) -> str:
    """Add the adapters that a run trains, with their first values; returns the fingerprint of the base weights.

    Args:
        policy: The policy as it was loaded; changed in place.
        config: The adapters' settings in the run.
        path: Folder or hub id of the policy, for messages.
        seed: Seed of the run, from which the first values are derived.
        in_bfloat16: Whether the frozen weights of linear layers are held in bfloat16.
    """
    base = fingerprint(policy)
    add_adapters(policy, config, path)
    first_values(policy, seed)
    if in_bfloat16:
        hold_in_bfloat16(policy)
    return base


# ---- checkpoints ----


def label_checkpoint(checkpoint: dict[str, Any], config: LoRAConfig, path: str, base: str, *, rounded: bool) -> None:
    """Reduce a checkpoint to the adapters, and record what they belong to, in plain values.

    Args:
        checkpoint: The checkpoint to be saved, with the entry `asymgrpo`.
        config: The adapters' settings in the run.
        path: Folder or hub id of the policy that the adapters belong to.
        base: Fingerprint of its base weights.
        rounded: Whether its linear layers were held in bfloat16 (`hold_in_bfloat16`).
    """
    label = {"settings": asdict(config), "policy": path, "base": base, "rounded": rounded}
    checkpoint["asymgrpo"]["lora"] = label
    weights: dict[str, Tensor] = checkpoint["state_dict"]
    for name in [name for name in weights if not is_adapter(name)]:
        del weights[name]


def check_checkpoint(
    checkpoint: Mapping[str, Any], config: LoRAConfig | None, policy: PreTrainedModel, base: str, path: str
) -> None:
    """Refuse a checkpoint whose adapters are not the run's.

    Args:
        checkpoint: The checkpoint as it was saved.
        config: The adapters' settings in this run; None: it has no adapters.
        policy: Policy of this run, with its adapters.
        base: Fingerprint of its base weights.
        path: Path of the checkpoint, for messages.

    Raises:
        UserError: Only one of run and checkpoint has adapters, or their settings or base weights differ.
    """
    check_settings(checkpoint["asymgrpo"], config, path)
    if config is not None:
        saved = {name.removeprefix("policy."): tensor for name, tensor in checkpoint["state_dict"].items()}
        check_weights(checkpoint["asymgrpo"]["lora"], saved, policy, base)


def check_settings(content: Mapping[str, Any], config: LoRAConfig | None, checkpoint: str) -> None:
    """Refuse a checkpoint whose adapter settings are not the run's.

    Args:
        content: Entry `asymgrpo` of the checkpoint.
        config: The adapters' settings in this run; None: it has no adapters.
        checkpoint: Path of the checkpoint, for messages.

    Raises:
        UserError: Only one of run and checkpoint has adapters, or their settings differ.
    """
    label = content.get("lora")
    if config is None and label is None:
        return
    if label is None:
        raise UserError(
            f"model.lora is set, but {checkpoint} holds all weights of a run without adapters: leave model.lora out, "
            "or export the checkpoint (asymgrpo export) and start a new run from it."
        )
    if config is None:
        raise UserError(
            f"model.lora is null, but {checkpoint} holds the adapters of a run with model.lora alone: set it as it "
            "was, or start from the exported policy (asymgrpo export)."
        )
    given, saved = asdict(config), label["settings"]
    for key in given:
        if key != "export" and given[key] != saved.get(key):
            raise UserError(
                f"model.lora.{key} is {given[key]}, but the adapters in {checkpoint} were made with {saved.get(key)}: "
                "keep the setting, or start a new run from the exported policy (asymgrpo export)."
            )


def check_weights(label: Mapping[str, Any], saved: Mapping[str, Any], policy: PreTrainedModel, base: str) -> None:
    """Refuse adapters that do not belong to a policy.

    Args:
        label: Record of the adapters in the checkpoint (`label_checkpoint`).
        saved: The checkpoint's adapters, by their names in the policy.
        policy: The policy, with adapters of the same settings.
        base: Fingerprint of its base weights.

    Raises:
        UserError: They were trained on other weights.
    """
    expected = {name for name, _ in policy.named_parameters() if is_adapter(name)}
    if label["base"] != base or saved.keys() != expected:
        raise UserError(
            f"model.policy: {policy.name_or_path} is not what the checkpoint's adapters were trained on, which came "
            f"from {label['policy']} and had other weights: name that policy."
        )


def load_adapters(policy: PreTrainedModel, label: Mapping[str, Any], saved: Mapping[str, Tensor]) -> None:
    """Add a checkpoint's adapters to a policy as it was loaded.

    Args:
        policy: The policy that the adapters belong to, without adapters.
        label: Record of the adapters in the checkpoint (`label_checkpoint`).
        saved: The checkpoint's adapters, by their names in the policy.

    Raises:
        UserError: They do not belong to this policy.
    """
    base = fingerprint(policy)
    add_adapters(policy, LoRAConfig(**label["settings"]), label["policy"])
    check_weights(label, saved, policy, base)
    if label["rounded"]:
        hold_in_bfloat16(policy)
    policy.load_state_dict(saved, strict=False)  # no frozen weight is among them


# ---- export ----


def write_adapter(folder: Path, policy: PreTrainedModel) -> None:
    """Save the adapter alone, as peft does: `PeftModel.from_pretrained`, transformers and vLLM take the folder.

    Raises:
        OSError: It cannot be written.
    """
    from peft import get_peft_model_state_dict

    settings = policy.peft_config[ADAPTER]
    path = str(settings.base_model_name_or_path)
    if Path(path).exists():  # whoever loads the adapter is in another working directory
        settings.base_model_name_or_path = str(Path(path).resolve())
    settings.save_pretrained(str(folder))
    state: dict[str, Tensor] = get_peft_model_state_dict(policy, adapter_name=ADAPTER)
    named = {f"base_model.model.{name}": tensor.contiguous() for name, tensor in state.items()}
    save_file(named, folder / "adapter_model.safetensors", metadata={"format": "pt"})
