"""Who may write to a run's folder, and the configs in it."""

import os
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from asymgrpo_app.checkpoints import run_folder
from asymgrpo_app.checkpoints.folder import sweep
from asymgrpo_app.checkpoints.run_folder import claimed, is_used, record_config, refuse_unusable, write_atomically
from asymgrpo_app.errors import UserError
from tests.support.checkpoint_files import die, in_a_child

NOBODY = 65534


@pytest.fixture
def read_only() -> Iterator[Path]:
    """A folder that this process cannot write to; a privileged process becomes another user for the test."""
    with tempfile.TemporaryDirectory(prefix="asymgrpo-test-") as name:
        folder = Path(name)
        folder.chmod(0o555)
        user = os.geteuid()
        if user == 0:
            os.seteuid(NOBODY)
        try:
            yield folder
        finally:
            os.seteuid(user)
            folder.chmod(0o755)


def test_a_folder_without_permission_is_refused_by_both_looks(read_only):
    for folder in (read_only, read_only / "run", read_only / "deep/run"):
        with pytest.raises(
            UserError, match=f"run_dir {folder} cannot be written: no permission to write in {read_only}"
        ):
            refuse_unusable(folder)
        with pytest.raises(UserError, match=f"run_dir {folder} cannot be written: permission denied"), claimed(folder):
            pass
    assert list(read_only.iterdir()) == []


def test_a_folder_that_cannot_be_looked_into_is_refused(read_only):
    privileged = os.geteuid()
    os.seteuid(os.getuid())
    read_only.chmod(0o000)
    os.seteuid(privileged)
    with pytest.raises(UserError, match=r"cannot be used: Permission denied|no permission to write"):
        refuse_unusable(read_only / "run")


def test_a_claim_leaves_nothing_behind_and_ends_with_its_process(tmp_path):
    run = tmp_path / "deep/run"
    mark = tmp_path / "claimed"

    def claiming() -> None:
        with claimed(run):
            mark.touch()
            time.sleep(30)

    child = os.fork()
    if child == 0:
        claiming()
        os._exit(1)
    while not mark.exists():
        time.sleep(0.01)
    with pytest.raises(UserError, match="is in use, another process trains in it"), claimed(run):
        pass
    os.kill(child, 9)
    os.waitpid(child, 0)
    with claimed(run):
        pass
    assert list(run.iterdir()) == []


def configs(run: Path) -> dict[str, str]:
    return {path.name: path.read_text() for path in sorted(run.iterdir())}


def test_a_config_is_written_down_once_and_again_when_it_changes(tmp_path):
    first, same, longer = "steps: 2\n", "steps: 2\nckpt_path: a.ckpt\n", "steps: 4\nckpt_path: a.ckpt\n"
    for text in (first, same, longer, longer.replace("a.ckpt", "b.ckpt"), same):
        record_config(tmp_path, text)
    assert configs(tmp_path) == {"config.resumed-1.yaml": longer, "config.resumed-2.yaml": same, "config.yaml": first}


def test_a_config_that_cannot_be_read_is_no_hindrance(tmp_path):
    (tmp_path / "config.yaml").write_text("steps: [")
    record_config(tmp_path, "steps: 2\n")
    assert configs(tmp_path) == {"config.resumed-1.yaml": "steps: 2\n", "config.yaml": "steps: ["}


@pytest.mark.parametrize("moment", ["fsync", "replace"])
def test_a_process_killed_while_it_writes_a_config(tmp_path, monkeypatch, moment):
    def writing() -> None:
        with monkeypatch.context() as patch:
            patch.setattr(*{"fsync": (run_folder.os, "fsync"), "replace": (Path, "replace")}[moment], die)
            write_atomically(tmp_path / "config.yaml", "steps: 2\n")

    assert in_a_child(writing) == 9
    assert list(configs(tmp_path)) == [".config.yaml.part"]
    sweep(tmp_path)
    assert configs(tmp_path) == {}


@pytest.mark.parametrize(
    ("content", "used"),
    [(None, False), ("tensorboard", False), ("config.yaml", True), ("checkpoints", True), ("export", True)],
)
def test_what_makes_a_folder_used(content, used, tmp_path):
    if content is not None:
        (tmp_path / content).mkdir()
    assert is_used(tmp_path) is used
    assert not is_used(tmp_path / "not there")
