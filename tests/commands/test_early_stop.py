"""Runs that a callback stops before their last step: what is saved, exported and said, and how they go on."""

import json
from pathlib import Path

import pytest
from safetensors.torch import load_file

from asymgrpo_app.callbacks import rollout
from asymgrpo_app.checkpoints.files import read_label
from asymgrpo_app.cli import main
from asymgrpo_app.evaluation.results import read_results
from tests.support.scripted_engine import command as scripted
from tests.support.seeded_engine import SeededEngine
from tests.support.states import assert_same, content, saved_steps, weights
from tests.support.two_processes import on_two_processes

STEPS = 4
RARELY = [f"--steps={STEPS}", "--checkpoint.every_n_steps=100"]
STOPS = "tests.support.early_stops."
NEVER_VALIDATES = ["--trainer.limit_val_batches=0"]


@pytest.fixture(autouse=True)
def _seeded(monkeypatch):
    monkeypatch.setattr(rollout, "VLLMEngine", SeededEngine)


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("undisturbed")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(rollout, "VLLMEngine", SeededEngine)
        assert (
            main([*scripted(folder), f"--steps={STEPS}", "--checkpoint.keep=null", "--checkpoint.every_n_steps=1"]) == 0
        )
    return folder / "run"


def callback(name: str, **arguments: object) -> str:
    return f"--trainer.callbacks={json.dumps([{'class_path': name, 'init_args': arguments}])}"


def assert_trained_alike(run: Path, undisturbed: Path, step: int) -> None:
    found, expected = content(run, step), content(undisturbed, step)
    for part in ("state_dict", "optimizer_states", "lr_schedulers"):
        assert_same(found[part], expected[part])
    assert found["asymgrpo"]["completed_steps"] == step


def card(run: Path) -> str:
    return (run / "export/README.md").read_text()


def assert_exported(run: Path, step: int) -> None:
    """The exported weights are those of the checkpoint; a tied weight is exported once."""
    exported, saved = load_file(run / "export/model.safetensors"), weights(run, step)
    assert len(exported) > 10
    assert_same(exported, {name: saved[f"policy.{name}"] for name in exported})


def summary(printed: str) -> list[str]:
    return printed[printed.index("\nRun ") + 1 :].splitlines()


# What is asked for in which hook, after how many steps, and the step that the run ends with.
HOOKS = {
    "train_start": ("on_train_start", 0, 0),
    "batch_start": ("on_train_batch_start", 1, 2),
    "optimizer_step": ("on_before_optimizer_step", 1, 2),
    "batch_end": ("on_train_batch_end", 2, 2),
    "validation_end": ("on_validation_end", 2, 2),
    "first_validation": ("on_validation_end", 0, 0),
}


@pytest.mark.parametrize("name", HOOKS)
@pytest.mark.parametrize("validates", [True, False], ids=["validated", "not validated"])
def test_an_early_stop_is_saved_and_exported_and_goes_on(name, validates, tmp_path, undisturbed, capsys):
    hook, after, last = HOOKS[name]
    if "validation" in name and not validates:
        return
    run, extra = tmp_path / "run", [] if validates else NEVER_VALIDATES
    command = [*scripted(tmp_path), *RARELY, "--trainer.val_check_interval=2", *extra]
    assert main([*command, callback(f"{STOPS}StopsIn", hook=hook, steps=after)]) == 0
    lines = summary(capsys.readouterr().out)
    assert lines[0] == f"Run stopped early: RL step {last} of {STEPS}, by StopsIn, without a reason."
    if last == 0:
        assert lines[1] == "Nothing was trained, so nothing is saved or exported."
        assert saved_steps(run) == []
        assert not (run / "export").exists()
        assert not (run / "config.yaml").exists()
        assert main(command) == 0  # nothing in the way of a fresh start
    else:
        assert lines[1] == f"The run goes on with --ckpt_path last, run_dir {run}."
        assert f"  Checkpoint    {run}/checkpoints/step-{last:08d}.ckpt" in lines
        assert saved_steps(run) == [last]
        assert_trained_alike(run, undisturbed, last)
        assert_exported(run, last)
        assert f"- RL steps: {last} of {STEPS}\n" in card(run)
        if validates:
            assert read_results(run / "results.json").run.checkpoint == f"{run}/checkpoints/step-{last:08d}.ckpt"
            assert "val/held_out/avg@8" in read_label(run / f"checkpoints/step-{last:08d}.ckpt").validation
        assert (run / "results.json").exists() == validates
        assert main([*command, "--ckpt_path=last"]) == 0
        assert_exported(run, STEPS)
        assert f"- RL steps: {STEPS}\n" in card(run)
    assert_trained_alike(run, undisturbed, STEPS)
    assert summary(capsys.readouterr().out)[0] == f"Run finished: {STEPS} RL steps, {run}"


def test_a_stop_that_comes_after_the_last_chance_to_save_is_saved_at_the_end(tmp_path, undisturbed, capsys):
    """By a callback after the run's own checkpoints: the state is saved once Lightning's epoch has ended."""
    run = tmp_path / "run"
    command = [*scripted(tmp_path), *RARELY]
    stops = callback(f"{STOPS}StopsAfterCheckpoints", hook="on_validation_end", steps=2, reason="Enough is\nenough.")
    assert main([*command, stops]) == 0
    said = capsys.readouterr().out
    assert summary(said)[0] == f"Run stopped early: RL step 2 of {STEPS}, by StopsAfterCheckpoints: Enough is enough."
    assert "val/held_out/avg@8" in read_label(run / "checkpoints/step-00000002.ckpt").validation
    assert_trained_alike(run, undisturbed, 2)
    assert main([*command, "--ckpt_path=last"]) == 0
    assert_trained_alike(run, undisturbed, STEPS)


def test_early_stopping_by_lightning_says_why_each_time(tmp_path, undisturbed, capsys):
    """The state of EarlyStopping is saved with the run: what it said in an earlier process is no reason later on."""
    run = tmp_path / "run"
    early = {"monitor": "val/held_out/avg@8", "mode": "max", "patience": 1, "min_delta": 2.0}
    stops = callback("lightning.pytorch.callbacks.EarlyStopping", **early)
    command = [*scripted(tmp_path), *RARELY]
    assert main([*command, stops]) == 0
    first = summary(capsys.readouterr().out)[0]
    assert first.startswith(f"Run stopped early: RL step 1 of {STEPS}, by EarlyStopping: Monitored metric ")
    assert " did not improve in the last 1 records. Best score: " in first
    assert "Signaling" not in first
    assert_trained_alike(run, undisturbed, 1)
    assert main([*command, stops, "--ckpt_path=last"]) == 0
    second = summary(capsys.readouterr().out)[0]
    assert f"RL step 2 of {STEPS}, by EarlyStopping: " in second
    assert " did not improve in the last 2 records." in second
    assert main([*command, "--ckpt_path=last"]) == 0
    assert_trained_alike(run, undisturbed, STEPS)


def test_a_stop_that_is_asked_for_before_training_is_said(tmp_path, capsys):
    assert main([*scripted(tmp_path), callback(f"{STOPS}StopsIn", hook="on_fit_start", steps=0)]) == 0
    assert summary(capsys.readouterr().out)[:2] == [
        "Run stopped early: RL step 0 of 2, by StopsIn, without a reason.",
        "Nothing was trained, so nothing is saved or exported.",
    ]


def test_a_stop_after_the_last_step_is_the_end_of_the_run(tmp_path, capsys):
    assert main([*scripted(tmp_path), callback(f"{STOPS}StopsIn", hook="on_train_batch_end", steps=2)]) == 0
    assert summary(capsys.readouterr().out)[0] == f"Run finished: 2 RL steps, {tmp_path / 'run'}"
    assert "- RL steps: 2\n" in card(tmp_path / "run")


@pytest.mark.long
@pytest.mark.parametrize("hook", ["on_train_start", "on_train_batch_start", "on_train_batch_end", "on_validation_end"])
@pytest.mark.parametrize("rank", [0, 1])
def test_one_of_two_ranks_stops_both(hook, rank, tmp_path):
    ranks = ["--trainer.devices=2", "--trainer.strategy=ddp", *RARELY]
    done = 0 if hook == "on_train_start" else 1
    stops = callback(f"{STOPS}StopsIn", hook=hook, steps=done, rank=rank, reason="Enough.")
    ended = on_two_processes("tests.support.scripted_engine", *scripted(tmp_path), *ranks, stops)
    assert ended.returncode == 0, ended.stdout + ended.stderr
    last = {"on_train_start": 0, "on_train_batch_start": 2}.get(hook, 1)
    assert f"Run stopped early: RL step {last} of {STEPS}, by StopsIn" in ended.stdout
    assert saved_steps(tmp_path / "run") == ([last] if last else [])
    assert (tmp_path / "run/export").exists() == (last > 0)
