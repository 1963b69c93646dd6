"""The whole loop with real vLLM: short runs through the command, read back from what they wrote."""

from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from asymgrpo_app.cli import main
from asymgrpo_app.microbatch.microbatch import TokenSequence, build
from asymgrpo_app.policy.loading import load_policy, token_logprobs
from asymgrpo_app.prompts import Countdown
from tests.support.events import repeated_scalars, scalars
from tests.support.paths import POLICY, QUICKSTART
from tests.support.recorder import recorded
from tests.support.shared_engine import kept
from tests.support.states import assert_same, differs, saved_steps, state, weights
from tests.support.stopping import signal_at

pytestmark = pytest.mark.usefixtures("shared_engine")

SMALL = [
    "--data.prompts_per_step=16",
    "--trainer.val_check_interval=2",
    "--checkpoint.every_n_steps=2",
    "--model.optimizer.lr=1e-3",
]
_VALIDATION = """
data:
  validation:
    countdown:
      source:
        class_path: asymgrpo_app.prompts.Countdown
        init_args: {split: validation}
      limit: 32
      samples: 8
      pass_at: [1, 4, 8]
"""


def record_of(run_dir: Path) -> Path:
    return run_dir.parent / f"{run_dir.name}.jsonl"


def recorder(path: Path) -> list[str]:
    return ["--trainer.callbacks=tests.support.recorder.Recorder", f"--trainer.callbacks.path={path}"]


@pytest.fixture(scope="module")
def quickstart(tmp_path_factory) -> list[str]:
    """The quick start's options with a small validation set."""
    path = tmp_path_factory.mktemp("config") / "small_validation.yaml"
    path.write_text(_VALIDATION)
    return [*QUICKSTART, f"--config={path}", *SMALL]


@pytest.fixture
def command(quickstart, tmp_path) -> list[str]:
    """`fit` in `tmp_path/run`, recorded beside it."""
    run_dir = tmp_path / "run"
    return ["fit", *quickstart, *recorder(record_of(run_dir)), f"--run_dir={run_dir}"]


@pytest.fixture(scope="module")
def run(quickstart, engine, tmp_path_factory) -> Path:
    """Four steps, seed 0; its folder."""
    run_dir = tmp_path_factory.mktemp("runs") / "four"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("asymgrpo_app.callbacks.rollout.VLLMEngine", lambda *_: kept(engine))
        arguments = [*quickstart, *recorder(record_of(run_dir)), f"--run_dir={run_dir}", "--steps=4"]
        assert main(["fit", *arguments]) == 0
    return run_dir


def test_scalars_stand_at_completed_steps(run):
    values = scalars(run)
    assert [step for step, _ in values["reward/mean"]] == [1, 2, 3, 4]
    assert [step for step, _ in values["val/countdown/avg@8"]] == [0, 2, 4]
    assert {"val/countdown/pass@1", "val/countdown/pass@4", "val/countdown/pass@8"} <= values.keys()
    for tag in ("actor/entropy", "actor/pg_loss", "actor/grad_norm", "response_length/mean", "timing_s/gen"):
        assert len(values[tag]) == 4, tag
    assert [value for _, value in values["actor/lr"]] == pytest.approx([1e-3] * 4)
    assert [value for _, value in values["advantages/beta_pos"]] == pytest.approx([0.9] * 4)


def test_scalars_equal_what_the_rollouts_say(run):
    values = scalars(run)
    for line in recorded(record_of(run)):
        right = [[correct for _, correct, _ in group] for group in line["groups"]]
        counts = [sum(group) for group in right]
        if line["set"] == "train":
            at = line["step"]
            assert values["reward/mean"][at][1] == pytest.approx(sum(counts) / 128, abs=1e-6)
            assert values["reward/solved_none"][at][1] == pytest.approx(counts.count(0) / 16, abs=1e-6)
            assert values["reward/solved_all"][at][1] == pytest.approx(counts.count(8) / 16, abs=1e-6)
            lengths = [len(tokens) for group in line["groups"] for tokens, _, _ in group]
            assert values["response_length/mean"][at][1] == pytest.approx(sum(lengths) / 128, rel=1e-6)
            largest = max([((8 - k) / k) ** 0.9 for k in counts if 0 < k < 8])
            smallest = max([(k / (8 - k)) ** 0.4 for k in counts if 0 < k < 8])
            assert values["advantages/abs_max"][at][1] == pytest.approx(max(largest, smallest), rel=1e-6)
    evaluations = [line for line in recorded(record_of(run)) if line["set"] == "countdown"]
    for (_, value), line in zip(values["val/countdown/avg@8"], evaluations, strict=True):
        assert value == pytest.approx(sum(c for g in line["groups"] for _, c, _ in g) / 256, abs=1e-6)


def test_sampler_and_trainer_hold_the_same_weights_at_every_step(run):
    gaps = [value for _, value in scalars(run)["rollout_corr/logprob_abs_diff_max"]]
    assert len(gaps) == 4
    assert max(gaps) < 1e-4
    # The weights do change: with the first ones the last step's completions would have other log-probabilities.
    last = [line for line in recorded(record_of(run)) if line["set"] == "train"][-1]
    assert gap_to_base_policy(last) > 1e-2


def plain_logprobs(policy, prompt: list[int], completion: list[int]) -> torch.Tensor:
    """Log-probabilities of a completion by transformers' own forward pass, without padding or chunks."""
    with torch.no_grad():
        logits = policy(torch.tensor([[*prompt, *completion]])).logits[0, len(prompt) - 1 : -1]
    return logits.log_softmax(-1).gather(1, torch.tensor(completion)[:, None])[:, 0]


def gap_to_base_policy(line) -> float:
    """Largest difference between a step's recorded log-probabilities and those of the policy before training."""
    policy, tokenizer = AutoModelForCausalLM.from_pretrained(POLICY), AutoTokenizer.from_pretrained(POLICY)
    source = Countdown("train")
    largest = 0.0
    for place, group in enumerate(line["groups"]):
        prompt = tokenizer.encode(source.at(line["step"] * 16 + place, 0).text)
        for tokens, _, logprobs in group:
            gaps = plain_logprobs(policy, prompt, tokens) - torch.tensor(logprobs)
            largest = max(largest, float(gaps.abs().max()))
    return largest


def test_one_seed_one_run_also_when_it_stops_and_goes_on(command, run, tmp_path):
    again = tmp_path / "run"
    assert main([*command, "--steps=2"]) == 0
    assert_same(state(again, 2), state(run, 2))
    assert main([*command, "--steps=4", "--ckpt_path=last"]) == 0
    assert recorded(record_of(again)) == recorded(record_of(run))
    assert_same(state(again, 4), state(run, 4))
    assert repeated_scalars(again) == repeated_scalars(run)
    assert sorted(path.name for path in again.glob("config*.yaml")) == ["config.resumed-1.yaml", "config.yaml"]


def test_another_seed_is_another_run(command, run, tmp_path):
    assert main([*command, "--steps=2", "--seed_everything=1"]) == 0
    assert differs(weights(tmp_path / "run", 2), weights(run, 2))


def test_stopped_in_an_update_it_goes_on_as_if_nothing_had_happened(command, run, tmp_path, monkeypatch):
    with signal_at(monkeypatch, "backward", 3):
        assert main([*command, "--steps=4", "--checkpoint.every_n_steps=100"]) == 143
    assert saved_steps(tmp_path / "run") == [2]
    assert main([*command, "--steps=4", "--ckpt_path=last"]) == 0
    assert_same(state(tmp_path / "run", 4), state(run, 4))
    assert repeated_scalars(tmp_path / "run") == repeated_scalars(run)


def test_export_is_the_trained_policy(quickstart, run, tmp_path):
    exported = AutoModelForCausalLM.from_pretrained(run / "export")
    trained = {name.removeprefix("policy."): tensor for name, tensor in weights(run, 4).items()}
    assert_same({n: t for n, t in exported.state_dict().items() if n in trained}, trained)

    record = tmp_path / "validation.jsonl"
    exported_policy = [f"--model.policy={run / 'export'}", f"--run_dir={tmp_path / 'validation'}"]
    assert main(["validate", *quickstart, *recorder(record), *exported_policy]) == 0
    (line,) = recorded(record)
    final = [line for line in recorded(record_of(run)) if line["set"] == "countdown"][-1]
    assert [[c[:2] for c in group] for group in line["groups"]] == [[c[:2] for c in group] for group in final["groups"]]

    # transformers' plain forward pass on the export against the trainer's own pass with the checkpoint's weights.
    policy = load_policy(str(run / "export"), "sdpa")
    policy.load_state_dict({**policy.state_dict(), **trained})
    tokenizer = AutoTokenizer.from_pretrained(run / "export")
    prompts = [tokenizer.encode(prompt.text) for prompt in Countdown("validation").fixed(32)]
    for prompt, group in zip(prompts, line["groups"], strict=True):
        sequences = [TokenSequence(prompt, tokens) for tokens, _, _ in group]
        with torch.no_grad():
            own, _ = token_logprobs(policy, build(sequences, list(range(8))), temperature=1.0)
        plain = torch.cat([plain_logprobs(exported, prompt, tokens) for tokens, _, _ in group])
        sampled = torch.tensor([value for _, _, logprobs in group for value in logprobs])
        assert float((plain - own).abs().max()) < 1e-5
        assert float((plain - sampled).abs().max()) < 1e-4


def test_a_checkpoint_is_evaluated_with_its_own_weights(quickstart, run, tmp_path):
    record, output = tmp_path / "validation.jsonl", tmp_path / "results"
    checkpoint = [f"--ckpt_path={run / 'checkpoints/step-00000002.ckpt'}", f"--run_dir={run}", f"--output={output}"]
    assert main(["validate", *quickstart, *recorder(record), *checkpoint]) == 0
    (found,) = [line["groups"] for line in recorded(record)]
    start, second, fourth = (line["groups"] for line in recorded(record_of(run)) if line["set"] == "countdown")
    assert found == second
    assert found not in (start, fourth)


def test_two_updates_and_two_passes_per_step(command, tmp_path):
    assert main([*command, "--steps=2", "--model.updates_per_step=2", "--model.passes_per_step=2"]) == 0
    found = scalars(tmp_path / "run")
    assert [step for step, _ in found["reward/mean"]] == [1, 2]
    assert max(value for _, value in found["rollout_corr/logprob_abs_diff_max"]) < 1e-4
    # Later updates are off policy: the ratio has moved away from 1.
    assert all(abs(value) > 1e-5 for _, value in found["actor/ppo_kl"])


def test_own_prompts_from_json_lines(command, tmp_path):
    path = tmp_path / "mine.jsonl"
    path.write_text('{"prompt": "1 2 3 4 10>", "answer": "1+2+3+4"}\n{"prompt": "1 1 1 1 4>", "answer": "1+1+1+1"}\n')
    own = ["--data.train=asymgrpo_app.prompts.JsonLines", f"--data.train.path={path}"]
    assert main([*command, *own, "--steps=2", "--data.validation={}"]) == 0
    answers = {"1+2+3+4", "1+1+1+1"}
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "run/export")
    seen = 0
    for line in recorded(record_of(tmp_path / "run")):
        for tokens, correct, _ in (c for group in line["groups"] for c in group):
            text = tokenizer.decode(tokens, skip_special_tokens=True)
            assert not correct or text in answers
            seen += correct
    assert seen > 0
