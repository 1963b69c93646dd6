"""What the canary promises for a sampler in one type; subclasses are collected.

A subclass names the `dtype`, the `options` of its runs, with a learning rate at which a step changes little, and has
fixtures `engine` and `shared_engine`.
"""

import pytest
import torch

from asymgrpo_app.callbacks import rollout
from asymgrpo_app.cli import main
from asymgrpo_app.policy.loading import linear_weights, load_policy, named_weights
from asymgrpo_app.rollout.digest import policy_digest
from tests.support.paths import POLICY

SMALL = ["--steps=6", "--data.prompts_per_step=16", "--data.validation={}", "--checkpoint.every_n_steps=1"]


@pytest.mark.usefixtures("shared_engine")
class CanaryContract:
    """The tests."""

    dtype = "float32"
    options: tuple[str, ...] = ("--model.optimizer.lr=1e-4",)

    def test_a_push_that_does_nothing_after_step_3_stops_the_run_at_step_4(
        self, engine, quickstart, tmp_path, monkeypatch, capsys
    ):
        kept, pushes = rollout.VLLMEngine(), []

        def push(weights):
            pushes.append(len(pushes))
            if len(pushes) <= 3:  # of the policy as it came, and after steps 1 and 2
                engine.load_weights(weights)

        kept.load_weights = push
        monkeypatch.setattr(rollout, "VLLMEngine", lambda *arguments: kept)
        run = tmp_path / "run"
        assert main([*quickstart, *SMALL, *self.options, f"--run_dir={run}"]) == 1
        error = capsys.readouterr().err
        assert (
            "asymgrpo: stopped: after 3 RL steps the sampler does not hold the policy's weights: their digest is "
            in error
        )
        assert len(pushes) == 4
        assert max(path.name for path in (run / "checkpoints").iterdir()) == "step-00000003.ckpt"

    def test_log_probabilities_alone_find_weights_of_another_policy(
        self, engine, quickstart, tmp_path, monkeypatch, capsys
    ):
        kept = rollout.VLLMEngine()

        def push_something_else(weights):
            engine.load_weights((name, weight * 1.5) for name, weight in weights)

        kept.load_weights = push_something_else
        monkeypatch.setattr(rollout, "VLLMEngine", lambda *arguments: kept)
        options = [*SMALL, *self.options, "--rollout.canary.digest=false", f"--run_dir={tmp_path / 'run'}"]
        assert main([*quickstart, *options]) == 1
        assert (
            "after 0 RL steps the sampler's log-probabilities are not the policy's: the mean over "
            in capsys.readouterr().err
        )

    def test_the_engine_reads_its_weights_back_to_the_last_bit(self, engine):
        policy = load_policy(POLICY, "sdpa")
        engine.load_weights(named_weights(policy))
        kind = getattr(torch, self.dtype)
        for version in (0, 1, 2):
            assert engine.digest(version) == policy_digest(
                named_weights(policy), *linear_weights(policy), kind, version
            )
        for name, parameter in policy.named_parameters():
            before = engine.digest(0)
            with torch.no_grad():
                parameter.add_(0.01)
            engine.load_weights(named_weights(policy))
            expected = policy_digest(named_weights(policy), *linear_weights(policy), kind, 0)
            assert engine.digest(0) == expected, name
            assert expected != before, name
