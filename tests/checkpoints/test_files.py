"""A checkpoint is absent or whole, and a reader knows."""

import os
import resource
import zipfile
from pathlib import Path

import pytest
import torch

from asymgrpo_app.checkpoints import files
from asymgrpo_app.checkpoints.files import (
    DamagedCheckpointError,
    Label,
    read_checkpoint,
    read_label,
    verify,
    write_checkpoint,
)
from asymgrpo_app.checkpoints.plugin import WholeCheckpointIO
from asymgrpo_app.errors import UserError
from asymgrpo_app.runtime import whole_files
from asymgrpo_app.runtime.whole_files import part_of
from tests.support.checkpoint_files import DAMAGES, DyingFile, die, forge, in_a_child, save, state


def assert_whole(path: Path, step: int) -> None:
    expected = state(step)
    content = read_checkpoint(path)
    assert torch.equal(content["state_dict"]["policy.weight"], expected["state_dict"]["policy.weight"])
    assert content["asymgrpo"] == expected["asymgrpo"]


def test_a_checkpoint_of_another_format_is_none(tmp_path):
    path = forge(tmp_path / "step-00000001.ckpt", "step-00000001.shards", [".metadata"], version=2)
    with pytest.raises(DamagedCheckpointError, match="its format is 2, from another version of asymgrpo"):
        read_label(path)


@pytest.mark.parametrize("numbers", [0, 1, 50_000, 3_000_000])
def test_what_is_written_is_read(tmp_path, numbers):
    path = tmp_path / "run/checkpoints/step-00000007.ckpt"
    label = Label(7, {"val/countdown/avg@8": 0.1 + 0.2, "val/größe/greedy": float("nan")})
    write_checkpoint(state(7, numbers), path, label)
    assert str(verify(path)) == str(read_label(path)) == str(label)  # as text, for the sake of nan
    for mapped in (False, True):
        found = read_checkpoint(path, mapped=mapped)
        assert torch.equal(found["state_dict"]["policy.weight"], state(7, numbers)["state_dict"]["policy.weight"])
    assert [own.name for own in path.parent.iterdir()] == [path.name]


def test_others_read_it_without_this_package(tmp_path):
    path = save(tmp_path, 3)
    content = torch.load(path, weights_only=True)
    assert content["asymgrpo"]["completed_steps"] == 3
    with zipfile.ZipFile(path) as archive:
        assert archive.testzip() is None


@pytest.mark.parametrize("name", DAMAGES)
def test_damage_is_found(tmp_path, name):
    path = save(tmp_path, 3)
    DAMAGES[name](path)
    with pytest.raises(DamagedCheckpointError):
        verify(path)
    with pytest.raises(UserError, match=r"step-00000003\.ckpt: not a checkpoint of asymgrpo, or damaged: .+\.$"):
        WholeCheckpointIO().load_checkpoint(path)


def test_every_flipped_bit_is_found(tmp_path):
    """In a small file: each byte, and in turn each of its bits."""
    path = tmp_path / "small.ckpt"
    write_checkpoint(state(1, 4), path, Label(1))
    whole = path.read_bytes()
    for place in range(len(whole)):
        broken = bytearray(whole)
        broken[place] ^= 1 << place % 8
        path.write_bytes(broken)
        with pytest.raises(DamagedCheckpointError):
            verify(path)


def test_a_missing_file_is_no_damage(tmp_path):
    with pytest.raises(FileNotFoundError):
        verify(tmp_path / "nothing.ckpt")


class Malicious:
    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self):
        return os.mkdir, (str(self.mark),)


def test_code_in_a_file_is_not_run(tmp_path, monkeypatch):
    mark, path = tmp_path / "mark", tmp_path / "step-00000001.ckpt"
    with monkeypatch.context() as unchecked:
        unchecked.setattr(files, "read_checkpoint", lambda part, mapped: None)
        write_checkpoint({**state(1), "malicious": Malicious(mark)}, path, Label(1))
    verify(path)  # it is what was written
    with pytest.raises(DamagedCheckpointError, match="something else than tensors and plain values"):
        read_checkpoint(path)
    assert not mark.exists()


@pytest.mark.parametrize("value", [Path("x"), Label(1), lambda: None], ids=["path", "object", "function"])
def test_what_could_not_be_loaded_is_not_written(tmp_path, value):
    """A state that is not plain would be found out at the resume otherwise."""
    path = save(tmp_path, 4)
    with pytest.raises(OSError, match="something else than tensors and plain values"):
        write_checkpoint({**state(4), "callbacks": value}, path, Label(4))
    assert_whole(path, 4)
    assert [own.name for own in path.parent.iterdir()] == [path.name]


@pytest.mark.parametrize("limit", [1, 1_000, 100_000, 199_000, 201_000])
def test_a_full_disk_leaves_the_older_file_and_no_part(tmp_path, limit):
    """The limit on a file's size stands for a disk that is full after so many bytes."""
    path = save(tmp_path, 4)
    before, size = path.read_bytes(), resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, size[1]))
    try:
        with pytest.raises(OSError, match="File too large"):
            write_checkpoint(state(4), path, Label(4))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, size)
    assert path.read_bytes() == before
    assert [own.name for own in path.parent.iterdir()] == [path.name]


def test_a_disk_that_returns_something_else_is_noticed_before_the_name_is_given(tmp_path, monkeypatch):
    path = save(tmp_path, 4)
    real = os.fsync

    def corrupting(descriptor: int) -> None:
        real(descriptor)
        part = part_of(path)
        if part.exists():
            DAMAGES["a bit in the tensors"](part)

    monkeypatch.setattr(files.os, "fsync", corrupting)
    with pytest.raises(OSError, match="what was read back is not what was written"):
        write_checkpoint(state(5), path, Label(5))
    assert_whole(path, 4)
    assert not part_of(path).exists()


def save_then_die(monkeypatch, after: int | None = None) -> None:
    """Kill the process once so many bytes of a checkpoint are written, or (None) all that torch writes."""
    real = torch.save

    def save(content, file):
        real(content, file if after is None else DyingFile(file, after))
        file.flush()
        die()

    monkeypatch.setattr(files.torch, "save", save)


KILLS = {
    "before a byte is written": lambda patch: patch.setattr(files.torch, "save", die),
    "after the first bytes": lambda patch: save_then_die(patch, 1),
    "in the tensors": lambda patch: save_then_die(patch, 150_000),
    "before the label": save_then_die,
    "before it is on the disk": lambda patch: patch.setattr(files.os, "fsync", die),
    "before it is read back": lambda patch: patch.setattr(files, "read_checkpoint", die),
    "before it gets its name": lambda patch: patch.setattr(Path, "replace", die),
    "before its name is on the disk": lambda patch: patch.setattr(whole_files, "sync", die),
}


@pytest.mark.parametrize("overwrites", [False, True])
@pytest.mark.parametrize("name", KILLS)
def test_a_process_killed_while_it_saves(tmp_path, monkeypatch, name, overwrites):
    """There is the older state, or the new one, or none; never something in between."""
    path = tmp_path / "step-00000004.ckpt"
    if overwrites:
        write_checkpoint(state(3), path, Label(3))

    def saving() -> None:
        with monkeypatch.context() as patch:
            KILLS[name](patch)
            write_checkpoint(state(4), path, Label(4))

    assert in_a_child(saving) == 9
    if name == "before its name is on the disk":
        assert_whole(path, 4)
    elif overwrites:
        assert_whole(path, 3)
    else:
        assert not path.exists()
    assert {own.name for own in tmp_path.iterdir()} <= {path.name, part_of(path).name}
