"""Looks at a checkpoint's files before they are loaded: what is missing or does not fit, and heads that are not tied.

Only the heads of the files are read. transformers itself then says which of the tensors a model takes, on the meta
device: it knows older names and layouts.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from huggingface_hub import try_to_load_from_cache
from safetensors import SafetensorError, safe_open
from torch import Tensor

from asymgrpo_app.errors import UserError, one_line

if TYPE_CHECKING:  # transformers takes seconds to import, which a wrong key should not wait for
    from transformers import PreTrainedModel

_NAMES = ("model.safetensors", "model.safetensors.index.json", "pytorch_model.bin", "pytorch_model.bin.index.json")
"""The names of a checkpoint's weights, in the order in which transformers looks for them."""
_ROWS_AT_ONCE = 4096


@dataclass(frozen=True)
class WeightFiles:
    """The tensors of a checkpoint.

    Attributes:
        tensors: Shapes and types by name, on the meta device.
        files: The file of each.
    """

    tensors: dict[str, Tensor]
    files: dict[str, Path]

    def shown(self) -> str:
        """The file, or one of several."""
        found = sorted(set(self.files.values()))
        return str(found[0]) if len(found) == 1 else f"{found[0].parent} ({len(found)} files of weights)"

    def key_of(self, parameter: str) -> str | None:
        """The tensor of a model's parameter, which a file may name without the prefix of the model's body, or with."""
        if parameter in self.tensors:
            return parameter
        short = [key for key in self.tensors if parameter.endswith(f".{key}")]
        return next(iter(short or [key for key in self.tensors if key.endswith(f".{parameter}")]), None)


def check_weights(key: str, path: str, empty: PreTrainedModel) -> list[str]:
    """Check that a checkpoint's files hold the weights of a model, and that a head that is tied by its config is so.

    Args:
        key: The config key that names the checkpoint, for messages.
        path: Its folder, or its id on the hub; one that is not on this machine is not checked.
        empty: The model of its config, on the meta device.

    Returns:
        A note on tensors that the model does not take, if there are any.

    Raises:
        UserError: A file is missing or damaged, a tensor is missing or has another shape than the config says, or a
            tied head differs from the embedding.
    """
    if getattr(empty.config, "quantization_config", None) is not None:  # has names and shapes of its own
        return []
    found = read_heads(key, path)
    if found is None:
        return []
    loaded: Any = type(empty).from_pretrained(
        None,
        config=empty.config,
        state_dict=dict(found.tensors),
        device_map="meta",
        dtype=torch.float32,
        output_loading_info=True,
        ignore_mismatched_sizes=True,
    )
    info = loaded[1]
    if misfits := sorted(info["mismatched_keys"]):
        name, shape, expected = misfits[0]
        more = f" ({len(misfits)} tensors do not fit)" if len(misfits) > 1 else ""
        raise UserError(
            f"{key}: {name} in {found.files.get(found.key_of(name) or '', found.shown())} has the shape {list(shape)}, "
            f"but config.json says {list(expected)}{more}: they do not belong together."
        )
    if missing := sorted(info["missing_keys"]):
        raise UserError(_missing(key, missing, empty, found))
    _check_tied(key, empty, found)
    if unexpected := sorted(info["unexpected_keys"]):
        return [
            f"WARNING: {key}: the architecture does not take {len(unexpected):,} of the {len(found.tensors):,} tensors "
            f"of {found.shown()}, {unexpected[0]} among them: they are left out."
        ]
    return []


def _missing(key: str, missing: list[str], empty: PreTrainedModel, found: WeightFiles) -> str:
    said = (
        f"{key}: {found.shown()} lacks {len(missing)} weights, {missing[0]} among them, which would be random numbers"
    )
    if len(missing) == 1:
        said = f"{key}: {found.shown()} lacks {missing[0]}, which would be random numbers"
    names = {id(parameter): name for name, parameter in empty.named_parameters(remove_duplicate=False)}
    head: Any = empty.get_output_embeddings()
    if head is not None and missing == [names.get(id(head.weight))]:
        return (
            f"{said}: config.json says tie_word_embeddings: false. Set it to true there if the head is the embedding, "
            "or use a whole checkpoint."
        )
    return f"{said}: use a whole checkpoint, or the config.json that belongs to it."


def _check_tied(key: str, empty: PreTrainedModel, found: WeightFiles) -> None:
    for target, source in (getattr(empty, "all_tied_weights_keys", None) or {}).items():
        first, second = found.key_of(target), found.key_of(source)
        if first is None or second is None or first == second:
            continue
        if not _equal(found.files[first], first, found.files[second], second):
            raise UserError(not_tied(key, first, found.files[first], second))


def not_tied(key: str, head: str, place: str | Path, embedding: str) -> str:
    """The sentence on a head that is another tensor than the embedding, although the config ties them."""
    return (
        f"{key}: config.json says tie_word_embeddings: true, but {head} in {place} differs from {embedding}: set it to "
        "false there to keep that head, or remove the tensor from the file."
    )


# ---- reading ----


def read_heads(key: str, path: str) -> WeightFiles | None:
    """Names, shapes and types of a checkpoint's tensors; None if it is on the hub and not on this machine.

    Raises:
        UserError: There is no file of weights, one is missing or cannot be read.
    """
    files = _weight_files(key, path)
    if files is None:
        return None
    tensors: dict[str, Tensor] = {}
    places: dict[str, Path] = {}
    for file in files:
        if not file.is_file():
            raise UserError(f"{key}: {file} is missing, which the index beside it names: copy the checkpoint again.")
        try:
            read = _state(file, "meta")
        except Exception as error:  # damaged files raise whatever their parser does
            if _is_pointer(file):
                raise UserError(
                    f"{key}: {file} is a pointer of Git LFS in place of the weights: run `git lfs pull` there."
                ) from error
            reason = one_line(f"{type(error).__name__}: {error}")[:200]
            raise UserError(f"{key}: {file} cannot be read, it is damaged or cut off ({reason}).") from error
        tensors |= read
        places |= dict.fromkeys(read, file)
    return WeightFiles(tensors, places)


def _weight_files(key: str, path: str) -> list[Path] | None:
    folder = Path(path)
    for name in _NAMES:
        if folder.is_dir():
            first: Path | None = folder / name if (folder / name).is_file() else None
        else:
            cached = try_to_load_from_cache(path, name)
            first = Path(cached) if isinstance(cached, str) else None
        if first is None:
            continue
        if not name.endswith(".json"):
            return [first]
        try:
            named = sorted(set(json.loads(first.read_text(encoding="utf-8"))["weight_map"].values()))
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            raise UserError(f"{key}: {first} is no index of files of weights ({type(error).__name__}).") from error
        files = [first.with_name(str(part)) for part in named]
        return files if folder.is_dir() or all(map(Path.is_file, files)) else None  # still to be downloaded
    if folder.is_dir():
        raise UserError(f"{key}: {path} has no weights ({_NAMES[0]}).")
    return None


def _is_pointer(file: Path) -> bool:
    with file.open("rb") as opened:
        return opened.read(24).startswith(b"version https://git-lfs")


def _equal(first: Path, one: str, second: Path, other: str) -> bool:
    """Whether two tensors in files are equal; reads some rows at a time."""
    if ".safetensors" not in (first.suffix, second.suffix):
        return torch.equal(_loaded(first)[one], _loaded(second)[other])
    try:
        with safe_open(str(first), framework="pt") as left, safe_open(str(second), framework="pt") as right:
            mine, theirs = left.get_slice(one), right.get_slice(other)
            if mine.get_shape() != theirs.get_shape():
                return False
            starts = range(0, mine.get_shape()[0], _ROWS_AT_ONCE)
            return all(
                torch.equal(mine[at : at + _ROWS_AT_ONCE].float(), theirs[at : at + _ROWS_AT_ONCE].float())
                for at in starts
            )
    except SafetensorError:
        return False


def _loaded(file: Path) -> dict[str, Tensor]:
    return _state(file, "cpu")


def _state(file: Path, device: str) -> dict[str, Tensor]:
    """The tensors of a file, as transformers reads it."""
    from transformers.modeling_utils import load_state_dict

    tensors: dict[str, Tensor] = load_state_dict(str(file), map_location=device)
    return tensors
