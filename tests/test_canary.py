"""A sampler with old weights stops the run in the very step that would have sampled from them."""

import pytest
import torch

from asymgrpo_app.callbacks import rollout
from asymgrpo_app.cli import main
from asymgrpo_app.policy import linear_weights, load_policy, named_weights
from asymgrpo_app.rollout.digest import policy_digest
from asymgrpo_app.rollout.vllm_engine import VLLMEngine, VLLMEngineConfig
from tests.conftest import REPOSITORY

SMALL = ["--steps=6", "--data.prompts_per_step=16", "--data.validation={}", "--checkpoint.every_n_steps=1"]


@pytest.fixture(scope="module", params=["float32", "bfloat16"])
def dtype(request):
    return request.param


@pytest.fixture(scope="module")
def engine(dtype):
    """Takes the place of the common engine, once in each type."""
    config = VLLMEngineConfig(max_num_seqs=64)
    engine = VLLMEngine(str(REPOSITORY / "data/countdown_base"), config, dtype, max_model_len=26)
    yield engine
    engine.close()


def settings(dtype: str) -> list[str]:
    """The learning rates at which a step changes little."""
    if dtype == "float32":
        return ["--model.optimizer.lr=1e-4"]
    return ["--model.optimizer.lr=2e-6", "--trainer.precision=bf16-mixed"]


@pytest.mark.usefixtures("shared_engine")
def test_a_push_that_does_nothing_after_step_3_stops_the_run_at_step_4(
    dtype, engine, quickstart, tmp_path, monkeypatch, capsys
):
    kept, pushes = rollout.VLLMEngine(), []

    def push(weights):
        pushes.append(len(pushes))
        if len(pushes) <= 3:  # of the policy as it came, and after steps 1 and 2
            engine.load_weights(weights)

    kept.load_weights = push
    monkeypatch.setattr(rollout, "VLLMEngine", lambda *arguments: kept)
    run = tmp_path / "run"
    assert main([*quickstart, *SMALL, *settings(dtype), f"--run_dir={run}"]) == 1
    error = capsys.readouterr().err
    assert (
        "asymgrpo: stopped: after 3 RL steps the sampler does not hold the policy's weights: their digest is " in error
    )
    assert len(pushes) == 4
    assert max(path.name for path in (run / "checkpoints").iterdir()) == "step-00000003.ckpt"


@pytest.mark.usefixtures("shared_engine")
def test_log_probabilities_alone_find_weights_of_another_policy(
    dtype, engine, quickstart, tmp_path, monkeypatch, capsys
):
    kept = rollout.VLLMEngine()

    def push_something_else(weights):
        engine.load_weights((name, weight * 1.5) for name, weight in weights)

    kept.load_weights = push_something_else
    monkeypatch.setattr(rollout, "VLLMEngine", lambda *arguments: kept)
    options = [*SMALL, *settings(dtype), "--rollout.canary.digest=false", f"--run_dir={tmp_path / 'run'}"]
    assert main([*quickstart, *options]) == 1
    assert (
        "after 0 RL steps the sampler's log-probabilities are not the policy's: the mean over "
        in capsys.readouterr().err
    )


def test_the_engine_reads_its_weights_back_to_the_last_bit(dtype, engine, repository):
    policy = load_policy(str(repository / "data/countdown_base"), "sdpa")
    engine.load_weights(named_weights(policy))
    kind = getattr(torch, dtype)
    for version in (0, 1, 2):
        assert engine.digest(version) == policy_digest(named_weights(policy), *linear_weights(policy), kind, version)
    for name, parameter in policy.named_parameters():
        before = engine.digest(0)
        with torch.no_grad():
            parameter.add_(0.01)
        engine.load_weights(named_weights(policy))
        expected = policy_digest(named_weights(policy), *linear_weights(policy), kind, 0)
        assert engine.digest(0) == expected, name
        assert expected != before, name
