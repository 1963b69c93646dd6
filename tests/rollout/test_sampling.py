"""Which sampler runs, what happens when it fails, and what a user is warned of."""

import importlib.util

import pytest

from asymgrpo_app.cli import main
from asymgrpo_app.rollout.engine import EngineError
from asymgrpo_app.rollout.samplers import installed_sampler
from asymgrpo_app.rollout.types import Completion
from tests.support.paths import REPOSITORY
from tests.support.scripted_engine import WRONG, ScriptedEngine, command

PLACE = "asymgrpo_app.callbacks.rollout.VLLMEngine"


class FailingEngine(ScriptedEngine):
    """Every engine fails in its first call from the second one on; `starts` counts the engines."""

    starts = 0
    works_from = 2

    def __init__(self, *arguments):
        super().__init__(*arguments)
        type(self).starts += 1
        self.number = type(self).starts

    def generate(self, requests, settings):
        if self.number < self.works_from:
            raise EngineError("vLLM failed while it sampled: out of memory")
        return super().generate(requests, settings)


@pytest.fixture
def run(monkeypatch, tmp_path):
    def _run(engine, *arguments):
        monkeypatch.setattr(PLACE, engine)
        return main([*command(tmp_path), *arguments])

    return _run


def test_an_engine_that_fails_is_started_anew(run, capsys):
    engine = type("Once", (FailingEngine,), {})
    assert run(engine) == 0
    assert engine.starts == 2
    assert "vLLM failed while it sampled: out of memory It is started anew." in capsys.readouterr().out


@pytest.mark.parametrize("restarts", [0, 2])
def test_an_engine_that_fails_each_time_ends_the_run_with_its_reason(run, restarts, capsys):
    engine = type("Never", (FailingEngine,), {"works_from": 99})
    assert run(engine, f"--rollout.max_engine_restarts={restarts}") == 1
    assert engine.starts == 1 + restarts
    assert "asymgrpo: stopped: vLLM failed while it sampled: out of memory" in capsys.readouterr().err


class StumblingEngine(ScriptedEngine):
    """Every third call fails, whatever engine makes it."""

    calls = 0

    def generate(self, requests, settings):
        StumblingEngine.calls += 1
        if StumblingEngine.calls % 3 == 0:
            raise EngineError("vLLM failed while it sampled: out of memory")
        return super().generate(requests, settings)


def test_failures_that_are_not_in_a_row_do_not_add_up(run, monkeypatch, capsys):
    monkeypatch.setattr(StumblingEngine, "calls", 0)
    assert run(StumblingEngine, "--steps=3", "--rollout.max_engine_restarts=1") == 0
    assert capsys.readouterr().out.count("It is started anew.") == 3


def test_log_probabilities_are_not_compared_where_the_sampler_leaves_tokens_out(run, capsys):
    """Those of the scripted sampler are never the policy's."""
    compared = ["--rollout.canary.completions=4", "--data.validation={}"]
    assert run(ScriptedEngine, *compared) == 1
    assert "the sampler's log-probabilities are not the policy's" in capsys.readouterr().err
    cut = ["--rollout.top_k=5", "--model.loss.correction.mode=mask", "--ckpt_path=last"]
    assert run(ScriptedEngine, *compared, *cut) == 0


class ForgetfulEngine(ScriptedEngine):
    """Its weights are gone after each generation."""

    keeps_weights = False

    def __init__(self, *arguments):
        super().__init__(*arguments)
        self.loaded = False

    def load_weights(self, weights):
        super().load_weights(weights)
        self.loaded = True

    def generate(self, requests, settings):
        assert self.loaded
        self.loaded = False
        return super().generate(requests, settings)


def test_an_engine_that_forgets_gets_its_weights_before_every_generation(run):
    assert run(ForgetfulEngine) == 0


def always(answer, *, truncated=False):
    class Engine(ScriptedEngine):
        def generate(self, requests, settings):
            tokens = self.answers[answer]
            return [Completion(tokens, [-2.0] * len(tokens), truncated) for _ in requests]

    return Engine


def test_a_run_that_cannot_learn_says_so_once(run, capsys):
    assert run(always(WRONG), "--steps=3") == 0
    said = capsys.readouterr().out
    assert said.count("WARNING: all 144 completions of step 1 were judged wrong, so the step taught nothing") == 1
    assert said.count("WARNING") == 1


def test_a_run_whose_completions_are_cut_says_so_once(run, capsys):
    assert run(always(WRONG, truncated=True), "--steps=3") == 0
    said = capsys.readouterr().out
    cut = "WARNING: 144 of the 144 completions of step 1 were cut at rollout.max_completion_tokens (10)"
    assert said.count(cut) == 1
    assert said.count("WARNING") == 2


def test_an_ordinary_run_warns_of_nothing(run, capsys):
    assert run(ScriptedEngine) == 0
    assert "WARNING" not in capsys.readouterr().out


def test_auto_is_vllm_where_it_is_installed(monkeypatch):
    assert installed_sampler("auto") == "vllm"
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    monkeypatch.setattr("asymgrpo_app.rollout.samplers.find_spec", lambda name: None)
    assert installed_sampler("auto") == "transformers"
    assert installed_sampler("server") == "server"


@pytest.mark.parametrize(
    ("option", "shown"),
    [
        ("--rollout.top_p=0.9", "rollout.top_p (0.9)"),
        ("--rollout.top_k=20", "rollout.top_k (20)"),
        ("--rollout.min_p=0.1", "rollout.min_p (0.1)"),
    ],
)
def test_training_from_a_cut_distribution_takes_a_correction(tmp_path, capsys, option, shown):
    arguments = ["check", *command(tmp_path)[1:], option]
    assert main(arguments) == 2
    assert f"{shown} cuts the distribution that training samples from" in capsys.readouterr().err
    assert main([*arguments, "--model.loss.correction.mode=truncate"]) == 0


def test_a_server_without_a_token_is_refused_before_the_model_is_loaded(tmp_path, capsys, monkeypatch):
    monkeypatch.delenv("ASYMGRPO_TOKEN", raising=False)
    arguments = ["check", *command(tmp_path)[1:], "--rollout.sampler=server"]
    arguments.append('--rollout.server={"urls": ["http://127.0.0.1:1"], "weights_folder": "weights"}')
    assert main(arguments) == 2
    assert "and the environment variable ASYMGRPO_TOKEN holds none" in capsys.readouterr().err
    monkeypatch.setenv("ASYMGRPO_TOKEN", "a-token-for-the-tests")
    assert main(arguments) == 0


@pytest.mark.parametrize(
    ("option", "message"),
    [
        ("--rollout.top_p=0", "rollout.top_p must be in (0, 1], got 0.0"),
        ("--rollout.top_p=1.1", "rollout.top_p must be in (0, 1], got 1.1"),
        ("--rollout.top_k=-1", "rollout.top_k must be 0 or more, got -1"),
        ("--rollout.min_p=1", "rollout.min_p must be in [0, 1), got 1.0"),
        ("--rollout.max_engine_restarts=-1", "rollout.max_engine_restarts must be 0 or more, got -1"),
        ("--rollout.sampler=server", "rollout.sampler is server, but rollout.server is not set"),
        ("--rollout.engine.tensor_parallel_size=0", "rollout.engine.tensor_parallel_size must be at least 1, got 0"),
        ("--rollout.engine.tensor_parallel_size=2", "is 2, which does not divide the number of processes, 1"),
        ("--rollout.engine.sleep_level=1", "rollout.engine.sleep_level is 1, but only a GPU's memory can be freed"),
        (
            "--rollout.engine.batch_invariant=true",
            "rollout.engine.batch_invariant is true, but vLLM has kernels for it on GPUs alone: leave it out on CPU",
        ),
        (
            "--rollout.engine.extra.max_model_len=5",
            "rollout.engine.extra may not set max_model_len: training and serve decide that",
        ),
    ],
)
def test_settings_that_mean_nothing_are_refused(tmp_path, capsys, option, message):
    assert main(["check", *command(tmp_path)[1:], option]) == 2
    assert message in capsys.readouterr().err


@pytest.mark.parametrize("subcommand", ["validate", "predict"])
def test_an_evaluation_refuses_the_engine_that_a_run_would(tmp_path, capsys, subcommand):
    arguments = [f"--config={REPOSITORY / 'configs/quickstart.yaml'}", "--rollout.sampler=vllm"]
    arguments += [f"--model.policy={REPOSITORY / 'data/countdown_base'}", f"--output={tmp_path / 'evaluation'}"]
    assert main([subcommand, *arguments, "--rollout.engine.sleep_level=1"]) == 2
    assert "rollout.engine.sleep_level is 1, but only a GPU's memory can be freed" in capsys.readouterr().err
    assert not (tmp_path / "evaluation").exists()
