"""Every overlay in configs/ trains on real vLLM; one engine serves all runs, since starting it is most of the time."""

import math

import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from asymgrpo_app.cli import main
from tests.conftest import REPOSITORY

METHODS = sorted(path.stem for path in (REPOSITORY / "configs/methods").glob("*.yaml"))
SMALL = ["--steps=2", "--data.prompts_per_step=8", "--trainer.limit_val_batches=0"]


def scalars(run_dir) -> dict[str, list[float]]:
    events = EventAccumulator(str(run_dir / "tensorboard")).Reload()
    return {tag: [e.value for e in events.Scalars(tag)] for tag in events.Tags()["scalars"]}


@pytest.mark.usefixtures("shared_engine")
@pytest.mark.parametrize("method", METHODS)
def test_method_trains_two_steps(method, quickstart, tmp_path):
    overlay = f"--config={REPOSITORY / f'configs/methods/{method}.yaml'}"
    assert main([*quickstart, overlay, *SMALL, f"--run_dir={tmp_path / 'run'}"]) == 0
    values = scalars(tmp_path / "run")
    assert len(values["reward/mean"]) == 2
    assert all(math.isfinite(value) for series in values.values() for value in series)
    assert max(values["rollout_corr/logprob_abs_diff_max"]) < 1e-4
    assert all(value > 0 for value in values["actor/grad_norm"])


@pytest.mark.usefixtures("shared_engine")
def test_dynamic_sampling_replaces_groups_and_says_what_it_cost(quickstart, tmp_path):
    overlay = f"--config={REPOSITORY / 'configs/methods/dapo.yaml'}"
    assert main([*quickstart, overlay, *SMALL, f"--run_dir={tmp_path / 'run'}"]) == 0
    values = scalars(tmp_path / "run")
    for step in range(2):
        unfilled = values["dynamic_sampling/unfilled"][step]
        extra = values["dynamic_sampling/extra_completions"][step]
        # With 8 prompts: groups with a signal among the 8 first ones and the replacements.
        assert values["dynamic_sampling/acceptance_rate"][step] == pytest.approx((1 - unfilled) / (1 + extra / 8))
        assert values["reward/mixed"][step] == pytest.approx(1 - unfilled)
    assert max(values["dynamic_sampling/extra_completions"]) > 0
    assert max(values["dynamic_sampling/rounds"]) <= 4


@pytest.mark.usefixtures("shared_engine")
def test_debugging_overlays_run(quickstart, tmp_path):
    folder = REPOSITORY / "configs/debug"
    assert main([*quickstart, f"--config={folder / 'two_steps.yaml'}", f"--run_dir={tmp_path / 'two'}"]) == 0
    assert main([*quickstart, f"--config={folder / 'profile.yaml'}", f"--run_dir={tmp_path / 'profile'}"]) == 0
    table = (tmp_path / "profile/tensorboard/fit-profile.txt").read_text()
    assert "VLLMRolloutCallback.on_train_batch_start" in table
    overlay = f"--config={folder / 'overfit_one_batch.yaml'}"
    assert main([*quickstart, overlay, f"--run_dir={tmp_path / 'overfit'}"]) == 0
    accuracy = scalars(tmp_path / "overfit")["reward/mean"]
    assert len(accuracy) == 60
    assert sum(accuracy[-5:]) / 5 > sum(accuracy[:5]) / 5 + 0.15
