"""`predict`, `validate` and `export` through the command, on real vLLM."""

import json
import os
import signal

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from asymgrpo_app.checkpoints.files import Label, write_checkpoint
from asymgrpo_app.cli import main
from asymgrpo_app.evaluation import pass_at_k
from asymgrpo_app.evaluation.results import read_results
from asymgrpo_app.prompts import Countdown
from tests.support.refusals import refusal

PROBLEMS, SAMPLES = 80, 8  # three calls of the sampler


@pytest.fixture
def command(quickstart, tmp_path):
    return [*quickstart[1:], f"--data.validation.countdown.limit={PROBLEMS}", f"--run_dir={tmp_path / 'run'}"]


@pytest.mark.usefixtures("shared_engine")
def test_predictions_and_results_say_the_same(command, tmp_path, capsys):
    folder = tmp_path / "run/evaluations/base"
    assert main(["predict", *command]) == 0
    out = capsys.readouterr().out
    lines = [json.loads(line) for line in (folder / "predictions.jsonl").read_text().splitlines()]
    assert [(line["index"], line["sample"]) for line in lines] == [
        (index, sample) for index in range(PROBLEMS) for sample in range(SAMPLES)
    ]
    verifier = Countdown().verifier
    problems = Countdown("validation").fixed(PROBLEMS)
    right = [0] * PROBLEMS
    for line in lines:
        problem = problems[line["index"]]
        assert line["uid"] == problem.uid
        assert line["correct"] == verifier.verify(line["completion"], problem.row).correct
        right[line["index"]] += line["correct"]
    values = read_results(folder / "results.json").sets["countdown"].metrics
    assert values["avg@8"].value == pytest.approx(sum(right) / (PROBLEMS * SAMPLES), abs=1e-12)
    assert values["pass@8"].value == pytest.approx(sum(pass_at_k(8, c, 8) for c in right) / PROBLEMS, abs=1e-12)
    assert values["pass@8"].low < values["pass@8"].value < values["pass@8"].high
    assert f"{100 * values['maj@8'].value:.1f} %" in out
    # The same by `validate`, which leaves what is there as it is.
    assert main(["validate", *command]) == 0
    again = read_results(tmp_path / "run/evaluations/base-2/results.json").sets["countdown"]
    assert again.metrics == values
    assert main(["compare", str(folder), str(tmp_path / "run/evaluations/base-2")]) == 0
    assert "undecided" in capsys.readouterr().out


@pytest.mark.usefixtures("shared_engine")
def test_an_interrupted_prediction_goes_on_and_the_file_is_the_same(command, engine, tmp_path, monkeypatch, capsys):
    assert main(["predict", *command, f"--output={tmp_path / 'whole'}"]) == 0
    parted = [*command, f"--output={tmp_path / 'parted'}"]
    generate, calls = engine.generate, []

    def stopped_in_the_second_call(requests, settings):
        calls.append(len(requests))
        if len(calls) == 2:
            os.kill(os.getpid(), signal.SIGTERM)
        return generate(requests, settings)

    from asymgrpo_app.callbacks import rollout

    kept = rollout.VLLMEngine()
    kept.generate = stopped_in_the_second_call
    monkeypatch.setattr(rollout, "VLLMEngine", lambda *arguments: kept)
    assert main(["predict", *parted]) == 143
    part = (tmp_path / "parted/predictions.jsonl").read_bytes()
    whole = (tmp_path / "whole/predictions.jsonl").read_bytes()
    assert part == whole[: len(part)]
    assert 0 < part.count(b"\n") < whole.count(b"\n")
    assert not (tmp_path / "parted/results.json").exists()
    with (tmp_path / "parted/predictions.jsonl").open("ab") as file:
        file.write(whole[len(part) : len(part) + 40])  # as a kill in the middle of a line leaves it
    calls[:] = [0, 0]
    capsys.readouterr()
    assert main(["predict", *parted]) == 0
    assert "32 problems are in " in capsys.readouterr().out
    assert (tmp_path / "parted/predictions.jsonl").read_bytes() == whole
    sets = [read_results(tmp_path / name / "results.json").sets for name in ("whole", "parted")]
    assert sets[0] == sets[1]


@pytest.mark.usefixtures("shared_engine")
def test_a_prediction_of_something_else_keeps_its_hands_off(command, tmp_path, capsys):
    output = f"--output={tmp_path / 'mine'}"
    assert main(["predict", *command, output, "--data.validation.countdown.limit=4"]) == 0
    before = (tmp_path / "mine/predictions.jsonl").read_bytes()
    sentence = refusal(["predict", *command, output, "--data.validation.countdown.limit=5"], capsys)
    assert "cannot be resumed" in sentence
    assert (tmp_path / "mine/predictions.jsonl").read_bytes() == before
    assert "exists already" in refusal(["validate", *command, output], capsys)


@pytest.mark.usefixtures("shared_engine")
def test_a_checkpoint_becomes_a_model(quickstart, tmp_path, capsys, repository):
    run = tmp_path / "run"
    small = ["--steps=1", "--data.prompts_per_step=8", "--data.validation={}", f"--run_dir={run}"]
    assert main([*quickstart, *small, "--model.optimizer.lr=1e-3"]) == 0
    assert main(["export", f"--run_dir={run}", f"--output={tmp_path / 'model'}"]) == 0
    saved = torch.load(run / "checkpoints/step-00000001.ckpt", weights_only=True)["state_dict"]
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "model")
    for name, weight in model.named_parameters():
        assert torch.equal(weight, saved[f"policy.{name}"])
    base = AutoTokenizer.from_pretrained(repository / "data/countdown_base")
    assert AutoTokenizer.from_pretrained(tmp_path / "model").encode("3 5 7>") == base.encode("3 5 7>")
    card = (tmp_path / "model/README.md").read_text()
    for line in (
        "Method: `AsymGRPO` (`beta_pos 0.9, beta_neg 0.4",
        "Training problems: `Countdown`",
        "RL steps: 1",
        "countdown_base",
    ):
        assert line in card
    assert "exists already" in refusal(["export", f"--run_dir={run}", f"--output={tmp_path / 'model'}"], capsys)
    # The same in the folder that the run itself wrote at its end.
    exported = AutoModelForCausalLM.from_pretrained(run / "export").state_dict()
    assert all(torch.equal(weight, exported[name]) for name, weight in model.state_dict().items())


def test_what_cannot_be_exported(tmp_path, capsys):
    assert "Name a checkpoint" in refusal(["export"], capsys)
    assert "no such checkpoint" in refusal(["export", "--ckpt_path=none.ckpt"], capsys)
    assert f"there is no checkpoint in {tmp_path}" in refusal(["export", f"--run_dir={tmp_path}"], capsys)


def test_what_cannot_be_evaluated(command, quickstart, tmp_path, capsys, repository):
    assert "data.validation is empty" in refusal(["validate", *command, "--data.validation={}"], capsys)
    other = tmp_path / "other"
    other.mkdir()
    for path in (repository / "data/countdown_base").iterdir():
        (other / path.name).write_bytes(path.read_bytes())
    config = json.loads((other / "config.json").read_text())
    (other / "config.json").write_text(json.dumps(config | {"vocab_size": 11}))
    sentence = refusal(["validate", *command, f"--model.policy={other}"], capsys)
    assert "knows 17 tokens, but the model has only 11" in sentence


@pytest.mark.usefixtures("shared_engine")
def test_a_checkpoint_of_another_model(command, tmp_path, capsys):
    other = {"state_dict": {"policy.model.norm.weight": torch.ones(3)}, "pytorch-lightning_version": "2.6.6"}
    state = {"version": "0.1.0", "config": "", "completed_steps": 1, "adaptive_entropy": None}
    write_checkpoint(other | {"asymgrpo": state}, tmp_path / "other.ckpt", Label(1))
    sentence = refusal(["validate", *command, f"--ckpt_path={tmp_path / 'other.ckpt'}"], capsys)
    assert "does not fit model.policy" in sentence
