"""Runs that train adapters, with real vLLM: what they save, how they go on, what comes out, and what is refused."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from peft import PeftModel
from transformers import AutoModelForCausalLM

from asymgrpo_app.callbacks import rollout
from asymgrpo_app.checkpoints.folder import checkpoint_path
from asymgrpo_app.cli import main
from asymgrpo_app.policy.loading import linear_weights, load_policy, named_weights
from asymgrpo_app.policy.lora import LoRAConfig, is_adapter
from asymgrpo_app.rollout.digest import policy_digest
from asymgrpo_app.rollout.types import SampleRequest
from tests.support.adapters import TEXT, adapted
from tests.support.engine_contract import SETTINGS, gaps
from tests.support.events import repeated_scalars
from tests.support.paths import POLICY as BASE
from tests.support.paths import QUICKSTART, REPOSITORY
from tests.support.refusals import refusal
from tests.support.shared_engine import kept
from tests.support.states import assert_same, content, state
from tests.support.stopping import signal_at
from tests.support.vllm_alone import PROMPTS

LORA = ("--model.lora.rank=4", "--model.lora.alpha=8")
SMALL = (
    "--steps=3",
    "--data.prompts_per_step=8",
    "--data.validation.countdown.limit=8",
    "--checkpoint.every_n_steps=1",
    "--checkpoint.keep=null",
    "--tensorboard.every_n_steps=1",
    "--trainer.val_check_interval=2",
    "--model.updates_per_step=2",
    "--model.loss.kl_coef=0.01",
    "--model.optimizer.lr=1e-2",
)


@pytest.fixture(scope="module")
def undisturbed(engine, tmp_path_factory) -> Path:
    """Three steps with adapters, with a checkpoint of each."""
    run_dir = tmp_path_factory.mktemp("runs") / "lora"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(rollout, "VLLMEngine", lambda *_: kept(engine))
        assert main(["fit", *QUICKSTART, *SMALL, *LORA, f"--run_dir={run_dir}"]) == 0
    return run_dir


@pytest.fixture(scope="module")
def all_weights(engine, tmp_path_factory) -> Path:
    """One step that trains all weights."""
    run_dir = tmp_path_factory.mktemp("runs") / "all"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(rollout, "VLLMEngine", lambda *_: kept(engine))
        assert main(["fit", *QUICKSTART, *SMALL, "--steps=1", f"--run_dir={run_dir}"]) == 0
    return run_dir


def logits(model) -> torch.Tensor:
    with torch.no_grad():
        return model.eval()(TEXT).logits


def test_vllm_holds_the_merged_weights_bit_by_bit_and_samples_from_them(engine):
    trained = adapted(load_policy(BASE, "sdpa").eval(), LoRAConfig(rank=4), noise=0.05)
    engine.load_weights(named_weights(trained))
    for version in (0, 1):
        expected = policy_digest(named_weights(trained), *linear_weights(trained), torch.float32, version)
        assert engine.digest(version) == expected
    requests = [SampleRequest(TEXT[0].tolist(), seed=number) for number in range(8)]
    completions = engine.generate(requests, SETTINGS)
    assert gaps(trained, requests, completions) < 1e-4
    assert gaps(load_policy(BASE, "sdpa"), requests, completions) > 1e-2


def test_a_checkpoint_holds_the_adapters_and_their_optimizer_alone(undisturbed, all_weights):
    first, last = content(undisturbed, 1), content(undisturbed, 3)
    assert len(last["state_dict"]) == 4 * 7 * 2
    assert all(is_adapter(name) and own.dtype == torch.float32 for name, own in last["state_dict"].items())
    assert all(not torch.equal(own, first["state_dict"][name]) for name, own in last["state_dict"].items())
    (optimizer,) = last["optimizer_states"]
    assert len(optimizer["state"]) == 4 * 7 * 2
    assert {float(slot["step"]) for slot in optimizer["state"].values()} == {6.0}
    label = last["asymgrpo"]["lora"]
    assert label["policy"] == BASE
    assert label["settings"]["rank"] == 4
    sizes = [checkpoint_path(folder, 1).stat().st_size for folder in (undisturbed, all_weights)]
    assert sizes[0] < 0.1 * sizes[1]


def test_the_run_says_what_it_trains_and_logs_what_every_run_logs(undisturbed, all_weights):
    own, other = repeated_scalars(undisturbed), repeated_scalars(all_weights)
    common = [{tag for tag in found if not tag.startswith("method/")} for found in (own, other)]
    assert common[0] == common[1]  # `method/` splits by accuracies, and not every step has groups of each
    # At the start the policy is its own reference, to the last bit.
    losses = [value for _, value in own["actor/kl_loss"]]
    assert all(value > 0 for value in losses)
    assert own["val/countdown/avg@8"][0] == other["val/countdown/avg@8"][0]
    assert own["reward/mean"][0] == other["reward/mean"][0]  # the first step samples from the same policy
    assert max(value for _, value in own["rollout_corr/logprob_abs_diff_max"]) < 3e-4


@pytest.mark.usefixtures("shared_engine")
def test_before_the_first_update_the_policy_is_its_own_reference(tmp_path):
    once = ["--model.updates_per_step=1", "--steps=1", "--data.validation={}"]
    assert main(["fit", *QUICKSTART, *SMALL, *LORA, *once, f"--run_dir={tmp_path / 'run'}"]) == 0
    assert repeated_scalars(tmp_path / "run")["actor/kl_loss"] == [(1, 0.0)]


@pytest.mark.usefixtures("shared_engine")
def test_a_run_that_is_stopped_and_goes_on_is_the_one_that_was_not(undisturbed, tmp_path, monkeypatch):
    command = ["fit", *QUICKSTART, *SMALL, *LORA, f"--run_dir={tmp_path / 'run'}"]
    with signal_at(monkeypatch, "between two updates", 3):
        assert main(command) == 143
    assert main([*command, "--ckpt_path=last"]) == 0
    assert_same(state(tmp_path / "run", 3), state(undisturbed, 3))
    assert repeated_scalars(tmp_path / "run") == repeated_scalars(undisturbed)


def test_the_export_of_a_run_is_that_of_its_last_checkpoint(undisturbed, tmp_path, capsys):
    """As a whole model and as an adapter; both compute the same."""
    whole = AutoModelForCausalLM.from_pretrained(undisturbed / "export")
    assert main(["export", f"--run_dir={undisturbed}", f"--output={tmp_path / 'merged'}"]) == 0
    again = AutoModelForCausalLM.from_pretrained(tmp_path / "merged")
    assert all(torch.equal(own, again.state_dict()[name]) for name, own in whole.state_dict().items())
    command = ["export", f"--run_dir={undisturbed}", "--adapter", f"--output={tmp_path / 'adapter'}"]
    assert main(command) == 0
    assert f"is in {tmp_path / 'adapter'} (peft format)" in capsys.readouterr().out
    wrapped = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(BASE), tmp_path / "adapter")
    assert (logits(wrapped) - logits(whole)).abs().max() < 1e-5
    assert (logits(wrapped) - logits(load_policy(BASE, "sdpa"))).abs().max() > 1e-2
    saved = json.loads((tmp_path / "adapter/adapter_config.json").read_text())
    assert (saved["r"], saved["lora_alpha"], saved["base_model_name_or_path"]) == (4, 8.0, BASE)


@pytest.mark.usefixtures("shared_engine")
def test_a_run_may_export_its_adapter(tmp_path):
    options = ["--steps=1", "--model.lora.export=adapter", f"--run_dir={tmp_path / 'run'}"]
    assert main(["fit", *QUICKSTART, *SMALL, *LORA, *options]) == 0
    folder = tmp_path / "run/export"
    wrapped = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(BASE), folder)
    saved = {name: own for name, own in wrapped.named_parameters() if is_adapter(name)}
    for name, own in content(tmp_path / "run", 1)["state_dict"].items():
        assert torch.equal(saved[name.replace("policy.", "base_model.model.")], own)
    assert not (folder / "config.json").exists()


@pytest.mark.usefixtures("shared_engine")
def test_a_checkpoint_is_evaluated_as_its_merged_export(undisturbed, tmp_path):
    options = ["--data.validation.countdown.limit=32", "--data.validation.countdown.temperature=0"]
    checkpoint = ["--model.lora.rank=4", "--model.lora.alpha=8", f"--ckpt_path={checkpoint_path(undisturbed, 3)}"]
    assert main(["predict", *QUICKSTART, *options, *checkpoint, f"--output={tmp_path / 'checkpoint'}"]) == 0
    exported = [f"--model.policy={undisturbed / 'export'}", f"--output={tmp_path / 'export'}"]
    assert main(["predict", QUICKSTART[0], *options, *exported]) == 0
    texts = []
    for name in ("checkpoint", "export"):
        lines = (tmp_path / name / "predictions.jsonl").read_text().splitlines()
        texts.append([json.loads(line).get("completion") for line in lines])
    assert len(texts[0]) >= 32
    assert texts[0] == texts[1]
    assert main(["validate", *QUICKSTART, *options, *checkpoint, f"--output={tmp_path / 'again'}"]) == 0


@pytest.mark.usefixtures("shared_engine")
def test_adapters_on_a_few_layers_with_rslora_and_gradient_checkpointing(tmp_path):
    options = ["--model.lora={rank: 2, rslora: true, target_modules: [q_proj, self_attn.v_proj]}", "--steps=1"]
    more = ["--model.gradient_checkpointing=true", "--model.attention=eager", f"--run_dir={tmp_path / 'run'}"]
    assert main(["fit", *QUICKSTART, *SMALL, *options, *more]) == 0
    names = content(tmp_path / "run", 1)["state_dict"]
    assert {name.split(".lora_")[0].rpartition(".")[2] for name in names} == {"q_proj", "v_proj"}
    assert all(own.any() for own in names.values())  # B as well, once an update was made


# ---- what is refused ----


@pytest.mark.parametrize(
    ("options", "told"),
    [
        (("--model.lora.rank=8", "--model.lora.alpha=8"), ("model.lora.rank is 8", "made with 4")),
        (("--model.lora.rank=4", "--model.lora.alpha=9"), ("model.lora.alpha is 9.0", "made with 8.0")),
        ((*LORA, "--model.lora.rslora=true"), ("model.lora.rslora is true", "made with false")),
        ((*LORA, "--model.lora.target_modules=[q_proj]"), ("model.lora.target_modules is [\"q_proj\"]", "null")),
        ((), ("model.lora is null", "made with {")),
    ],
)  # fmt: skip
def test_a_run_goes_on_with_the_adapters_it_was_started_with(undisturbed, options, told, capsys):
    line = refusal(["fit", *QUICKSTART, *SMALL, *options, f"--run_dir={undisturbed}", "--ckpt_path=last"], capsys)
    assert all(text in line for text in told)
    line = refusal(["validate", *QUICKSTART, *options, f"--ckpt_path={checkpoint_path(undisturbed, 3)}"], capsys)
    assert told[0].partition(" is ")[0] in line


def test_adapters_do_not_go_on_from_all_weights(all_weights, capsys):
    checkpoint = f"--ckpt_path={checkpoint_path(all_weights, 1)}"
    line = refusal(["fit", *QUICKSTART, *SMALL, *LORA, f"--run_dir={all_weights}", checkpoint], capsys)
    assert "model.lora is {" in line
    line = refusal(["predict", *QUICKSTART, *LORA, checkpoint], capsys)
    assert "holds all weights of a run without adapters" in line
    line = refusal(["export", "--adapter", checkpoint], capsys)
    assert "--adapter" in line
    assert "has no adapter" in line


@pytest.mark.usefixtures("shared_engine")
def test_adapters_belong_to_the_weights_they_were_trained_on(undisturbed, tmp_path, capsys):
    moved, other = tmp_path / "moved", tmp_path / "other"
    shutil.copytree(BASE, moved)
    shutil.copytree(undisturbed / "export", other)
    checkpoint = f"--ckpt_path={checkpoint_path(undisturbed, 3)}"
    few = ["--data.validation.countdown.limit=4", f"--output={tmp_path / 'results'}"]
    assert main(["validate", *QUICKSTART, *LORA, *few, checkpoint, f"--model.policy={moved}"]) == 0
    capsys.readouterr()
    run_dir = f"--run_dir={tmp_path / 'run'}"
    for verb in ("validate", "fit"):
        assert (
            main([verb, *QUICKSTART, *SMALL, *LORA, "--steps=4", checkpoint, run_dir, f"--model.policy={other}"]) == 2
        )
        error = capsys.readouterr().err
        assert f"model.policy: {other} is not what the checkpoint's adapters were trained on" in error
        assert f"from {BASE}" in error
    config = (undisturbed / "config.yaml").read_text().replace(BASE, str(other))
    (tmp_path / "run").mkdir(exist_ok=True)
    (tmp_path / "run/config.yaml").write_text(config)
    line = refusal(["export", checkpoint, f"--run_dir={tmp_path / 'run'}", f"--output={tmp_path / 'x'}"], capsys)
    assert "is not what the checkpoint's adapters were trained on" in line
    assert not (tmp_path / "x").exists()


# ---- at full length ----


@pytest.mark.long
def test_vllm_loads_both_exports_by_itself(undisturbed, tmp_path):
    """And computes from them what transformers computes from the merged one."""
    assert main(["export", f"--run_dir={undisturbed}", "--adapter", f"--output={tmp_path / 'adapter'}"]) == 0
    whole = AutoModelForCausalLM.from_pretrained(undisturbed / "export").eval()
    for arguments in ([str(undisturbed / "export")], [BASE, str(tmp_path / "adapter")], [BASE]):
        command = [sys.executable, "-m", "tests.support.vllm_alone", *arguments]
        done = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, timeout=300)
        assert done.returncode == 0, done.stderr[-3000:]
        gap = 0.0
        for prompt, told in zip(PROMPTS, json.loads(done.stdout.splitlines()[-1]), strict=True):
            tokens = torch.tensor([[*prompt, *told["tokens"]]])
            with torch.no_grad():
                own = whole(tokens).logits[0, len(prompt) - 1 : -1].log_softmax(-1)
            own = own.gather(1, torch.tensor(told["tokens"])[:, None])[:, 0]
            gap = max(gap, float((own - torch.tensor(told["logprobs"])).abs().max()))
        assert gap > 1e-2 if arguments == [BASE] else gap < 1e-4
