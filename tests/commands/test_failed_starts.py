"""A run that ends before its first step is done leaves nothing that is in the way of the next one."""

import signal
import time
from pathlib import Path

import pytest

from asymgrpo_app.callbacks import rollout
from asymgrpo_app.cli import main
from asymgrpo_app.module import AsymGRPOModule
from asymgrpo_app.rollout.engine import EngineError
from asymgrpo_app.update import policy_module
from tests.support.events import scalars
from tests.support.refusals import refusal
from tests.support.scripted_engine import ScriptedEngine, command
from tests.support.states import saved_steps
from tests.support.stopping import Started, interrupted


class Missing(ScriptedEngine):
    def __init__(self, *_):
        raise ImportError("libcuda.so.1: cannot open shared object file")


class Broken(ScriptedEngine):
    def generate(self, *_):
        raise EngineError("vLLM failed while it sampled: out of luck.")


def engine(kind):
    return lambda patch: patch.setattr(rollout, "VLLMEngine", kind)


def raising(owner, name, error):
    def fail(*_, **__):
        raise error

    return lambda patch: patch.setattr(owner, name, fail)


def stopped(owner, name, signum):
    return lambda patch: patch.setattr(owner, name, interrupted(getattr(owner, name), 1, "before", signum))


ENDS = {
    "the engine cannot be imported": engine(Missing),
    "the engine fails": engine(Broken),
    "a file is missing": raising(policy_module, "load_policy", FileNotFoundError("model.safetensors")),
    "Ctrl-C while the model is loaded": stopped(policy_module, "load_policy", signal.SIGINT),
    "SIGTERM in the first validation": stopped(AsymGRPOModule, "validation_step", signal.SIGTERM),
    "a failure in the first step": raising(AsymGRPOModule, "training_step", ZeroDivisionError()),
}


@pytest.fixture(autouse=True)
def _scripted(monkeypatch):
    monkeypatch.setattr(rollout, "VLLMEngine", ScriptedEngine)
    before = signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background job ignores it
    yield
    signal.signal(signal.SIGINT, before)


def code_of(arguments: list[str]) -> int:
    """The exit code of the command; of a failure with a traceback, too."""
    try:
        return main(arguments)
    except Exception:
        return 1


def assert_fresh(run: Path, steps: int) -> None:
    """The run is that of the repaired command alone."""
    assert "lr: 0.0003" in (run / "config.yaml").read_text()
    assert not list(run.glob("config.resumed-*"))
    assert [step for step, _ in scalars(run)["reward/mean"]] == [*range(1, steps + 1)]
    assert [step for step, _ in scalars(run)["val/held_out/avg@8"]] == [*range(steps + 1)]
    assert saved_steps(run) == [steps]


@pytest.mark.parametrize("name", ENDS)
def test_the_repaired_command_starts(name, tmp_path, monkeypatch):
    run = tmp_path / "run"
    with monkeypatch.context() as patch:
        ENDS[name](patch)
        assert code_of([*command(tmp_path), "--model.optimizer.lr=0.1"]) != 0
    assert {path.name for path in run.iterdir()} <= {"tensorboard"}
    more = [] if "fails" in name else ["--ckpt_path=last"]
    assert main([*command(tmp_path), "--steps=1", "--model.optimizer.lr=0.0003", *more]) == 0
    assert_fresh(run, 1)


def test_a_run_that_is_killed_in_its_first_step(tmp_path):
    arguments = ["-m", "tests.support.stopped_run", *command(tmp_path)]
    run = Started([*arguments, "--model.optimizer.lr=0.1"], tmp_path / "log", SAMPLING_S="0 60")
    run.wait_for(lambda: run.text.count("sampling") == 2)
    time.sleep(0.3)
    run.process.kill()
    run.process.wait()
    assert {path.name for path in (tmp_path / "run").iterdir()} == {"tensorboard"}
    assert main([*command(tmp_path), "--steps=1", "--model.optimizer.lr=0.0003"]) == 0
    assert_fresh(tmp_path / "run", 1)


def test_files_of_a_user_stay(tmp_path, monkeypatch):
    run = tmp_path / "run"
    run.mkdir()
    (run / "notes.txt").write_text("mine")
    with monkeypatch.context() as patch:
        ENDS["the engine fails"](patch)
        assert code_of(command(tmp_path)) == 1
    assert main([*command(tmp_path), "--steps=1"]) == 0
    assert (run / "notes.txt").read_text() == "mine"


def test_the_config_is_there_as_soon_as_a_step_is(tmp_path, monkeypatch, capsys):
    """Also of a run that is killed before its first checkpoint: its steps are in TensorBoard."""
    seen = []
    step = AsymGRPOModule.training_step

    def noted(module, *arguments):
        seen.append((tmp_path / "run/config.yaml").exists())
        step(module, *arguments)
        if len(seen) == 3:
            raise ZeroDivisionError

    monkeypatch.setattr(AsymGRPOModule, "training_step", noted)
    assert code_of([*command(tmp_path), "--steps=4", "--checkpoint.every_n_steps=100"]) == 1
    assert seen == [False, True, True]
    assert saved_steps(tmp_path / "run") == []
    assert "already holds a run: continue it with --ckpt_path last" in refusal(command(tmp_path), capsys)


def test_a_run_that_goes_on_elsewhere_leaves_nothing_either(tmp_path, monkeypatch, capsys):
    """From another run's checkpoint, in a folder of its own."""
    assert main([*command(tmp_path), "--steps=1"]) == 0
    goes_on = [*command(tmp_path), f"--run_dir={tmp_path / 'other'}", "--steps=2"]
    goes_on.append(f"--ckpt_path={tmp_path / 'run/checkpoints/step-00000001.ckpt'}")
    with monkeypatch.context() as patch:
        ENDS["the engine cannot be imported"](patch)
        assert code_of(goes_on) == 1
    assert (
        f"No step was complete yet: the same command starts again from {tmp_path}/run/check" in capsys.readouterr().out
    )
    assert [path.name for path in (tmp_path / "other").iterdir()] == ["tensorboard"]
    assert main(goes_on) == 0
    assert (tmp_path / "other/config.yaml").exists()
