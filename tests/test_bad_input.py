"""Bad input ends with one sentence and code 2, before anything is written or loaded."""

import sys
from pathlib import Path

import pytest
import transformers

from asymgrpo_app.cli import main

ARGUMENTS = {
    "misspelt key": (["--data.promts_per_step=3"], "data.promts_per_step"),
    "misspelt section": (["--modle.policy=x"], "modle.policy"),
    "wrong type": (["--data.prompts_per_step=many"], "data.prompts_per_step", "many"),
    "wrong type of a float": (["--rollout.temperature=warm"], "rollout.temperature", "warm"),
    "wrong choice": (["--model.loss.aggregation=median"], "model.loss.aggregation", "median"),
    "unknown class": (["--model.advantage=NoSuchAdvantage"], "model.advantage", "NoSuchAdvantage"),
    "unknown argument of a class": (["--model.advantage.gamma=1"], "gamma"),
    "group of one": (["--rollout.group_size=1"], "rollout.group_size", "1"),
    "no completion tokens": (["--rollout.max_completion_tokens=0"], "rollout.max_completion_tokens", "0"),
    "greedy training": (["--rollout.temperature=0"], "rollout.temperature", "0"),
    "no sequences": (["--rollout.engine.max_num_seqs=0"], "rollout.engine.max_num_seqs", "0"),
    "reserved engine option": (["--rollout.engine.extra.load_format=auto"], "rollout.engine.extra", "load_format"),
    "negative exponent": (["--model.advantage.beta_pos=-1"], "beta_pos", "-1"),
    "clip out of range": (["--model.objective.clip_low=2"], "clip_low", "2"),
    "negative KL": (["--model.loss.kl_coef=-0.1"], "model.loss.kl_coef", "-0.1"),
    "no updates": (["--model.updates_per_step=0"], "model.updates_per_step", "0"),
    "uneven updates": (["--model.updates_per_step=7"], "data.prompts_per_step", "64", "7"),
    "no gradient norm": (["--model.max_grad_norm=0"], "model.max_grad_norm", "0"),
    "missing model": (["--model.policy=./no/such/model"], "model.policy", "./no/such/model"),
    "no steps": (["--steps=0"], "steps", "0"),
    "wrong seed": (["--seed_everything=x"], "seed_everything", "x"),
    "Lightning's length": (["--trainer.max_steps=5"], "trainer.max_steps", "steps"),
    "Lightning's epochs": (["--trainer.max_epochs=5"], "trainer.max_epochs", "steps"),
    "Lightning's clipping": (["--trainer.gradient_clip_val=1"], "trainer.gradient_clip_val", "model.max_grad_norm"),
    "Lightning's accumulation": (["--trainer.accumulate_grad_batches=2"], "trainer.accumulate_grad_batches"),
    "no checkpoints": (["--checkpoint.every_n_steps=0"], "checkpoint.every_n_steps", "0"),
    "keeps none": (["--checkpoint.keep=0"], "checkpoint.keep", "0"),
    "missing checkpoint": (["--ckpt_path=nowhere.ckpt"], "--ckpt_path nowhere.ckpt"),
    "missing config": (["--config=nowhere.yaml"], "nowhere.yaml"),
    "missing prompt file": (
        ["--data.train=asymgrpo_app.prompts.JsonLines", "--data.train.path=nowhere.jsonl"],
        "nowhere.jsonl",
    ),
    "Pass@K beyond the group": (
        ["--model.advantage=asymgrpo_app.algorithm.baselines.PassAtK", "--model.advantage.k=9"],
        "k is 9",
    ),
    "ramp beyond the limit": (["--model.loss.overlong_buffer=11"], "model.loss.overlong_buffer", "11", "10"),
    "two entropy bonuses": (
        ["--model.loss.entropy_coef=0.1", "--model.loss.adaptive_entropy={}"],
        "model.loss.entropy_coef",
        "0.1",
    ),
    "corrected twice": (
        ["--model.loss.old_logprobs=sampler", "--model.loss.correction.mode=mask"],
        "model.loss.correction.mode",
        "mask",
    ),
    "refilling groups that teach": (
        ["--rollout.dynamic_sampling={}", "--model.advantage.degenerate_groups=keep", "--model.advantage.beta_pos=0"],
        "rollout.dynamic_sampling",
    ),
    "no rounds": (["--rollout.dynamic_sampling.max_rounds=0"], "max_rounds", "0"),
    "negative cap": (["--model.advantage.cap=-1"], "cap", "-1"),
    "unfinished schedule": (["--model.advantage.beta_pos={kind: linear, start: 0.5}"], "linear", "end"),
    "shaped twice": (
        ["--model.loss.entropy_advantage={}", "--model.objective=asymgrpo_app.algorithm.covariance.ClipCov"],
        "model.loss.entropy_advantage",
        "ClipCov",
    ),
    "unknown split": (["--data.train.split=test"], "split", "test"),
}


@pytest.fixture(autouse=True)
def _nothing_expensive(monkeypatch, tmp_path):
    """Run in an empty folder; loading a model would fail the test."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(transformers.AutoModelForCausalLM, "from_pretrained", _must_not_load)


def _must_not_load(*args, **kwargs):
    raise AssertionError("a model was loaded before the input was checked")


def refusal(arguments, capsys) -> str:
    """Run the command, check that it refuses as promised, and return its sentence."""
    before = sorted(Path.cwd().rglob("*"))
    had_vllm = "vllm" in sys.modules
    assert main(arguments) == 2
    captured = capsys.readouterr()
    lines = captured.err.strip().splitlines()
    assert len(lines) == 1, captured.err
    assert lines[0].startswith("asymgrpo: error: ")
    assert captured.out == ""
    assert sorted(Path.cwd().rglob("*")) == before
    assert had_vllm or "vllm" not in sys.modules
    return lines[0]


@pytest.mark.parametrize("name", ARGUMENTS)
def test_one_sentence_names_key_and_value(name, quickstart, capsys):
    arguments, *expected = ARGUMENTS[name]
    sentence = refusal([*quickstart, *arguments], capsys)
    for part in expected:
        assert part in sentence


CONFIGS = {
    "unknown key": ("modle:\n  policy: x\n", "modle"),
    "unknown nested key": ("rollout:\n  groupsize: 8\n", "groupsize"),
    "key set twice": ("steps: 5\ndata:\n  prompts_per_step: 8\nsteps: 6\n", "line 4", "steps"),
    "nested key set twice": ("data:\n  prompts_per_step: 8\n  prompts_per_step: 9\n", "line 3", "prompts_per_step"),
    "broken YAML": ("steps: [1\n", "broken.yaml"),
    "not a mapping": ("- 1\n- 2\n", "broken.yaml", "list"),
    "null for a number": ("data:\n  prompts_per_step: null\n", "prompts_per_step"),
    "evaluation without samples": (
        "data:\n  validation:\n    a:\n      source: asymgrpo_app.prompts.Countdown\n      samples: 0\n",
        "samples",
        "0",
    ),
    "pass@k beyond the samples": (
        "data:\n  validation:\n    a:\n      source: asymgrpo_app.prompts.Countdown\n      pass_at: [16]\n",
        "pass_at",
        "16",
    ),
}


@pytest.mark.parametrize("name", CONFIGS)
def test_broken_configs(name, quickstart, capsys, tmp_path):
    content, *expected = CONFIGS[name]
    (tmp_path / "broken.yaml").write_text(content)
    sentence = refusal([*quickstart, "--config=broken.yaml"], capsys)
    for part in expected:
        assert part in sentence


def test_broken_line_of_a_prompt_file(quickstart, capsys, tmp_path):
    (tmp_path / "mine.jsonl").write_text('{"prompt": "1+1>", "answer": "2"}\n{"prompt": "2+2>", \n')
    sentence = refusal(
        [*quickstart, "--data.train=asymgrpo_app.prompts.JsonLines", "--data.train.path=mine.jsonl"], capsys
    )
    assert "mine.jsonl" in sentence
    assert "line 2" in sentence


def test_folder_that_is_no_checkpoint(quickstart, capsys, tmp_path):
    (tmp_path / "empty_model").mkdir()
    assert "config.json" in refusal([*quickstart, "--model.policy=./empty_model"], capsys)


def test_used_run_folder_names_the_ways_out(quickstart, capsys, tmp_path):
    (tmp_path / "mine/checkpoints").mkdir(parents=True)
    sentence = refusal([*quickstart, "--run_dir=mine"], capsys)
    assert "run_dir mine" in sentence
    assert "--ckpt_path last" in sentence


def test_validating_a_run_without_checkpoint(quickstart, capsys):
    assert "no checkpoint" in refusal(["validate", *quickstart[1:], "--ckpt_path=last"], capsys)
