"""The command itself."""

import json
import subprocess
import sys

from asymgrpo_app import __version__
from asymgrpo_app.cli import main

_HELP = """
import contextlib, io, json, sys
from asymgrpo_app.cli import main
pages = {}
for words in ("fit --help", "validate --help", "check --help", "fit --model.policy=x --print_config", "fit --gamma=1"):
    out = io.StringIO()
    with contextlib.redirect_stdout(out):
        try:
            main(words.split())
        except SystemExit as stop:
            pages[words] = stop.code, out.getvalue()
print(json.dumps([pages, [name for name in ("vllm", "transformers", "peft", "datasets") if name in sys.modules]]))
"""


def test_a_key_is_read_without_importing_what_a_run_needs():
    done = subprocess.run([sys.executable, "-c", _HELP], capture_output=True, text=True, timeout=120, check=True)
    pages, imported = json.loads(done.stdout)
    assert imported == []
    assert "prompts_per_step: " in pages.pop("fit --model.policy=x --print_config")[1]
    assert {code for code, _ in pages.values()} == {0}
    assert all("usage: asymgrpo" in page for _, page in pages.values())
    for key in ("--steps", "--run_dir", "--rollout.group_size", "--data.prompts_per_step", "--model.policy"):
        assert key in pages["fit --help"][1]
    assert pages["check --help"] == pages["fit --help"]
    assert "--output" in pages["validate --help"][1]


def test_version(capsys):
    assert main(["--version"]) == 0
    assert capsys.readouterr().out == f"asymgrpo {__version__}\n"


def test_module_runs_as_the_command():
    done = subprocess.run(
        [sys.executable, "-m", "asymgrpo_app", "--version"], capture_output=True, text=True, timeout=60
    )
    assert (done.returncode, done.stdout) == (0, f"asymgrpo {__version__}\n")
