"""A run that is stopped anywhere and goes on is the run that nobody stopped, to the last bit; with real vLLM."""

import json
import signal
from pathlib import Path

import pytest
import torch

from asymgrpo_app.callbacks import rollout
from asymgrpo_app.checkpoints.folder import list_checkpoints
from asymgrpo_app.cli import main
from asymgrpo_app.prompts import Countdown
from tests.stopping import MOMENTS, assert_same, interrupted, scalars, state

pytestmark = [
    pytest.mark.usefixtures("shared_engine"),
    pytest.mark.filterwarnings("ignore:.*LeafSpec"),
]

STEPS = 6
ROWS = 20  # of 8 prompts a step: the first pass ends in the third step, the second in the fifth


class Sampler:
    """The module's engine, with another `generate` by the number of requests: 64 in a step, 32 in a validation."""

    keeps_weights = True

    def __init__(self, engine, generate_for):
        self.load_weights, self.digest, self.generate_for = engine.load_weights, engine.digest, generate_for

    def generate(self, requests, settings):
        return self.generate_for(len(requests))(requests, settings)

    def close(self):
        """The engine stays."""


@pytest.fixture(scope="module")
def config(tmp_path_factory) -> Path:
    """Everything that carries state from step to step: a source that ends, refills, two updates, schedules."""
    folder = tmp_path_factory.mktemp("config")
    problems = [Countdown("train").at(number, 0) for number in range(ROWS)]
    lines = [json.dumps({"prompt": problem.text, **problem.row}) for problem in problems]
    (folder / "problems.jsonl").write_text("\n".join(lines))
    verifier = "asymgrpo_app.rewards.CountdownVerifier"
    source = {
        "class_path": "asymgrpo_app.prompts.JsonLines",
        "init_args": {"path": str(folder / "problems.jsonl"), "verifier": verifier},
    }
    held_out = {"class_path": "asymgrpo_app.prompts.Countdown", "init_args": {"split": "validation"}}
    settings = {
        "steps": STEPS,
        "model": {
            "updates_per_step": 2,
            "loss": {"adaptive_entropy": {"coef": 0.001, "target": 5.0, "delta": 0.001, "max_coef": 1.0}},
            "optimizer": {"class_path": "torch.optim.AdamW", "init_args": {"lr": 1e-3, "weight_decay": 0.1}},
            "lr_scheduler": {
                "class_path": "torch.optim.lr_scheduler.StepLR",
                "init_args": {"step_size": 1, "gamma": 0.9},
            },
        },
        "data": {
            "train": source,
            "prompts_per_step": 8,
            "validation": {"countdown": {"source": held_out, "limit": 8, "samples": 4, "pass_at": [1, 4]}},
        },
        "rollout": {"dynamic_sampling": {"max_rounds": 1}},
        "checkpoint": {"every_n_steps": 100},
        "tensorboard": {"every_n_steps": 2, "change_completions": 8},
        "trainer": {"val_check_interval": 2},
    }
    path = folder / "everything.yaml"
    path.write_text(json.dumps(settings))
    return path


@pytest.fixture
def command(quickstart, config) -> list[str]:
    return [*quickstart, f"--config={config}"]


@pytest.fixture(scope="module")
def undisturbed(config, engine, tmp_path_factory):
    """The run that nobody stops; a checkpoint of every step."""
    from tests.conftest import REPOSITORY, kept

    run_dir = tmp_path_factory.mktemp("runs") / "undisturbed"
    arguments = [
        f"--config={REPOSITORY / 'configs/quickstart.yaml'}",
        f"--model.policy={REPOSITORY / 'data/countdown_base'}",
        f"--config={config}",
        f"--run_dir={run_dir}",
        "--checkpoint.every_n_steps=1",
        "--checkpoint.keep=null",
    ]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(rollout, "VLLMEngine", lambda *_: kept(engine))
        assert main(["fit", *arguments]) == 0
    return run_dir


def assert_is(run_dir: Path, undisturbed: Path) -> None:
    """The whole run is the undisturbed one."""
    assert_same(state(run_dir, STEPS), state(undisturbed, STEPS))
    assert scalars(run_dir) == scalars(undisturbed)


def test_the_run_has_what_the_proof_is_about(undisturbed):
    values = scalars(undisturbed)
    assert [step for step, _ in values["reward/epoch_solved_none"]] == [3, 5]
    assert sum(value for _, value in values["dynamic_sampling/extra_completions"]) > 0
    assert len({value for _, value in values["actor/lr"]}) == STEPS
    assert len({value for _, value in values["actor/entropy_coef"]}) > 2
    assert [step for step, _ in values["val/countdown/avg@4"]] == [0, 2, 4, 6]
    first, last = state(undisturbed, 1)["state_dict"], state(undisturbed, STEPS)["state_dict"]
    assert all(not torch.equal(first[name], last[name]) for name in first)
    (optimizer,) = state(undisturbed, STEPS)["optimizer_states"]
    assert {float(slot["step"]) for slot in optimizer["state"].values()} == {2.0 * STEPS}


def test_stopped_at_a_step_boundary(command, undisturbed, tmp_path):
    run_dir = tmp_path / "run"
    assert main([*command, f"--run_dir={run_dir}", "--steps=3"]) == 0
    # The last step of a run is validated; the longer run had no validation there.
    assert main([*command, f"--run_dir={run_dir}", "--ckpt_path=last"]) == 0
    assert_same(state(run_dir, STEPS), state(undisturbed, STEPS))
    found, expected = scalars(run_dir), scalars(undisturbed)
    assert found.keys() == expected.keys()
    for tag in expected:
        assert [entry for entry in found[tag] if not (tag.startswith("val/") and entry[0] == 3)] == expected[tag], tag


# Moment, number of the call, and the step whose state is kept. A step has 2 updates of one micro-batch each.
STOPS = {
    "backward": ("backward", 5, 2),
    "backward of the second update": ("backward", 6, 3),
    "between two updates": ("between two updates", 5, 3),
    "end of the step": ("end of the step", 3, 3),
    "end of a step with a validation": ("end of the step", 4, 4),
    "last step": ("end of the step", 6, 6),
    "validation": ("validation", 3, 4),
    "last validation": ("validation", 4, 6),
    "end of validation": ("end of validation", 2, 2),
}


QUICK = ("backward of the second update", "between two updates", "end of a step with a validation", "last validation")


@pytest.mark.parametrize(
    "name", [name if name in QUICK else pytest.param(name, marks=pytest.mark.long) for name in STOPS]
)
def test_stopped_by_sigterm(name, command, undisturbed, tmp_path, monkeypatch, capsys):
    moment, number, kept_step = STOPS[name]
    owner, function, when = MOMENTS[moment]
    run_dir = tmp_path / "run"
    with monkeypatch.context() as patch:
        patch.setattr(owner, function, interrupted(getattr(owner, function), number, when))
        assert main([*command, f"--run_dir={run_dir}"]) == 143
    assert f"RL step {kept_step} of 6 is done and saved in " in capsys.readouterr().err
    assert list(list_checkpoints(run_dir)) == [kept_step]
    assert_same(state(run_dir, kept_step), state(undisturbed, kept_step))
    assert main([*command, f"--run_dir={run_dir}", "--ckpt_path=last"]) == 0
    assert_is(run_dir, undisturbed)
    assert (run_dir / "export/model.safetensors").exists()


@pytest.mark.parametrize("moment", ["before saving", "after saving"])
def test_stopped_while_saving(moment, command, undisturbed, tmp_path, monkeypatch):
    owner, function, when = MOMENTS[moment]
    run_dir = tmp_path / "run"
    with monkeypatch.context() as patch:
        patch.setattr(owner, function, interrupted(getattr(owner, function), 3, when))
        assert main([*command, f"--run_dir={run_dir}", "--checkpoint.every_n_steps=1"]) == 143
    assert max(list_checkpoints(run_dir)) == 3
    assert main([*command, f"--run_dir={run_dir}", "--ckpt_path=last"]) == 0
    assert_is(run_dir, undisturbed)


@pytest.mark.parametrize("signum", [signal.SIGTERM, pytest.param(signal.SIGINT, marks=pytest.mark.long)])
def test_stopped_while_sampling_twice(signum, command, engine, undisturbed, tmp_path, monkeypatch):
    """First in a step's rollouts, then, in the run that goes on, in a refill of dynamic sampling."""
    run_dir = tmp_path / "run"
    stop = interrupted(engine.generate, 2, "before", signum)
    whole_steps = Sampler(engine, lambda number: stop if number == 64 else engine.generate)
    refill = interrupted(engine.generate, 1, "before", signum)
    refills = Sampler(engine, lambda number: refill if number % 8 == 0 and number not in (32, 64) else engine.generate)
    stopped_at = []
    for own, extra in ((whole_steps, []), (refills, ["--ckpt_path=last"])):
        with monkeypatch.context() as patch:
            patch.setattr(rollout, "VLLMEngine", lambda *_, own=own: own)
            assert main([*command, f"--run_dir={run_dir}", *extra]) == 128 + signum
        stopped_at.append(max(list_checkpoints(run_dir)))
        assert_same(state(run_dir, stopped_at[-1]), state(undisturbed, stopped_at[-1]))
    assert stopped_at[0] == 1
    assert 1 <= stopped_at[1] < STEPS
    assert main([*command, f"--run_dir={run_dir}", "--ckpt_path=last"]) == 0
    assert_is(run_dir, undisturbed)


def test_stopped_before_the_first_step_is_done(command, undisturbed, tmp_path, monkeypatch, capsys):
    run_dir = tmp_path / "run"
    with monkeypatch.context() as patch:
        owner, function, when = MOMENTS["validation"]
        patch.setattr(owner, function, interrupted(getattr(owner, function), 1, when))
        assert main([*command, f"--run_dir={run_dir}"]) == 143
    assert "No step was complete yet" in capsys.readouterr().err
    assert list_checkpoints(run_dir) == {}
    assert main([*command, f"--run_dir={run_dir}", "--ckpt_path=last"]) == 0
    assert_is(run_dir, undisturbed)
