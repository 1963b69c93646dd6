"""A vLLM that is installed, and fails as it is imported."""

import sys
import time

import pytest

from asymgrpo_app.cli import main
from asymgrpo_app.errors import UserError
from asymgrpo_app.rollout import vllm_engine
from asymgrpo_app.runtime.vllm_import import ImportTrial
from tests.support.refusals import refusal
from tests.support.scripted_engine import command

WHAT_TO_DO = (
    ": install it again for this machine's Python, torch and CUDA, or set rollout.sampler: transformers, which is slow."
)
CUDA = "ImportError: libcudart.so.13: cannot open shared object file"
BROKEN = {
    "raise ImportError('libcudart.so.13: cannot open shared object file\\nmore')": CUDA,
    "raise OSError('libtorch.so: undefined symbol: _ZN3c10')": "OSError: libtorch.so: undefined symbol: _ZN3c10",
    "import torch_of_another_release": "ModuleNotFoundError: No module named 'torch_of_another_release'",
    "def __getattr__(name):\n    raise AttributeError('module torch has no attribute x')": (
        "AttributeError: module torch has no attribute x"
    ),
    "raise RuntimeError": "RuntimeError",
    "import sys; sys.exit('no device')": "SystemExit: no device",
    "import os; os.kill(os.getpid(), 11)": "the process was ended by SIGSEGV",
    "import os; os._exit(3)": "exit code 3",
}


@pytest.fixture
def install(tmp_path, monkeypatch):
    """Put a module of the name vllm where new processes find it first."""

    def put(code: str) -> None:
        (tmp_path / "vllm.py").write_text(code)
        monkeypatch.setenv("PYTHONPATH", str(tmp_path))
        monkeypatch.setattr("asymgrpo_app.runtime.vllm_import.find_spec", lambda name: object())

    return put


@pytest.mark.parametrize("code", BROKEN)
def test_the_first_line_of_the_cause_is_told(code, install):
    install(code)
    with pytest.raises(UserError) as raised:
        ImportTrial().finish()
    assert str(raised.value) == f"vLLM is installed, but it cannot be imported ({BROKEN[code]}){WHAT_TO_DO}"


def test_one_that_can_be_imported(install):
    install("print('noise')\nLLM = 1")
    ImportTrial().finish()


def test_a_file_in_the_working_directory_is_not_it(install, tmp_path, monkeypatch):
    install("LLM = 1")
    (tmp_path / "here").mkdir()
    (tmp_path / "here/vllm.py").write_text("raise ImportError('of the working directory')")
    monkeypatch.chdir(tmp_path / "here")
    ImportTrial().finish()


def test_one_that_is_not_installed(monkeypatch):
    monkeypatch.setattr("asymgrpo_app.runtime.vllm_import.find_spec", lambda name: None)
    trial = ImportTrial()
    trial.finish()
    trial.end()


def test_it_is_ended_where_nobody_waits_for_it(install):
    install("import time; time.sleep(600)")
    trial, began = ImportTrial(), time.monotonic()
    trial.end()
    trial.end()
    assert time.monotonic() - began < 5


@pytest.mark.parametrize("sampler", ["vllm", "auto"])
def test_check_says_so(sampler, install, tmp_path, monkeypatch, capsys):
    install("raise ImportError('no CUDA')")
    monkeypatch.setattr("asymgrpo_app.rollout.vllm_engine.find_spec", lambda name: object())
    monkeypatch.setattr("asymgrpo_app.rollout.samplers.find_spec", lambda name: object())
    arguments = ["check", *command(tmp_path)[1:], f"--rollout.sampler={sampler}"]
    assert main(arguments) == 2
    assert capsys.readouterr().err == (
        f"asymgrpo: error: vLLM is installed, but it cannot be imported (ImportError: no CUDA){WHAT_TO_DO}\n"
    )


def test_check_does_not_mind_where_another_sampler_is_chosen(install, tmp_path, capsys):
    install("raise ImportError('no CUDA')")
    assert main(["check", *command(tmp_path)[1:], "--rollout.sampler=transformers"]) == 0
    assert capsys.readouterr().out.endswith("Nothing stands in the way of this run.\n")


def test_fit_says_so_before_a_model_is_loaded_and_leaves_the_folder_free(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr("asymgrpo_app.callbacks.rollout.import_vllm", vllm_engine.import_vllm)
    monkeypatch.setattr("asymgrpo_app.rollout.vllm_engine.find_spec", lambda name: object())
    monkeypatch.setitem(sys.modules, "vllm", None)
    loaded = []
    monkeypatch.setattr("asymgrpo_app.update.policy_module.load_policy", lambda *given: loaded.append(given))
    sentence = refusal([*command(tmp_path), "--rollout.sampler=vllm"], capsys)
    assert sentence == (
        "asymgrpo: error: vLLM is installed, but it cannot be imported (ModuleNotFoundError: import of vllm halted; "
        f"None in sys.modules){WHAT_TO_DO}"
    )
    assert loaded == []
    assert not (tmp_path / "run/config.yaml").exists()
