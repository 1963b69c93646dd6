"""Shell scripts and the Dockerfile under their linters, and what an image would hold."""

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest
from docker.utils.build import exclude_paths
from dockerfile_parse import DockerfileParser

from tests.support.launch_commands import REPOSITORY

BIN = Path(sys.executable).parent
SHELL = [
    path
    for folder in ("launch", "tools", ".ci")
    for path in sorted((REPOSITORY / folder).rglob("*"))
    if "__pycache__" not in path.parts and path.is_file() and path.read_bytes().startswith(b"#!/usr/bin/env bash")
]


def test_scripts_pass_shellcheck():
    assert {path.name for path in SHELL} >= {"torchrun.sh", "process.sh", "slurm.sbatch", "setup_venv.sh", "run"}
    done = subprocess.run([BIN / "shellcheck", *SHELL], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (0, "")


def test_the_dockerfile_passes_hadolint():
    done = subprocess.run([BIN / "hadolint", REPOSITORY / "Dockerfile"], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (0, "")


def stages() -> dict[str, list[tuple[str, str]]]:
    """Instructions of each target of the Dockerfile, those of the target it begins with first."""
    found: dict[str, list[tuple[str, str]]] = {}
    for entry in DockerfileParser(path=str(REPOSITORY / "Dockerfile"), cache_content=True).structure:
        if entry["instruction"] == "FROM":
            base, _, target = entry["value"].partition(" AS ")
            found[target] = list(found.get(base, []))
        elif found and entry["instruction"] != "COMMENT":
            found[target].append((entry["instruction"], entry["value"]))
    return found


@pytest.mark.parametrize("target", ["cpu", "gpu"])
def test_an_image_is_pinned_and_not_run_by_root(target):
    text = (REPOSITORY / "Dockerfile").read_text()
    assert re.search(r"^ARG PYTHON_IMAGE=python:3\.11\.\d+-slim-\w+@sha256:[0-9a-f]{64}$", text, re.MULTILINE)
    instructions = stages()[target]
    assert [value for name, value in instructions if name == "USER"] == ["1000:1000"]
    runs = [value for name, value in instructions if name == "RUN"]
    assert f"tools/setup_venv.sh {target}" in runs
    assert "asymgrpo --version" in runs[-1]
    assert "import asymgrpo_app.cli.run, vllm" in runs[-1]
    (entry,) = (value for name, value in instructions if name == "ENTRYPOINT")
    assert json.loads(entry) == ["asymgrpo"]


def test_what_the_version_is_read_from_is_there_before_the_environment_is_made():
    instructions = stages()["cpu"]
    before = instructions[: instructions.index(("RUN", "tools/setup_venv.sh cpu"))]
    copied = {name for kind, value in before if kind == "COPY" for name in value.split()[1:-1]}
    assert {"pyproject.toml", "README.md", "LICENSE", "asymgrpo_app/__init__.py", "asymgrpo_app/version.py"} <= copied


def test_the_build_context_is_what_runs_and_no_more():
    lines = (REPOSITORY / ".dockerignore").read_text().splitlines()
    patterns = [line.strip() for line in lines if line.strip() and not line.startswith("#")]
    found = exclude_paths(str(REPOSITORY), patterns) - {"Dockerfile", ".dockerignore"}  # these go to the builder
    files = {name for name in found if not (REPOSITORY / name).is_dir()}
    assert {name.partition("/")[0] for name in files} == {
        *("asymgrpo_app", "configs", "data", "launch", "requirements", "tools"),
        *("pyproject.toml", "README.md", "LICENSE"),
    }
    assert {"requirements/cpu.lock", "requirements/gpu.lock", "tools/setup_venv.sh"} <= files
    assert not [name for name in files if "__pycache__" in name]
