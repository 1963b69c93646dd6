"""Checkpoints whose weights are not those that their config asks for, seen before any weight is loaded."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from asymgrpo_app.errors import UserError
from asymgrpo_app.policy.loading import empty_policy, load_config, load_policy
from asymgrpo_app.policy.weight_files import check_weights
from tests.support.paths import POLICY
from tests.support.refusals import refusal

NAME = "model.safetensors"
Tensors = dict[str, torch.Tensor]


@pytest.fixture
def checkpoint(tmp_path) -> Callable[..., Path]:
    """A copy of the shipped policy, whose head is its embedding, with other tensors and another config."""

    def make(change: Callable[[Tensors], object] = dict, file: str = NAME, **config: object) -> Path:
        folder = tmp_path / "policy"
        shutil.copytree(POLICY, folder)
        tensors = load_file(folder / NAME)
        change(tensors)
        (folder / NAME).unlink()
        if file == NAME:
            save_file(tensors, folder / NAME, metadata={"format": "pt"})
        elif file.endswith(".bin"):
            torch.save(tensors, folder / file)
        else:
            names = sorted(tensors)
            placed = {name: f"model-{number % 2}.safetensors" for number, name in enumerate(names)}
            for part in set(placed.values()):
                save_file({name: tensors[name] for name in names if placed[name] == part}, folder / part)
            (folder / file).write_text(json.dumps({"weight_map": placed}))
        settings = json.loads((folder / "config.json").read_text())
        (folder / "config.json").write_text(json.dumps(settings | config))
        return folder

    return make


def looked_at(folder: Path) -> list[str]:
    return check_weights("model.policy", str(folder), empty_policy(load_config(str(folder))))


def refused(folder: Path) -> str:
    with pytest.raises(UserError) as raised:
        looked_at(folder)
    return str(raised.value)


def own_head(tensors: Tensors) -> None:
    tensors["lm_head.weight"] = torch.linspace(-1, 1, 17 * 128).reshape(17, 128)


def same_head(tensors: Tensors) -> None:
    tensors["lm_head.weight"] = tensors["model.embed_tokens.weight"].clone()


def last_element(tensors: Tensors) -> None:
    same_head(tensors)
    tensors["lm_head.weight"][-1, -1] += 1


def without_prefix(tensors: Tensors) -> None:
    for name in list(tensors):
        tensors[name.removeprefix("model.")] = tensors.pop(name)


@pytest.mark.parametrize("change", [dict, same_head, without_prefix])
@pytest.mark.parametrize("file", [NAME, "pytorch_model.bin", "model.safetensors.index.json"])
def test_whole_checkpoints_pass(checkpoint, change, file):
    assert looked_at(checkpoint(change, file)) == []


@pytest.mark.parametrize("change", [own_head, last_element])
@pytest.mark.parametrize(
    ("file", "place"),
    [(NAME, NAME), ("pytorch_model.bin",) * 2, ("model.safetensors.index.json", "model-0.safetensors")],
)
def test_a_head_that_is_not_the_embedding_in_spite_of_the_config(checkpoint, change, file, place):
    folder = checkpoint(change, file)
    assert refused(folder) == (
        f"model.policy: config.json says tie_word_embeddings: true, but lm_head.weight in {folder / place} differs "
        "from model.embed_tokens.weight: set it to false there to keep that head, or remove the tensor from the file."
    )


def test_such_a_head_is_refused_when_it_is_loaded_too(checkpoint):
    folder = checkpoint(own_head)
    with pytest.raises(UserError, match=r"tie_word_embeddings: true, but lm_head\.weight in .* differs from"):
        load_policy(str(folder), "sdpa")


def test_a_head_of_its_own_passes_where_the_config_says_so(checkpoint):
    assert looked_at(checkpoint(own_head, tie_word_embeddings=False)) == []


def test_a_head_that_is_nowhere(checkpoint):
    folder = checkpoint(tie_word_embeddings=False)
    assert refused(folder) == (
        f"model.policy: {folder / NAME} lacks lm_head.weight, which would be random numbers: config.json says "
        "tie_word_embeddings: false. Set it to true there if the head is the embedding, or use a whole checkpoint."
    )


def test_weights_that_are_missing(checkpoint):
    def cut(tensors: Tensors) -> None:
        for part in ("up_proj", "down_proj"):
            del tensors[f"model.layers.2.mlp.{part}.weight"]

    folder = checkpoint(cut)
    assert refused(folder) == (
        f"model.policy: {folder / NAME} lacks 2 weights, model.layers.2.mlp.down_proj.weight among them, which would "
        "be random numbers: use a whole checkpoint, or the config.json that belongs to it."
    )


def test_weights_of_another_shape(checkpoint):
    folder = checkpoint(vocab_size=20)
    assert refused(folder) == (
        f"model.policy: model.embed_tokens.weight in {folder / NAME} has the shape [17, 128], but config.json says "
        "[20, 128]: they do not belong together."
    )


def test_weights_that_nothing_takes_are_a_note(checkpoint):
    def more(tensors: Tensors) -> None:
        tensors["score.weight"] = torch.zeros(1, 128)

    folder = checkpoint(more)
    assert looked_at(folder) == [
        "WARNING: model.policy: the architecture does not take 1 of the 47 tensors of "
        f"{folder / NAME}, score.weight among them: they are left out."
    ]


def test_a_config_that_contradicts_itself(checkpoint):
    with pytest.raises(UserError, match=r"cannot be loaded: .*num_hidden_layers"):
        looked_at(checkpoint(num_hidden_layers=5))


def test_a_file_that_the_index_names_and_nobody_copied(checkpoint):
    folder = checkpoint(dict, "model.safetensors.index.json")
    (folder / "model-1.safetensors").unlink()
    assert refused(folder) == (
        f"model.policy: {folder}/model-1.safetensors is missing, which the index beside it names: copy the checkpoint "
        "again."
    )


@pytest.mark.parametrize("index", ["{}", "[", '{"weight_map": 5}'])
def test_an_index_that_is_none(checkpoint, index):
    folder = checkpoint(dict, "model.safetensors.index.json")
    (folder / "model.safetensors.index.json").write_text(index)
    assert "is no index of files of weights" in refused(folder)


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"version https://git-lfs.github.com/spec/v1\n", "is a pointer of Git LFS in place of the weights"),
        (b"", "cannot be read, it is damaged or cut off (SafetensorError"),
        (b"x" * 100, "cannot be read, it is damaged or cut off (SafetensorError"),
    ],
)
@pytest.mark.parametrize("file", [NAME])
def test_files_that_hold_no_weights(checkpoint, file, content, said):
    folder = checkpoint()
    (folder / file).write_bytes(content)
    assert said in refused(folder)


def test_a_folder_without_weights(checkpoint):
    folder = checkpoint()
    (folder / NAME).unlink()
    assert refused(folder) == f"model.policy: {folder} has no weights (model.safetensors)."


@pytest.mark.parametrize("command", ["fit", "check", "validate"])
def test_the_commands_say_so_before_they_start(checkpoint, quickstart, command, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    folder = checkpoint(own_head)
    line = refusal([command, *quickstart[1:], f"--model.policy={folder}"], capsys)
    assert "config.json says tie_word_embeddings: true, but lm_head.weight in" in line
    assert not (tmp_path / "runs").exists()
