"""The command itself."""

import subprocess
import sys

import pytest

from asymgrpo_app import __version__
from asymgrpo_app.cli import main


@pytest.mark.parametrize("arguments", [["--help"], ["fit", "--help"], ["validate", "--help"]])
def test_help_answers_without_importing_vllm(arguments):
    code = (
        "import sys\nfrom asymgrpo_app.cli import main\n"
        f"try:\n    main({arguments})\nexcept SystemExit as stop:\n    assert stop.code == 0\n"
        "assert 'vllm' not in sys.modules"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    assert "usage: asymgrpo" in done.stdout
    if arguments[0] == "fit":
        for key in ("--steps", "--run_dir", "--rollout.group_size", "--data.prompts_per_step", "--model.policy"):
            assert key in done.stdout


def test_version(capsys):
    assert main(["--version"]) == 0
    assert capsys.readouterr().out == f"asymgrpo {__version__}\n"


def test_module_runs_as_the_command():
    done = subprocess.run(
        [sys.executable, "-m", "asymgrpo_app", "--version"], capture_output=True, text=True, timeout=60
    )
    assert (done.returncode, done.stdout) == (0, f"asymgrpo {__version__}\n")
