"""Checkpoints of strangers: what they name is not removed, what they hold is not run, what is wrong is a sentence."""

import os
import pickle
import shutil
import zipfile
from pathlib import Path

import psutil
import pytest
import torch
from torch.distributed.checkpoint.filesystem import FileSystemWriter
from torch.distributed.checkpoint.metadata import MetadataIndex
from torch.distributed.checkpoint.state_dict_saver import save as save_shards

from asymgrpo_app.callbacks.checkpoint import RunCheckpoint
from asymgrpo_app.checkpoints.files import (
    DamagedCheckpointError,
    Label,
    Shards,
    digest_of,
    read_label,
    write_checkpoint,
)
from asymgrpo_app.checkpoints.folder import check_whole, checkpoint_folder, newest_whole, set_aside, sweep
from asymgrpo_app.checkpoints.shards import read_whole, remove_checkpoint
from asymgrpo_app.cli import main
from asymgrpo_app.errors import UserError
from tests.support.checkpoint_files import save, state
from tests.support.crafted_archives import (
    FILES,
    FOLDERS,
    LABELS,
    MARK,
    PICKLES,
    label,
    saved,
    sealed,
    whole,
    with_pickle,
)
from tests.support.paths import POLICY, QUICKSTART


def everything(folder: Path) -> dict[str, bytes | None]:
    return {str(own): own.read_bytes() if own.is_file() else None for own in sorted(folder.rglob("*"))}


def _surroundings(tmp_path: Path) -> Path:
    """A run with shards of several checkpoints, and other things; its folder of checkpoints."""
    folder = tmp_path / "run/checkpoints"
    for name in ("other", "step-00000001.shards", "step-00000002.shards", "step-00000002.shards-2", "checkpoints"):
        (folder / name).mkdir(parents=True)
        (folder / name / ".metadata").write_bytes(b"")
        (folder / name / "kept").touch()
    (tmp_path / "run/config.yaml").write_text("steps: 1\n")
    return folder


def _label_of(folder: str, files: list[str]) -> dict[str, object]:
    return label(shards={"folder": folder, "files": {name: [0, "99aa06d3014798d86001c324468d497f"] for name in files}})


# ---- what a label may name ----


@pytest.mark.parametrize("name", FOLDERS, ids=ascii)
def test_a_sealed_label_has_nothing_removed_but_its_own_folder(tmp_path, name):
    folder = _surroundings(tmp_path)
    crafted = sealed(folder / "step-00000001.ckpt", whole(), _label_of(name, [".metadata"]))
    before = everything(tmp_path)
    remove_checkpoint(crafted)
    after = everything(tmp_path)
    assert before.keys() - after.keys() == {str(crafted)}
    assert {own: before[own] for own in after} == after


@pytest.mark.parametrize("name", FOLDERS, ids=ascii)
def test_resuming_and_keeping_one_leaves_everything_else(tmp_path, name):
    """What a resume does with a run's folder: choose, tidy up, set aside, and prune after the next save."""
    run = _surroundings(tmp_path).parent
    sealed(checkpoint_folder(run) / "step-00000001.ckpt", whole(), _label_of(name, [".metadata"]))
    save(run, 3)
    before = everything(tmp_path)
    newest, skipped = newest_whole(run)
    assert (newest.name, skipped) == ("step-00000003.ckpt", [])
    sweep(run)
    set_aside(run, after=3)
    save(run, 4)
    RunCheckpoint(keep=1)._prune(str(run))
    gone = before.keys() - everything(tmp_path).keys()
    assert gone == {str(checkpoint_folder(run) / "step-00000003.ckpt")}  # the crafted one is no checkpoint


@pytest.mark.parametrize("name", FILES, ids=ascii)
def test_a_sealed_label_names_files_of_shards_alone(tmp_path, name):
    folder = _surroundings(tmp_path)
    crafted = sealed(folder / "step-00000001.ckpt", whole(), _label_of("step-00000001.shards", [name]))
    with pytest.raises(DamagedCheckpointError, match="its label names files that are not its own"):
        read_label(crafted)


def test_the_shards_that_another_checkpoint_names_stay(tmp_path):
    folder = _surroundings(tmp_path)
    mine = _label_of("step-00000001.shards", [".metadata"])
    sealed(folder / "step-00000001.ckpt.abandoned", whole(), mine)
    remove_checkpoint(sealed(folder / "step-00000001.ckpt", whole(), mine))
    assert (folder / "step-00000001.shards/kept").exists()
    remove_checkpoint(folder / "step-00000001.ckpt.abandoned")
    assert not (folder / "step-00000001.shards").exists()


def test_a_label_that_is_not_verified_has_nothing_removed(tmp_path):
    folder = _surroundings(tmp_path)
    crafted = sealed(folder / "step-00000001.ckpt", whole(), _label_of("step-00000001.shards", [".metadata"]))
    crafted.write_bytes(crafted.read_bytes()[:-1] + b"?")
    remove_checkpoint(crafted)
    assert not crafted.exists()
    assert (folder / "step-00000001.shards/kept").exists()


@pytest.mark.parametrize("place", ["a folder", "a file", "nothing", "the run"])
def test_a_link_in_the_place_of_shards_is_left_alone(tmp_path, place):
    folder = _surroundings(tmp_path)
    victim = tmp_path / "victim"
    (victim / "deep").mkdir(parents=True)
    target = {"a folder": victim, "a file": tmp_path / "run/config.yaml", "nothing": tmp_path / "no", "the run": folder}
    shutil.rmtree(folder / "step-00000001.shards")
    (folder / "step-00000001.shards").symlink_to(target[place])
    (folder / "step-00000005.shards").symlink_to(victim)  # as if a killed process had left it
    mine = _label_of("step-00000001.shards", [])
    before = everything(tmp_path)
    crafted = sealed(folder / "step-00000001.ckpt", whole(), mine)
    sweep(folder.parent)
    remove_checkpoint(crafted)
    gone = before.keys() - everything(tmp_path).keys()
    assert gone <= {
        str(folder / f"step-00000002.shards{end}{of}") for end in ("", "-2") for of in ("", "/kept", "/.metadata")
    }
    assert (victim / "deep").is_dir()
    assert (folder / "step-00000001.shards").is_symlink()


def test_links_within_shards_are_not_followed(tmp_path):
    folder = _surroundings(tmp_path)
    victim = tmp_path / "victim"
    victim.mkdir()
    (victim / "mine").touch()
    (folder / "step-00000001.shards/link").symlink_to(victim)
    remove_checkpoint(sealed(folder / "step-00000001.ckpt", whole(), _label_of("step-00000001.shards", [".metadata"])))
    assert not (folder / "step-00000001.shards").exists()
    assert (victim / "mine").exists()


def test_a_pipe_among_the_checkpoints_does_not_hang(tmp_path):
    save(tmp_path, 1)

    os.mkfifo(checkpoint_folder(tmp_path) / "step-00000002.ckpt")
    newest, skipped = newest_whole(tmp_path)
    assert (newest.name, skipped) == ("step-00000001.ckpt", ["step-00000002.ckpt: it is no file"])


# ---- what is in an archive ----


@pytest.mark.parametrize("name", LABELS)
def test_a_label_of_any_content_is_refused_with_a_sentence(tmp_path, name):
    path = sealed(tmp_path / "checkpoints/step-00000001.ckpt", whole(), LABELS[name])
    with pytest.raises(UserError, match=r"not a checkpoint of asymgrpo, or damaged: (it|step).*\.$") as refused:
        check_whole(path)
    assert "\x1b" not in str(refused.value)
    assert len(str(refused.value)) < 400
    with pytest.raises(UserError, match=r"no checkpoint in .* is whole"):
        newest_whole(tmp_path)


@pytest.mark.parametrize("name", PICKLES)
def test_a_pickle_of_any_content_is_refused_with_a_sentence(tmp_path, monkeypatch, name):
    monkeypatch.chdir(tmp_path)
    path = sealed(Path("checkpoints/step-00000001.ckpt"), with_pickle(PICKLES[name]), label())
    with pytest.raises(UserError, match=r"not a checkpoint of asymgrpo, or damaged: it.*\.$") as refused:
        check_whole(path)
    assert "\x1b" not in str(refused.value)
    with pytest.raises(UserError, match=r"no checkpoint in .* is whole"):
        newest_whole(".")
    assert not Path(MARK).exists()


@pytest.mark.parametrize("method", [zipfile.ZIP_DEFLATED, zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA])
@pytest.mark.parametrize("member", ["data.pkl", "data/0"])
def test_a_compressed_archive_is_refused_before_it_is_unpacked(tmp_path, method, member):
    archive = with_pickle(PICKLES["a list"], method, **{member: bytes(2**26)})
    assert len(archive) < 2**20
    path = sealed(tmp_path / "step-00000001.ckpt", archive, label())
    before = psutil.Process().memory_info().rss
    with pytest.raises(UserError, match="it would unpack to more than its size, and no checkpoint is compressed"):
        check_whole(path)
    assert psutil.Process().memory_info().rss - before < 2**24


def test_entries_that_share_their_bytes_are_refused(tmp_path):
    archive = bytearray(with_pickle(PICKLES["a list"], more=bytes(1_000)))
    start, end = archive.rfind(b"PK\1\2"), archive.rfind(b"PK\5\6")
    entry = bytes(archive[start:end])
    archive[end:end] = entry * 50
    end += len(entry) * 50
    for place in (end + 8, end + 10):
        archive[place : place + 2] = (54).to_bytes(2, "little")
    archive[end + 12 : end + 16] = (int.from_bytes(archive[end + 12 : end + 16], "little") + 50 * len(entry)).to_bytes(
        4, "little"
    )
    path = sealed(tmp_path / "step-00000001.ckpt", bytes(archive), label())
    with pytest.raises(UserError, match="it would unpack to more than its size"):
        check_whole(path)


def test_an_archive_with_something_before_it_is_refused(tmp_path):
    """torch would take it for a file of its older format, whose storages it makes as large as they say."""
    path = sealed(tmp_path / "step-00000001.ckpt", b"x" * 64 + whole(), label())
    with pytest.raises(UserError, match="it is not laid out as torch writes it"):
        check_whole(path)


# ---- sharded ----


def _sharded(folder: Path, change) -> Path:
    """A sharded checkpoint of step 1 whose table of contents was changed, with the right digests."""
    shards = folder / "step-00000001.shards"
    save_shards({"weight/a": torch.ones(3)}, storage_writer=FileSystemWriter(shards), no_dist=True)

    table = pickle.loads((shards / ".metadata").read_bytes())  # noqa: S301
    (shards / ".metadata").write_bytes(pickle.dumps(change(table)))
    files = {own.name: (own.stat().st_size, digest_of(own, own.stat().st_size)) for own in shards.iterdir()}
    path = folder / "step-00000001.ckpt"
    content = {"asymgrpo": {"completed_steps": 1}, "optimizer_states": [], "shared_tensors": {}}
    write_checkpoint(content, path, Label(1, shards=Shards(shards.name, files)))
    return path


def _elsewhere(table):
    for stored in table.storage_data.values():
        object.__setattr__(stored, "relative_path", "../../victim")
    return table


def _compressed(table):
    for stored in table.storage_data.values():
        object.__setattr__(stored, "transform_descriptors", ["stream.zstd"])
    return table


def _large(table):
    table.state_dict_metadata["weight/a"].size = torch.Size([2**40])
    return table


def _without(table):
    table.storage_data.pop(MetadataIndex("weight/a", torch.Size([0])), None)
    table.storage_data = None
    return table


TABLES = {
    "files elsewhere": (_elsewhere, "names other files"),
    "compressed files": (_compressed, "names other files"),
    "larger tensors": (_large, "names larger tensors than its files hold"),
    "no files": (_without, "cannot be read"),
    "a list": (lambda table: [1], "is something else"),
    "a path": (lambda table: Path("x"), "is something else"),
}


@pytest.mark.parametrize("name", TABLES)
def test_a_table_of_contents_of_any_content_is_refused_with_a_sentence(tmp_path, name):
    change, reason = TABLES[name]
    path = _sharded(tmp_path, change)
    with pytest.raises(UserError, match=f"damaged: its table of contents {reason}"):
        check_whole(path)
    with pytest.raises(DamagedCheckpointError):
        read_whole(path)


def test_the_same_without_a_change_is_read(tmp_path):
    path = _sharded(tmp_path, lambda table: table)
    assert check_whole(path).step == 1
    assert torch.equal(read_whole(path)["state_dict"]["a"], torch.ones(3))


# ---- through the commands ----


COMMANDS = {
    "fit": ["fit", *QUICKSTART, "--run_dir=run", "--ckpt_path=last"],
    "validate": ["validate", *QUICKSTART, "--ckpt_path=run/checkpoints/step-00000001.ckpt"],
    "test": ["test", *QUICKSTART, "--ckpt_path=run/checkpoints/step-00000001.ckpt"],
    "predict": ["predict", *QUICKSTART, "--ckpt_path=run/checkpoints/step-00000001.ckpt"],
    "export": ["export", "--ckpt_path=run/checkpoints/step-00000001.ckpt"],
}


KINDS = [(command, kind) for command in COMMANDS for kind in ("pickle", "label")]


@pytest.mark.parametrize(
    ("command", "kind"), [*KINDS, *(("fit", f"{kind} config") for kind in ("bad", "endless", "no"))]
)
def test_every_command_refuses_it_with_a_sentence(tmp_path, monkeypatch, capsys, command, kind):
    monkeypatch.chdir(tmp_path)
    config = {"bad config": "a: [\x1b[2J", "endless config": "a: &a [*a]"}.get(kind)
    content = saved(state(1, 4) | {"asymgrpo": {"completed_steps": 1, "config": config}})
    archive = with_pickle(PICKLES["a system call"]) if kind == "pickle" else content
    own_label = LABELS["an infinite step"] if kind == "label" else label()
    sealed(Path("run/checkpoints/step-00000001.ckpt"), archive, own_label)
    Path("run/config.yaml").write_text(f"model: {{policy: {POLICY}}}\n")
    before = everything(tmp_path)
    assert main(COMMANDS[command]) == 2
    said = capsys.readouterr()
    (line,) = said.err.splitlines()
    assert line.startswith("asymgrpo: error: --ckpt_path ")
    assert "\x1b" not in said.out + said.err
    assert not Path(MARK).exists()
    assert everything(tmp_path) == before
