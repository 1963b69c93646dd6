"""Overlays of configs/ on real vLLM. What each computes has its numbers in test_methods.py."""

import math

import pytest

from asymgrpo_app.cli import main
from tests.support.events import values
from tests.support.paths import REPOSITORY
from tests.support.scripted_engine import fit

METHODS = sorted(path.stem for path in (REPOSITORY / "configs/methods").glob("*.yaml"))
OTHER_PATHS = ("asymgrpo", "dapo", "sampler_correction")
"""The plain one, and those that differ in what happens outside of the update: refills, the sampler's part."""
SMALL = ["--steps=2", "--data.prompts_per_step=8", "--trainer.limit_val_batches=0"]


@pytest.mark.usefixtures("shared_engine")
@pytest.mark.parametrize(
    "method", [name if name in OTHER_PATHS else pytest.param(name, marks=pytest.mark.long) for name in METHODS]
)
def test_method_trains_two_steps(method, quickstart, tmp_path):
    overlay = f"--config={REPOSITORY / f'configs/methods/{method}.yaml'}"
    assert main([*quickstart, overlay, *SMALL, f"--run_dir={tmp_path / 'run'}"]) == 0
    found = values(tmp_path / "run")
    assert len(found["reward/mean"]) == 2
    assert all(math.isfinite(value) for series in found.values() for value in series)
    assert max(found["rollout_corr/logprob_abs_diff_max"]) < 1e-4
    assert all(value > 0 for value in found["actor/grad_norm"])
    if method == "dapo":
        assert_refills_add_up(found)


def assert_refills_add_up(found: dict[str, list[float]]) -> None:
    """With 8 prompts: groups with a signal among the 8 first ones and the replacements."""
    for step in range(2):
        unfilled = found["dynamic_sampling/unfilled"][step]
        extra = found["dynamic_sampling/extra_completions"][step]
        assert found["dynamic_sampling/acceptance_rate"][step] == pytest.approx((1 - unfilled) / (1 + extra / 8))
        assert found["reward/mixed"][step] == pytest.approx(1 - unfilled)
    assert max(found["dynamic_sampling/extra_completions"]) > 0
    assert max(found["dynamic_sampling/rounds"]) <= 4


def test_debugging_overlays_run(monkeypatch, tmp_path):
    folder = REPOSITORY / "configs/debug"
    fit(monkeypatch, tmp_path / "two", f"--config={folder / 'two_steps.yaml'}")
    fit(monkeypatch, tmp_path, f"--config={folder / 'profile.yaml'}", "--steps=2", f"--run_dir={tmp_path / 'profile'}")
    table = (tmp_path / "profile/tensorboard/fit-profile.txt").read_text()
    assert "VLLMRolloutCallback.on_train_batch_start" in table


@pytest.mark.usefixtures("shared_engine")
def test_a_policy_overfits_one_batch(quickstart, tmp_path):
    """The shortest proof that training learns; at four times the quick start's rate it takes fewer steps."""
    overlay = f"--config={REPOSITORY / 'configs/debug/overfit_one_batch.yaml'}"
    quick = ["--steps=18", "--model.optimizer.lr=4e-4", "--tensorboard.every_n_steps=100"]
    assert main([*quickstart, overlay, *quick, f"--run_dir={tmp_path / 'overfit'}"]) == 0
    accuracy = values(tmp_path / "overfit")["reward/mean"]
    assert len(accuracy) == 18
    assert sum(accuracy[-4:]) / 4 > sum(accuracy[:4]) / 4 + 0.15


@pytest.mark.long
@pytest.mark.usefixtures("shared_engine")
def test_a_policy_overfits_one_batch_with_the_overlay_as_it_is(quickstart, tmp_path):
    overlay = f"--config={REPOSITORY / 'configs/debug/overfit_one_batch.yaml'}"
    assert main([*quickstart, overlay, f"--run_dir={tmp_path / 'overfit'}"]) == 0
    accuracy = values(tmp_path / "overfit")["reward/mean"]
    assert len(accuracy) == 60
    assert sum(accuracy[-5:]) / 5 > sum(accuracy[:5]) / 5 + 0.15
