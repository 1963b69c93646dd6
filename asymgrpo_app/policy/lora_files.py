"""Adapters on disk: what a checkpoint says of them, and the folder of an exported adapter."""

from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
import xxhash
from safetensors.torch import save_file
from torch import Tensor
from transformers import PreTrainedModel

from asymgrpo_app.errors import UserError
from asymgrpo_app.policy.lora import ADAPTER, LoRAConfig, add_adapters, first_values, hold_in_bfloat16, is_adapter


def fingerprint(policy: PreTrainedModel) -> str:
    """A digest (XXH3, 128 bits) of a policy as it was loaded, before adapters: a checkpoint of adapters names it."""
    digest = xxhash.xxh3_128()
    for name, parameter in policy.named_parameters():
        digest.update(name.encode())
        digest.update(parameter.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().data)
    return digest.hexdigest()


def adapted(policy: PreTrainedModel, config: LoRAConfig, path: str, seed: int, *, in_bfloat16: bool) -> str:
    """Add the adapters that a run trains, with their first values; returns the fingerprint of the base weights.

    Args:
        policy: As it was loaded; changed in place.
        config: Of the run.
        path: Folder or hub id of the policy, for messages.
        seed: Seed of the run, which the first values follow.
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
    """Have a checkpoint hold the adapters alone, and say what they belong to, in plain values.

    Args:
        checkpoint: To be saved, with the entry `asymgrpo`.
        config: Of the run.
        path: Folder or hub id of the policy that the adapters belong to.
        base: Its fingerprint.
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
        checkpoint: As it was saved.
        config: Of this run; None: it has no adapters.
        policy: The run's, with its adapters.
        base: Fingerprint of its base weights.
        path: Of the checkpoint, for messages.

    Raises:
        UserError: One of the two has adapters and the other has not, they have others, or another base.
    """
    check_settings(checkpoint["asymgrpo"], config, path)
    if config is not None:
        saved = {name.removeprefix("policy."): own for name, own in checkpoint["state_dict"].items()}
        check_weights(checkpoint["asymgrpo"]["lora"], saved, policy, base)


def check_settings(content: Mapping[str, Any], config: LoRAConfig | None, checkpoint: str) -> None:
    """Refuse a checkpoint whose kind is not the run's.

    Args:
        content: What the checkpoint says of its run.
        config: Of this run; None: it has no adapters.
        checkpoint: Its path, for messages.

    Raises:
        UserError: One of the two has adapters and the other has not, or they have others.
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
    own, saved = asdict(config), label["settings"]
    for key in own:
        if key != "export" and own[key] != saved.get(key):
            raise UserError(
                f"model.lora.{key} is {own[key]}, but the adapters in {checkpoint} were made with {saved.get(key)}: "
                "keep the setting, or start a new run from the exported policy (asymgrpo export)."
            )


def check_weights(label: Mapping[str, Any], saved: Mapping[str, Any], policy: PreTrainedModel, base: str) -> None:
    """Refuse adapters that do not belong to a policy.

    Args:
        label: What the checkpoint says of its adapters.
        saved: Its adapters, by their names in the policy.
        policy: With adapters of the same settings.
        base: Its fingerprint.

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
    """Make a policy as it was loaded the one of a checkpoint.

    Args:
        policy: What the adapters belong to, without any.
        label: What the checkpoint says of its adapters.
        saved: Its adapters, by their names in the policy.

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
