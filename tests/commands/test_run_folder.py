"""Runs that stop, go on, end and are evaluated: what is in their folder, and what never happens to it."""

import re
from pathlib import Path

import pytest
import torch

from asymgrpo_app.checkpoints.files import read_label
from asymgrpo_app.cli import main
from asymgrpo_app.evaluation.results import read_results
from tests.support.events import scalars
from tests.support.paths import POLICY
from tests.support.refusals import refusal
from tests.support.scripted_engine import command as scripted_command
from tests.support.seeded_engine import SeededEngine
from tests.support.states import assert_same, weights

SMALL = [
    "--data.prompts_per_step=8",
    "--checkpoint.every_n_steps=2",
    "--tensorboard.every_n_steps=100",
    "--trainer.val_check_interval=2",
]


@pytest.fixture(autouse=True)
def _seeded(monkeypatch):
    monkeypatch.setattr("asymgrpo_app.callbacks.rollout.VLLMEngine", SeededEngine)


@pytest.fixture
def command(tmp_path) -> list[str]:
    """`fit` with few problems to validate on, every second step."""
    return [*scripted_command(tmp_path), *SMALL]


def points(run_dir, tag) -> list[tuple[int, float]]:
    return scalars(run_dir)[tag]


def checkpoints(run_dir) -> list[str]:
    return sorted(path.name for path in (run_dir / "checkpoints").iterdir())


def test_the_last_step_is_validated_saved_and_exported(command, tmp_path, capsys):
    run = tmp_path / "run"
    assert main([*command, "--steps=3"]) == 0
    assert [step for step, _ in points(run, "val/held_out/avg@8")] == [0, 2, 3]
    assert checkpoints(run) == ["step-00000002.ckpt", "step-00000003.ckpt"]
    assert (run / "export/model.safetensors").is_file()
    printed = capsys.readouterr().out
    assert re.search(r"validation +step 0 +step 3 +change", printed)
    assert f"Results       {run / 'results.json'}" in printed
    final = read_results(run / "results.json")
    assert final.run.checkpoint == str(run / "checkpoints/step-00000003.ckpt")
    assert final.sets["held_out"].protocol.problems == 9
    last = dict(points(run, "val/held_out/avg@8"))[3]
    label = read_label(run / "checkpoints/step-00000003.ckpt")
    assert label.validation["val/held_out/avg@8"] == pytest.approx(last, abs=1e-7)
    assert final.sets["held_out"].metrics["avg@8"].value == pytest.approx(last, abs=1e-7)


def test_results_are_those_of_the_end(command, tmp_path):
    """A run of two steps that goes on to four has the results of the fourth; one that is not validated has none."""
    run = tmp_path / "run"
    assert main([*command, "--steps=2"]) == 0
    assert read_results(run / "results.json").run.checkpoint == str(run / "checkpoints/step-00000002.ckpt")
    assert main([*command, "--steps=4", "--ckpt_path=last"]) == 0
    assert read_results(run / "results.json").run.checkpoint == str(run / "checkpoints/step-00000004.ckpt")
    other = tmp_path / "other"
    assert main([*command, f"--run_dir={other}", "--steps=1", "--data.validation=null"]) == 0
    assert not (other / "results.json").exists()


def test_a_finished_run_that_is_resumed_only_exports(command, tmp_path):
    run = tmp_path / "run"
    assert main([*command, "--steps=2"]) == 0
    (run / "export/model.safetensors").unlink()
    assert main([*command, "--steps=2", "--ckpt_path=last"]) == 0
    assert (run / "export/model.safetensors").is_file()
    assert [step for step, _ in points(run, "reward/mean")] == [1, 2]
    assert [step for step, _ in points(run, "val/held_out/avg@8")] == [0, 2]


def test_an_evaluation_leaves_the_run_alone(command, tmp_path, capsys):
    run = tmp_path / "run"
    assert main([*command, "--steps=3"]) == 0
    before = {tag: points(run, tag) for tag in ("reward/mean", "val/held_out/avg@8")}
    files = sorted(run.rglob("*"))
    capsys.readouterr()
    first = str(run / "checkpoints/step-00000002.ckpt")
    assert main(["validate", *command[1:], f"--ckpt_path={first}"]) == 0
    assert {tag: points(run, tag) for tag in before} == before
    report = run / "evaluations/step-00000002/results.json"
    assert sorted(run.rglob("*")) == sorted([*files, report, report.parent, report.parent.parent])
    again = read_results(report).sets["held_out"].metrics["avg@8"]
    assert again.value == pytest.approx(dict(before["val/held_out/avg@8"])[2], abs=1e-7)
    assert f"{100 * again.value:.1f} %" in capsys.readouterr().out
    assert main(["validate", *command[1:], f"--ckpt_path={first}"]) == 0
    assert (run / "evaluations/step-00000002-2/results.json").exists()  # the first one stays


def test_last_starts_where_there_is_no_checkpoint_yet(command, tmp_path, capsys):
    run = tmp_path / "run"
    assert main([*command, "--steps=1", "--ckpt_path=last"]) == 0
    for path in (run / "checkpoints").iterdir():
        path.unlink()
    assert "--ckpt_path last" in refusal([*command, "--steps=2"], capsys)
    assert main([*command, "--steps=2", "--ckpt_path=last"]) == 0
    assert "no checkpoint" in capsys.readouterr().out
    assert [step for step, _ in points(run, "reward/mean")] == [1, 2]  # nothing doubled


def test_going_back_to_an_older_checkpoint_sets_the_newer_ones_aside(command, tmp_path):
    run = tmp_path / "run"
    assert main([*command, "--steps=6"]) == 0
    assert checkpoints(run) == ["step-00000004.ckpt", "step-00000006.ckpt"]
    older = run / "checkpoints/step-00000004.ckpt"
    final = weights(run, 6)
    assert main([*command, "--steps=6", f"--ckpt_path={older}"]) == 0
    assert checkpoints(run) == ["step-00000004.ckpt", "step-00000006.ckpt", "step-00000006.ckpt.abandoned"]
    assert_same(weights(run, 6), final)
    assert [step for step, _ in points(run, "reward/mean")] == [1, 2, 3, 4, 5, 6]


def test_a_checkpoint_does_not_open_another_runs_folder(command, tmp_path, capsys):
    assert main([*command, "--steps=2"]) == 0
    (tmp_path / "other").mkdir()
    (tmp_path / "other/config.yaml").write_text("steps: 1\n")
    checkpoint = tmp_path / "run/checkpoints/step-00000002.ckpt"
    sentence = refusal([*command, f"--run_dir={tmp_path / 'other'}", f"--ckpt_path={checkpoint}"], capsys)
    assert "already holds a run" in sentence


def test_what_is_no_checkpoint_is_refused(command, tmp_path, capsys):
    broken = tmp_path / "broken.ckpt"
    broken.write_bytes(b"PK\x03\x04 and nothing more")
    assert "broken.ckpt" in refusal([*command, f"--ckpt_path={broken}"], capsys)
    foreign = tmp_path / "foreign.ckpt"
    torch.save({"state_dict": {}}, foreign)
    assert "not a checkpoint of asymgrpo" in refusal([*command, f"--ckpt_path={foreign}"], capsys)
    assert "not a checkpoint of asymgrpo" in refusal([*command, f"--ckpt_path={tmp_path}"], capsys)


def test_a_resume_with_another_optimizer_is_refused(command, tmp_path, capsys):
    assert main([*command, "--steps=2"]) == 0
    changed = [*command, "--steps=4", "--ckpt_path=last", "--model.optimizer.lr=5e-4"]
    sentence = refusal(changed, capsys)
    assert "model.optimizer" in sentence
    assert "0.0005" in sentence
    assert "0.0001" in sentence
    assert checkpoints(tmp_path / "run") == ["step-00000002.ckpt"]


def test_a_model_that_lacks_weights_is_refused_and_leaves_the_folder_free(command, tmp_path, capsys):
    from safetensors.torch import load_file, save_file

    model = tmp_path / "model"
    model.mkdir()
    for path in Path(POLICY).iterdir():
        (model / path.name).write_bytes(path.read_bytes())
    tensors = load_file(model / "model.safetensors")
    del tensors["model.norm.weight"]
    save_file(tensors, model / "model.safetensors", metadata={"format": "pt"})
    assert "model.norm.weight" in refusal([*command, f"--model.policy={model}"], capsys)
    assert main([*command, "--steps=1"]) == 0
