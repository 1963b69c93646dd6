"""A run that is stopped anywhere and resumed is, to the last bit, the run that was not stopped.

The sampler answers by seed. With real vLLM a run goes on from the end of a step and from within an update in
test_training.py, and from anywhere in test_kill_loop.py.
"""

import signal
from pathlib import Path

import pytest
import torch

from asymgrpo_app.callbacks import rollout
from asymgrpo_app.cli import main
from tests.support.events import repeated_scalars
from tests.support.everything import GROUP, STEPS, everything
from tests.support.paths import QUICKSTART
from tests.support.seeded_engine import SeededEngine
from tests.support.states import assert_same, saved_steps, state
from tests.support.stopping import signal_at

pytestmark = pytest.mark.filterwarnings("ignore:.*LeafSpec")

IN_A_STEP, IN_A_VALIDATION = 8 * GROUP, 9 * 5
"""Requests of one call of the sampler; those of a refill are a multiple of four below 32."""


class StoppedEngine(SeededEngine):
    """Asks its process to stop in a call for so many requests; `calls` is what is left of them until then."""

    stop_at: "dict[int, int]" = {}  # noqa: RUF012 (set by the test)
    signum = signal.SIGTERM

    def generate(self, requests, settings):
        kind = len(requests) if len(requests) in (IN_A_STEP, IN_A_VALIDATION) else 0
        if kind in self.stop_at:
            self.stop_at[kind] -= 1
            if self.stop_at[kind] == 0:
                signal.raise_signal(self.signum)
        return super().generate(requests, settings)


@pytest.fixture(autouse=True)
def _seeded(monkeypatch):
    monkeypatch.setattr(rollout, "VLLMEngine", SeededEngine)


@pytest.fixture(scope="module")
def config(tmp_path_factory) -> Path:
    return everything(tmp_path_factory.mktemp("config"))


@pytest.fixture
def command(config, tmp_path) -> list[str]:
    return ["fit", *QUICKSTART, f"--config={config}", f"--run_dir={tmp_path / 'run'}"]


@pytest.fixture
def run_dir(tmp_path) -> Path:
    return tmp_path / "run"


@pytest.fixture(scope="module")
def undisturbed(config, tmp_path_factory) -> Path:
    """The run that nobody stops; a checkpoint of every step."""
    folder = tmp_path_factory.mktemp("runs") / "undisturbed"
    all_kept = ["--checkpoint.every_n_steps=1", "--checkpoint.keep=null"]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(rollout, "VLLMEngine", SeededEngine)
        assert main(["fit", *QUICKSTART, f"--config={config}", f"--run_dir={folder}", *all_kept]) == 0
    return folder


def assert_is(run_dir: Path, undisturbed: Path) -> None:
    """The whole run is the undisturbed one."""
    assert_same(state(run_dir, STEPS), state(undisturbed, STEPS))
    assert repeated_scalars(run_dir) == repeated_scalars(undisturbed)


def test_the_run_has_what_the_proof_is_about(undisturbed):
    values = repeated_scalars(undisturbed)
    assert [step for step, _ in values["reward/epoch_solved_none"]] == [3, 5]
    assert sum(value for _, value in values["dynamic_sampling/extra_completions"]) > 0
    assert len({value for _, value in values["actor/lr"]}) == STEPS
    assert len({value for _, value in values["actor/entropy_coef"]}) > 2
    assert [step for step, _ in values["val/held_out/avg@5"]] == [0, 2, 4, 6]
    first, last = state(undisturbed, 1)["state_dict"], state(undisturbed, STEPS)["state_dict"]
    assert all(not torch.equal(first[name], last[name]) for name in first)
    (optimizer,) = state(undisturbed, STEPS)["optimizer_states"]
    assert {float(slot["step"]) for slot in optimizer["state"].values()} == {2.0 * STEPS}


def test_stopped_at_a_step_boundary(command, undisturbed, run_dir):
    assert main([*command, "--steps=3"]) == 0
    # The last step of a run is validated; the longer run had no validation there.
    assert main([*command, "--ckpt_path=last"]) == 0
    assert_same(state(run_dir, STEPS), state(undisturbed, STEPS))
    found, expected = repeated_scalars(run_dir), repeated_scalars(undisturbed)
    assert found.keys() == expected.keys()
    for tag in expected:
        assert [entry for entry in found[tag] if not (tag.startswith("val/") and entry[0] == 3)] == expected[tag], tag


# Moment, number of the call, and the step whose state is kept. A step has 2 updates of one micro-batch each.
STOPS = {
    "backward": ("backward", 5, 2),
    "backward of the second update": ("backward", 6, 3),
    "between two updates": ("between two updates", 5, 3),
    "after the last update": ("between two updates", 6, 3),
    "end of the step": ("end of the step", 3, 3),
    "end of a step with a validation": ("end of the step", 4, 4),
    "last step": ("end of the step", 6, 6),
    "validation": ("validation", 3, 4),
    "last validation": ("validation", 4, 6),
    "end of validation": ("end of validation", 2, 2),
}
QUICK = ("backward of the second update", "after the last update", "end of a step with a validation", "last validation")


@pytest.mark.parametrize(
    "name", [name if name in QUICK else pytest.param(name, marks=pytest.mark.long) for name in STOPS]
)
def test_stopped_by_sigterm(name, command, undisturbed, run_dir, monkeypatch, capsys):
    moment, number, kept_step = STOPS[name]
    with signal_at(monkeypatch, moment, number):
        assert main(command) == 143
    assert f"RL step {kept_step} of 6 is done and saved in " in capsys.readouterr().err
    assert saved_steps(run_dir) == [kept_step]
    assert_same(state(run_dir, kept_step), state(undisturbed, kept_step))
    assert main([*command, "--ckpt_path=last"]) == 0
    assert_is(run_dir, undisturbed)
    assert (run_dir / "export/model.safetensors").exists()


@pytest.mark.parametrize("moment", ["before saving", "after saving"])
def test_stopped_while_saving(moment, command, undisturbed, run_dir, monkeypatch):
    with signal_at(monkeypatch, moment, 3):
        assert main([*command, "--checkpoint.every_n_steps=1"]) == 143
    assert max(saved_steps(run_dir)) == 3
    assert main([*command, "--ckpt_path=last"]) == 0
    assert_is(run_dir, undisturbed)


@pytest.mark.parametrize("signum", [signal.SIGTERM, pytest.param(signal.SIGINT, marks=pytest.mark.long)])
def test_stopped_while_sampling_twice(signum, command, undisturbed, run_dir, monkeypatch):
    """First in a step's rollouts, then, in the run that goes on, in a refill of dynamic sampling."""
    monkeypatch.setattr(StoppedEngine, "signum", signum)
    monkeypatch.setattr(rollout, "VLLMEngine", StoppedEngine)
    stopped_at = []
    for kind, number, extra in ((IN_A_STEP, 2, []), (0, 1, ["--ckpt_path=last"])):
        monkeypatch.setattr(StoppedEngine, "stop_at", {kind: number})
        assert main([*command, *extra]) == 128 + signum
        stopped_at.append(max(saved_steps(run_dir)))
        assert_same(state(run_dir, stopped_at[-1]), state(undisturbed, stopped_at[-1]))
    assert stopped_at[0] == 1
    assert 1 <= stopped_at[1] < STEPS
    monkeypatch.setattr(StoppedEngine, "stop_at", {})
    assert main([*command, "--ckpt_path=last"]) == 0
    assert_is(run_dir, undisturbed)


def test_stopped_before_the_first_step_is_done(command, undisturbed, run_dir, monkeypatch, capsys):
    with signal_at(monkeypatch, "validation", 1):
        assert main(command) == 143
    assert "No step was complete yet" in capsys.readouterr().err
    assert saved_steps(run_dir) == []
    assert main([*command, "--ckpt_path=last"]) == 0
    assert_is(run_dir, undisturbed)
