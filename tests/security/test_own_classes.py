"""The working directory is a place for imports only if the config names a module in it."""

import os
import subprocess
import sys
from importlib.machinery import EXTENSION_SUFFIXES
from pathlib import Path

import pytest

from asymgrpo_app.cli.own_classes import find_own_classes
from tests.support.paths import REPOSITORY

# Packages that are not installed here and that libraries look for, by name alone.
OPTIONAL = (
    "soundfile",
    "torch_xla",
    "mpi4py",
    "cupy",
    "deepspeed",
    "wandb",
    "sitecustomize",
    "apex",
    "habana_frameworks",
)


@pytest.fixture
def folder(tmp_path, monkeypatch) -> Path:
    """A working directory with modules; whatever a test adds to `sys.path` goes again."""
    (tmp_path / "mine.py").write_text("class Mine:\n    pass\n")
    (tmp_path / "parts").mkdir()
    (tmp_path / "parts/inner.py").write_text("")
    (tmp_path / "package").mkdir()
    (tmp_path / "package/__init__.py").write_text("")
    (tmp_path / "named.yaml").write_text("model:\n  advantage:\n    class_path: mine.Mine\n")
    text = (tmp_path / "named.yaml").read_text()
    (tmp_path / "runs/lr=1e-6, a b").mkdir(parents=True)
    for name in ("runs/lr=1e-6, a b/named.yaml", "NAMED.YAML", "named.json", "runs/inner one.yml"):
        (tmp_path / name).write_text(text)
    (tmp_path / "runs/beside.yml").write_text("model: inner one.yml\n")
    (tmp_path / f"compiled{EXTENSION_SUFFIXES[0]}").touch()
    (tmp_path / "outer.yaml").write_text("model: named.yaml\n")
    (tmp_path / "other.yaml").write_text("model: {policy: ./models/mine, max_grad_norm: 1.0}\n# see mine\n")
    (tmp_path / "loop.yaml").write_text("model: loop.yaml\n")
    os.mkfifo(tmp_path / "pipe.yaml")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [path for path in sys.path if path])
    return tmp_path


@pytest.mark.parametrize(
    ("arguments", "found"),
    [
        (["--model.advantage=mine.Mine"], True),
        (["--model.advantage", "mine.Mine"], True),
        (["--data.train=parts.inner.Source"], True),
        (["--data.train=package.Source"], True),
        (["--config", "named.yaml"], True),
        (["--config=named.yaml"], True),
        (["-c", "outer.yaml"], True),
        (["--data.validation={a: {source: mine.Mine}}"], True),
        (["--config", "runs/lr=1e-6, a b/named.yaml"], True),
        (["--config=runs/lr=1e-6, a b/named.yaml"], True),
        (["--config=runs/beside.yml"], True),
        (["--config=NAMED.YAML"], True),
        (["--config=named.json"], True),
        (["--model.advantage=compiled.Mine"], True),
        ([], False),
        (["--config", "other.yaml"], False),
        (["--config", "loop.yaml", "--config=missing.yaml", "--config=pipe.yaml"], False),
        (["--data.train=asymgrpo_app.prompts.countdown.Countdown"], False),
        (["--mine.Mine=1"], False),
        (["--run_dir=runs/mine.Mine"], False),
        (["--model.policy=./mine.Mine"], False),
        (["--model.advantage=soundfile.X"], False),
    ],
)
def test_the_working_directory_is_searched_if_a_module_in_it_is_named(arguments, found, folder):
    before = list(sys.path)
    find_own_classes(arguments)
    find_own_classes(arguments)
    assert sys.path == before + [str(folder)] * found


def test_a_folder_with_the_names_of_optional_packages_runs_none_of_them(tmp_path):
    for name in OPTIONAL:
        (tmp_path / f"{name}.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'a').write({name!r})\n")
    command = [
        sys.executable,
        "-P",
        "-m",
        "asymgrpo_app",
        "check",
        "--config",
        str(REPOSITORY / "configs/quickstart.yaml"),
    ]
    policy = f"--model.policy={REPOSITORY / 'data/countdown_base'}"
    environment = os.environ | {"PYTHONPATH": str(REPOSITORY)}
    done = subprocess.run(
        [*command, policy], cwd=tmp_path, env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert "Nothing stands in the way" in done.stdout
    assert not (tmp_path / "ran").exists()


def test_processes_that_libraries_start_do_not_import_from_the_working_directory(tmp_path):
    (tmp_path / "json.py").write_text("raise SystemExit(7)\n")
    start = "subprocess.call([sys.executable, '-c', 'import json'])"
    bare = f"import subprocess, sys; raise SystemExit({start})"
    console = (
        f"import subprocess, sys; from asymgrpo_app.cli import command\n"
        f"command.main = lambda: {start}; command.entry_point()"
    )
    environment = {key: value for key, value in os.environ.items() if key != "PYTHONSAFEPATH"}
    environment["PYTHONPATH"] = str(REPOSITORY)
    for parent, expected in ((bare, 7), (console, 0)):
        command = [sys.executable, "-P", "-c", parent]
        assert subprocess.run(command, cwd=tmp_path, env=environment, check=False).returncode == expected
