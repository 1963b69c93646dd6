"""Tables of contents of sharded checkpoints are pickles, of which nothing is built that does not belong there."""

import os
import pickle

import pytest
import torch
from torch.distributed.checkpoint.filesystem import FileSystemWriter
from torch.distributed.checkpoint.state_dict_saver import save

from asymgrpo_app.checkpoints.files import (
    DamagedCheckpointError,
    Label,
    Shards,
    digest_of,
    write_checkpoint,
)
from asymgrpo_app.checkpoints.shards import (
    ALIASES,
    parse_state_key,
    read_whole,
    remove_checkpoint,
    state_key,
    sweep_shards,
    tensor_shapes,
    weight_key,
)
from tests.support.checkpoint_files import forge


def saved(folder, tensors):
    """A sharded checkpoint of step 1, written by one process."""
    shards = folder / "step-00000001.shards"
    save(tensors, storage_writer=FileSystemWriter(shards), no_dist=True)
    return committed(folder)


def committed(folder):
    shards = folder / "step-00000001.shards"
    files = {own.name: (own.stat().st_size, digest_of(own, own.stat().st_size)) for own in shards.iterdir()}
    content = {
        "asymgrpo": {"completed_steps": 1},
        "optimizer_states": [{"state": {0: {"step": 3}}, "param_groups": []}],
        ALIASES: {"head": "embedding"},
    }
    path = folder / "step-00000001.ckpt"
    write_checkpoint(content, path, Label(1, shards=Shards(shards.name, files)))
    return path


TENSORS = {
    weight_key("embedding"): torch.arange(6.0).reshape(3, 2),
    weight_key("norm"): torch.ones(2, dtype=torch.bfloat16),
    state_key(0, 0, "exp_avg"): torch.full((3, 2), 0.5),
}


def test_it_is_read_as_one_process_would_have_written_it(tmp_path):
    path = saved(tmp_path, dict(TENSORS))
    assert tensor_shapes(path) == {key: (own.shape, own.dtype) for key, own in TENSORS.items()}
    content = read_whole(path)
    assert list(content["state_dict"]) == ["embedding", "norm", "head"]
    assert content["state_dict"]["head"] is content["state_dict"]["embedding"]
    assert torch.equal(content["state_dict"]["head"], TENSORS[weight_key("embedding")])
    assert content["state_dict"]["norm"].dtype == torch.bfloat16
    entry = content["optimizer_states"][0]["state"][0]
    assert entry["step"] == 3
    assert torch.equal(entry["exp_avg"], TENSORS[state_key(0, 0, "exp_avg")])


def test_keys():
    assert parse_state_key(state_key(1, 12, "a/b")) == (1, 12, "a/b")
    assert parse_state_key(weight_key("policy.model.norm.weight")) is None


class Evil:
    def __reduce__(self):
        return os.mkdir, ("evil",)


def test_a_table_of_contents_cannot_run_anything(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    path = saved(tmp_path, dict(TENSORS))
    (tmp_path / "step-00000001.shards/.metadata").write_bytes(pickle.dumps(Evil()))
    committed(tmp_path)
    with pytest.raises(DamagedCheckpointError, match=r"^its table of contents holds posix\.mkdir$"):
        read_whole(path)
    assert not (tmp_path / "evil").exists()


def test_a_label_cannot_name_files_elsewhere(tmp_path):
    with pytest.raises(OSError, match="its label names files that are not its own"):  # from reading it back
        write_checkpoint({"asymgrpo": {}}, tmp_path / "a.ckpt", Label(1, shards=Shards("shards", {"../b": (1, "")})))


@pytest.mark.parametrize("folder", ["..", "", ".", "../step-00000001.shards", "other", "step-00000002.shards"])
def test_a_label_cannot_have_anything_else_removed(folder, tmp_path):
    """Whoever can put a file among the checkpoints must not thereby remove the run, or another checkpoint's shards."""
    checkpoints = tmp_path / "run/checkpoints"
    for name in ("other", "step-00000001.shards", "step-00000002.shards"):
        (checkpoints / name).mkdir(parents=True)
        (checkpoints / name / "kept").touch()
    before = sorted(tmp_path.rglob("*"))
    crafted = forge(checkpoints / "step-00000001.ckpt", folder, ["kept"] if folder == "other" else [".metadata"])
    remove_checkpoint(crafted)
    assert sorted(tmp_path.rglob("*")) == before


def test_shards_go_with_their_checkpoint(tmp_path):
    path = saved(tmp_path, dict(TENSORS))
    sweep_shards(tmp_path)
    assert (tmp_path / "step-00000001.shards").is_dir()
    path.rename(tmp_path / "step-00000001.ckpt.abandoned")
    sweep_shards(tmp_path)
    assert (tmp_path / "step-00000001.shards").is_dir()
    remove_checkpoint(tmp_path / "step-00000001.ckpt.abandoned")
    assert list(tmp_path.iterdir()) == []
    saved(tmp_path, dict(TENSORS)).unlink()
    sweep_shards(tmp_path)
    assert list(tmp_path.iterdir()) == []
