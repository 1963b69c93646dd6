"""Shell scripts and the Dockerfile under their linters, and what an image would hold."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.launch_commands import REPOSITORY
from tools import dockerfile_in_root
from tools.dockerfile_in_root import BuildError, Instruction, Root, State, carry_out, context_files, stage

BIN = Path(sys.executable).parent
SHELL = [
    path
    for folder in ("launch", "tools", ".ci")
    for path in sorted((REPOSITORY / folder).rglob("*"))
    if "__pycache__" not in path.parts and path.is_file() and path.read_bytes().startswith(b"#!/usr/bin/env bash")
]
ROW = "fields:*:1000:1000::/nonexistent:/bin/sh"


def test_scripts_pass_shellcheck():
    assert {path.name for path in SHELL} >= {"torchrun.sh", "process.sh", "slurm.sbatch", "setup_venv.sh", "run"}
    done = subprocess.run([BIN / "shellcheck", *SHELL], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (0, "")


def test_the_dockerfile_passes_hadolint():
    done = subprocess.run([BIN / "hadolint", REPOSITORY / "Dockerfile"], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (0, "")


@pytest.mark.parametrize("target", ["cpu", "gpu"])
def test_an_image_is_pinned_and_not_run_by_root(target):
    base, instructions = stage(REPOSITORY / "Dockerfile", target)
    assert re.fullmatch(r"python:3\.11\.\d+-slim-\w+", base)
    assert [step.value for step in instructions if step.name == "USER"] == ["1000:1000"]
    assert any(step.value == f"tools/setup_venv.sh {target}" for step in instructions)
    last = [step for step in instructions if step.name == "RUN"][-1]
    assert "asymgrpo --version" in last.value
    assert "import asymgrpo_app.cli.run, vllm" in last.value


def test_the_build_context_is_what_runs_and_no_more():
    files = context_files(REPOSITORY)
    tops = {name.partition("/")[0] for name in files}
    assert tops == {
        *("asymgrpo_app", "configs", "data", "launch", "requirements", "tools"),
        *("pyproject.toml", "README.md", "LICENSE"),
    }
    assert {"requirements/cpu.lock", "requirements/gpu.lock", "tools/setup_venv.sh"} <= set(files)
    assert not [name for name in files if "__pycache__" in name]


@pytest.fixture
def image(tmp_path) -> Root:
    """A root with one user and no system: enough for COPY."""
    root = tmp_path / "root"
    (root / "etc").mkdir(parents=True)
    (root / "etc/passwd").write_text(f"{ROW}\n")
    return Root(root, [], [], tmp_path / "log")


@pytest.fixture
def context(tmp_path) -> Path:
    folder = tmp_path / "context"
    for name in ("a.txt", "b.txt", "kept/one.py", "kept/deep/two.py", "kept/__pycache__/one.pyc", "left/three.py"):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(name)
    (folder / ".dockerignore").write_text("# all but\n*\n!*.txt\n!kept\n**/__pycache__\n")
    return folder


@pytest.mark.parametrize(
    ("value", "files"),
    [
        ("a.txt new.txt", ["app/new.txt"]),
        ("a.txt folder/", ["app/folder/a.txt"]),
        ("a.txt b.txt ./", ["app/a.txt", "app/b.txt"]),
        ("kept elsewhere", ["app/elsewhere/deep/two.py", "app/elsewhere/one.py"]),
        (". .", ["app/a.txt", "app/b.txt", "app/kept/deep/two.py", "app/kept/one.py"]),
        ("kept /${PLACE}/", ["srv/deep/two.py", "srv/one.py"]),
    ],
)
def test_copy_puts_files_where_an_engine_does(value, files, image, context, monkeypatch):
    owned: dict[str, int] = {}
    monkeypatch.setattr(dockerfile_in_root.os, "chown", lambda path, user, group: owned.update({str(path): user}))
    state = State(env={"PLACE": "srv"})
    carry_out(Instruction("WORKDIR", "/app", 1), state, image, context)
    carry_out(Instruction("COPY", f"--chown=1000:1000 {value}", 2), state, image, context)
    found = sorted(str(path.relative_to(image.folder)) for path in image.folder.rglob("*") if path.is_file())
    assert [name for name in found if name != "etc/passwd"] == files
    assert {str(image.folder / name) for name in files} <= owned.keys()
    assert set(owned.values()) == {1000}


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("COPY", "--chown=1000:1000 left .", "it is not there, or .dockerignore keeps it out"),
        ("COPY", "--from=other a.txt .", "is not known here"),
        ("COPY", "--chown=nobody a.txt .", "There is no user 'nobody'"),
        ("VOLUME", "/runs", "Line 7: VOLUME is not known here"),
    ],
)
def test_what_cannot_be_carried_out_ends_the_build(name, value, message, image, context):
    with pytest.raises(BuildError, match=re.escape(message)):
        carry_out(Instruction(name, value, 7), State(), image, context)


def test_variables_build_on_those_before_them():
    state = State()
    for step in stage(REPOSITORY / "Dockerfile", "cpu")[1]:
        if step.name in ("ENV", "ENTRYPOINT", "CMD"):
            carry_out(step, state, None, REPOSITORY)
    assert state.env["PATH"].split(":")[:2] == ["/app/.venv/bin", "/usr/local/sbin"]
    assert [*state.entrypoint, *state.command][:4] == ["asymgrpo", "fit", "--config", "configs/quickstart.yaml"]
