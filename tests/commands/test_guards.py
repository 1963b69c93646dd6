"""Updates that are not finite are left out, alike everywhere; verifier processes that are killed cost nothing."""

import contextlib
import os
import signal
from pathlib import Path

import psutil
import pytest
import torch

from asymgrpo_app.callbacks import rollout
from asymgrpo_app.checkpoints.folder import checkpoint_path
from asymgrpo_app.cli import main
from tests.support.events import repeated_scalars
from tests.support.poison import plus_infinity, poison, times_nan
from tests.support.recorder import recorded
from tests.support.scripted_engine import ScriptedEngine, command
from tests.support.states import assert_same, state
from tests.support.stopping import Started, signal_at

STEPS = 5
SCHEDULE = "{class_path: torch.optim.lr_scheduler.StepLR, init_args: {step_size: 1, gamma: 0.5}}"
ARGUMENTS = [
    f"--steps={STEPS}",
    "--checkpoint.keep=null",
    "--model.loss.adaptive_entropy={}",
    f"--model.lr_scheduler={SCHEDULE}",
]


class CountingEngine(ScriptedEngine):
    """Counts how often it gets new weights."""

    pushes = 0

    def load_weights(self, weights):
        CountingEngine.pushes += 1
        super().load_weights(weights)


@pytest.fixture
def poisoned(monkeypatch):
    """Runs with a scripted sampler, and losses that are not finite in some RL steps (from 1)."""
    monkeypatch.setattr(rollout, "VLLMEngine", CountingEngine)
    monkeypatch.setattr(CountingEngine, "pushes", 0)

    def put(steps, how=times_nan):
        poison(monkeypatch, lambda module: module.completed_steps + 1 in steps, how)

    return put


@pytest.mark.parametrize("how", [times_nan, plus_infinity], ids=["nan", "inf"])
def test_an_update_that_is_not_finite_is_left_out(how, poisoned, tmp_path, capsys):
    """A loss of infinity has a finite gradient here, of nan none."""
    poisoned({3}, how)
    assert main([*command(tmp_path), *ARGUMENTS]) == 0
    run_dir = tmp_path / "run"
    before, after, later = (state(run_dir, step) for step in (2, 3, 4))
    for part in ("state_dict", "optimizer_states"):
        slots = [
            {**each[part][0], "param_groups": None} if part == "optimizer_states" else each[part]
            for each in (before, after)
        ]
        assert_same(slots[1], slots[0], part)
    assert not torch.equal(later["state_dict"]["policy.lm_head.weight"], after["state_dict"]["policy.lm_head.weight"])
    values = repeated_scalars(run_dir)
    assert values["actor/skipped_updates"] == [(1, 0.0), (2, 0.0), (3, 1.0), (4, 0.0), (5, 0.0)]
    assert [step for step, _ in values["actor/grad_norm"]] == [1, 2, 4, 5]
    assert [value for _, value in values["actor/lr"]] == pytest.approx([1e-4 * 0.5**step for step in range(STEPS)])
    # One push before the first validation and one after each update.
    assert CountingEngine.pushes == 1 + STEPS - 1
    what = "gradient" if how is times_nan else "loss"
    line = f"The {what} of RL step 3 is not finite: this update is left out, number 1 in a row"
    assert capsys.readouterr().out.count(line) == 1


def test_a_run_with_updates_left_out_resumes_to_the_last_bit(poisoned, tmp_path, monkeypatch):
    poisoned({2, 3})
    whole, stopped = tmp_path / "whole", tmp_path / "stopped"
    assert main([*command(whole), *ARGUMENTS]) == 0
    with signal_at(monkeypatch, "end of the step", 2):
        assert main([*command(stopped), *ARGUMENTS]) == 143
    assert state(stopped / "run", 2)["asymgrpo"]["skipped_updates"] == 1
    assert main([*command(stopped), *ARGUMENTS, "--ckpt_path=last"]) == 0
    assert_same(state(stopped / "run", STEPS), state(whole / "run", STEPS))
    found, expected = repeated_scalars(stopped / "run"), repeated_scalars(whole / "run")
    assert {tag: str(values) for tag, values in found.items()} == {tag: str(values) for tag, values in expected.items()}


@pytest.mark.parametrize("resumed", [False, True])
def test_several_in_a_row_stop_the_run_and_leave_the_batch(resumed, poisoned, tmp_path, monkeypatch, capsys):
    poisoned({1, 3, 4, 5})
    run_dir = tmp_path / "run"
    extra = []
    if resumed:
        with signal_at(monkeypatch, "end of the step", 4):
            assert main([*command(tmp_path), *ARGUMENTS]) == 143
        extra = ["--ckpt_path=last"]
    capsys.readouterr()
    assert main([*command(tmp_path), *ARGUMENTS, *extra]) == 1
    path = run_dir / "non_finite/step-00000005.pt"
    error = capsys.readouterr().err
    assert error.startswith("asymgrpo: stopped: 3 updates in a row had a loss or a gradient that is not finite")
    assert str(path) in error
    assert len(error.splitlines()) == 1
    assert_same(state(run_dir, 4)["state_dict"], state(run_dir, 2)["state_dict"])

    report = torch.load(path, weights_only=True)
    assert (report["step"], len(report["ranks"])) == (5, 1)
    (own,) = report["ranks"]
    assert len(own["samples"]) == 18 * 8
    assert torch.isnan(torch.tensor(report["grad_norm"]))
    assert own["losses"].isnan().all()
    assert own["weights_not_finite"] == []
    assert "lm_head.weight" in own["gradients_not_finite"] or "model.embed_tokens.weight" in own["gradients_not_finite"]
    sample = own["samples"][0]
    assert len(sample["rollout_logprobs"]) == len(sample["completion_token_ids"]) == len(sample["old_logprobs"])
    # Of the first nine groups one has each number of right completions, from none to all.
    assert [sum(each["correct"] for each in own["samples"][8 * n : 8 * n + 8]) for n in range(9)] == list(range(9))


def test_a_limit_of_none_is_refused(tmp_path, capsys):
    assert main([*command(tmp_path), "--model.max_skipped_updates=0"]) == 2
    assert capsys.readouterr().err == "asymgrpo: error: model.max_skipped_updates must be at least 1, got 0.\n"


def _killed(name: str) -> int:
    """Kill this process's verifier launcher, or the workers that it forked; how many."""
    launchers = [
        own for own in psutil.Process().children() if any("rewards.pool.launcher" in part for part in own.cmdline())
    ]
    victims = launchers if name == "launcher" else [worker for own in launchers for worker in own.children()]
    for victim in victims:
        with contextlib.suppress(psutil.NoSuchProcess):
            os.kill(victim.pid, signal.SIGKILL)
    return len(victims)


@pytest.mark.parametrize("name", ["launcher", "workers"])
def test_killed_verifier_processes_are_replaced(name, tmp_path, monkeypatch):
    plain, killed = ScriptedEngine.generate, []

    def generate(self, *arguments):
        killed.append(_killed(name))
        return plain(self, *arguments)

    monkeypatch.setattr(rollout, "VLLMEngine", ScriptedEngine)
    isolated = ["--steps=3", "--data.train.init_args.verifier=tests.support.probe_verifiers.Equal"]
    assert main([*command(tmp_path / "whole"), *isolated]) == 0
    monkeypatch.setattr(ScriptedEngine, "generate", generate)
    assert main([*command(tmp_path / "hurt"), *isolated]) == 0
    assert sum(killed) >= 3
    assert_same(state(tmp_path / "hurt/run", 3), state(tmp_path / "whole/run", 3))
    assert repeated_scalars(tmp_path / "hurt/run") == repeated_scalars(tmp_path / "whole/run")


@pytest.mark.long
@pytest.mark.parametrize("how", ["nan", "inf"])
def test_an_update_that_is_not_finite_on_one_rank_is_left_out_on_both(how, tmp_path):
    record = tmp_path / "record.jsonl"
    arguments = [
        *command(tmp_path),
        "--steps=3",
        "--checkpoint.keep=null",
        "--trainer.devices=2",
        "--trainer.strategy=ddp",
        "--trainer.callbacks=tests.support.recorder.Recorder",
        f"--trainer.callbacks.path={record}",
    ]
    run = Started(["-m", "tests.support.stopped_run", *arguments], tmp_path / "log", POISONED=f"2 1 {how}")
    assert run.process.wait(200) == 0, run.text
    assert run.text.count("of RL step 2 is not finite: this update is left out") == 1
    weights = {
        n: {line["weights"] for line in recorded(record) if line["set"] == "train" and line["step"] == n}
        for n in range(3)
    }
    assert [len(each) for each in weights.values()] == [1, 1, 1]
    assert weights[1] == weights[0] != weights[2]
    assert Path(checkpoint_path(tmp_path / "run", 3)).exists()
