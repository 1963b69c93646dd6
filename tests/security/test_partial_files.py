"""Files that are being written have names that anybody can tell: what lies there is never written through."""

import errno
import os
import subprocess
import sys
from pathlib import Path

import pytest

from asymgrpo_app.checkpoints.files import Label, read_checkpoint, write_checkpoint
from asymgrpo_app.checkpoints.run_folder import write_atomically
from asymgrpo_app.errors import RunError
from asymgrpo_app.evaluation.files import whole_file, write_record
from asymgrpo_app.evaluation.results import EvaluationRun
from asymgrpo_app.runtime.whole_files import part_of, whole_folder, written_whole
from tests.support.checkpoint_files import state


def _plain(path: Path) -> None:
    with whole_file(path) as file:
        file.write(b"new")


WRITERS = {
    "checkpoint": lambda path: write_checkpoint(state(1, 4), path, Label(1)),
    "config": lambda path: write_atomically(path, "steps: 1\n"),
    "results": lambda path: write_record(path, EvaluationRun("model", None, 0)),
    "verdicts": _plain,
}


def _link(part: Path, victim: Path) -> None:
    part.symlink_to(victim)


OBSTACLES = {
    "a link to a file": _link,
    "a link to nothing": lambda part, victim: part.symlink_to(victim.with_name("nothing")),
    "a link to a folder": lambda part, victim: part.symlink_to(victim.parent),
    "a hard link": lambda part, victim: part.hardlink_to(victim),
    "a pipe": lambda part, victim: os.mkfifo(part),
    "what a killed process left": lambda part, victim: part.write_bytes(bytes(10_000)),
}


@pytest.mark.parametrize("obstacle", OBSTACLES)
@pytest.mark.parametrize("writer", WRITERS)
def test_what_lies_in_the_place_of_a_partial_file_is_not_written_through(tmp_path, writer, obstacle):
    victim = tmp_path / "elsewhere/victim"
    victim.parent.mkdir()
    victim.write_text("mine")
    path = tmp_path / "run/file"
    path.parent.mkdir()
    OBSTACLES[obstacle](part_of(path), victim)
    WRITERS[writer](path)
    assert [own.name for own in victim.parent.iterdir()] == ["victim"]
    assert victim.read_text() == "mine"
    assert [own.name for own in path.parent.iterdir()] == ["file"]
    assert path.is_file()
    assert not path.is_symlink()
    if writer == "checkpoint":
        assert read_checkpoint(path)["asymgrpo"]["completed_steps"] == 1


def test_a_link_in_the_place_of_the_file_is_replaced(tmp_path):
    victim, path = tmp_path / "victim", tmp_path / "file"
    victim.write_text("mine")
    path.symlink_to(victim)
    write_atomically(path, "new")
    assert victim.read_text() == "mine"
    assert (path.read_text(), path.is_symlink()) == ("new", False)


def test_a_link_that_comes_just_before_the_file_is_made_is_not_followed(tmp_path, monkeypatch):
    victim, path = tmp_path / "victim", tmp_path / "file"
    victim.write_text("mine")
    real = Path.unlink

    def unlink(own: Path, missing_ok: bool = False) -> None:
        real(own, missing_ok)
        if own == part_of(path) and not own.is_symlink():
            own.symlink_to(victim)

    with monkeypatch.context() as patch:
        patch.setattr(Path, "unlink", unlink)
        with pytest.raises(FileExistsError), written_whole(path):
            pass
    assert victim.read_text() == "mine"
    assert not path.exists()


def test_a_folder_in_the_place_of_a_partial_file_is_left(tmp_path):
    path = tmp_path / "file"
    part_of(path).mkdir()
    with pytest.raises(RunError, match="cannot be written: Is a directory"), whole_file(path):
        pass
    assert part_of(path).is_dir()


def test_the_second_who_writes_a_file_is_told_and_the_first_goes_on(tmp_path):
    path = tmp_path / "out.jsonl"
    imports = "import sys; from pathlib import Path; from tests.security.test_partial_files import _plain"
    with whole_file(path) as file:
        file.write(b"first")
        command = [sys.executable, "-c", f"{imports}; _plain(Path(sys.argv[1]))", str(path)]
        second = subprocess.run(command, capture_output=True, text=True, check=False)
        refusal = f"RunError: {path} cannot be written: another process is writing it."
        assert second.stderr.splitlines()[-1].endswith(refusal)
        with pytest.raises(OSError, match="another process is writing it") as refused, written_whole(path):
            pass
        assert refused.value.errno == errno.EBUSY
        file.write(b", and more")
    assert path.read_bytes() == b"first, and more"
    assert [own.name for own in tmp_path.iterdir()] == ["out.jsonl"]


@pytest.mark.parametrize("obstacle", ["folder", "link"])
def test_a_folder_is_written_anew_beside_links_and_leftovers(tmp_path, obstacle):
    victim, path = tmp_path / "victim", tmp_path / "run/export"
    victim.mkdir()
    (victim / "README.md").write_text("mine")
    for place in (path, part_of(path)):
        if obstacle == "link":
            place.parent.mkdir(exist_ok=True)
            place.symlink_to(victim)
        else:
            place.mkdir(parents=True)
            (place / "README.md").symlink_to(victim / "README.md")
    with whole_folder(path) as part:
        (part / "README.md").write_text("new")
    assert (victim / "README.md").read_text() == "mine"
    assert [
        str(own.relative_to(tmp_path)) for own in sorted(tmp_path.rglob("*")) if not own.is_relative_to(victim)
    ] == [
        "run",
        "run/export",
        "run/export/README.md",
    ]
    assert (path / "README.md").read_text() == "new"


def test_what_a_user_put_into_an_export_stays_and_older_weights_do_not(tmp_path):
    for name in ("README.md", "notes.txt", "model-00002-of-00002.safetensors"):
        (tmp_path / name).write_text("old")
    with whole_folder(tmp_path) as part:
        (part / "README.md").write_text("new")
    assert {file.name: file.read_text() for file in tmp_path.iterdir()} == {"README.md": "new", "notes.txt": "old"}


def test_a_folder_that_could_not_be_written_leaves_the_older_one(tmp_path):
    path = tmp_path / "export"
    (path / "old").mkdir(parents=True)

    def failing() -> None:
        with whole_folder(path) as part:
            (part / "new").touch()
            raise OSError("full")

    with pytest.raises(OSError, match="full"):
        failing()
    assert [own.name for own in tmp_path.rglob("*")] == ["export", "old"]
