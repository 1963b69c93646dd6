"""Two processes with an engine each sample together what one process samples, and become the same policy."""

import subprocess
import sys
from pathlib import Path

import pytest
from safetensors.torch import load_file

from tests.support.events import repeated_scalars
from tests.support.paths import QUICKSTART, REPOSITORY
from tests.support.recorder import recorded

STEPS = 3


def fit(folder: Path, *options: str) -> list[dict]:
    """A run of its own processes; what it recorded."""
    folder.mkdir()
    command = [
        *[sys.executable, "-m", "asymgrpo_app", "fit", *QUICKSTART],
        f"--run_dir={folder / 'run'}",
        f"--steps={STEPS}",
        "--data.prompts_per_step=16",
        "--data.validation={}",
        "--model.optimizer={class_path: torch.optim.SGD, init_args: {lr: 0.1}}",
        "--rollout.engine.max_num_seqs=128",
        "--trainer.accelerator=cpu",
        "--trainer.callbacks=tests.support.recorder.Recorder",
        f"--trainer.callbacks.path={folder / 'record.jsonl'}",
        *options,
    ]
    done = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, timeout=540)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    return recorded(folder / "record.jsonl")


def completions(lines: list[dict], step: int) -> dict[tuple[int, ...], list[list[int]]]:
    """The completions of a step by prompt."""
    return {
        tuple(prompt): [tokens for tokens, _, _ in group]
        for line in lines
        if line["step"] == step
        for prompt, group in zip(line["prompts"], line["groups"], strict=True)
    }


@pytest.fixture(scope="module")
def alone(tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs") / "alone"
    return fit(folder), folder / "run"


def check(lines: list[dict], alone: list[dict], processes: int = 2) -> None:
    for step in range(STEPS):
        own = [line for line in lines if line["step"] == step]
        assert sorted(line["rank"] for line in own) == [*range(processes)]
        assert {len(line["prompts"]) for line in own} == {16 // processes}
        assert len({line["weights"] for line in own}) == 1  # to the last bit
        assert completions(lines, step) == completions(alone, step)
    assert len({line["weights"] for line in lines}) == STEPS  # they do change


def check_results(run_dir: Path, alone: Path) -> None:
    """The exported weights, and the scalars, are those of one process."""
    own, expected = (load_file(folder / "export/model.safetensors") for folder in (run_dir, alone))
    assert own.keys() == expected.keys()
    for name in own:
        assert float((own[name] - expected[name]).norm() / expected[name].norm()) < 1e-5, name
    values, wanted = repeated_scalars(run_dir), repeated_scalars(alone)
    assert values.keys() == wanted.keys()
    for tag in wanted:
        for (step, a), (_, b) in zip(values[tag], wanted[tag], strict=True):
            assert a == pytest.approx(b, rel=1e-3, abs=1e-4), (tag, step)


@pytest.mark.long
@pytest.mark.parametrize("strategy", ["ddp", "fsdp2"])
def test_two_processes_with_an_engine_each_make_the_run_of_one(strategy, alone, tmp_path):
    run_dir = tmp_path / "two/run"
    check(fit(tmp_path / "two", "--trainer.devices=2", f"--trainer.strategy={strategy}"), alone[0])
    check_results(run_dir, alone[1])


@pytest.mark.long
@pytest.mark.parametrize("strategy", ["ddp", "fsdp2"])
def test_two_processes_that_share_an_engine_sample_what_one_samples(strategy, alone, tmp_path):
    options = ["--trainer.devices=2", f"--trainer.strategy={strategy}", "--rollout.engine.tensor_parallel_size=2"]
    check(fit(tmp_path / "shared", *options), alone[0])


@pytest.mark.long
def test_an_engine_that_fails_on_one_process_is_started_anew_there_and_the_run_is_the_same(alone, tmp_path):
    options = ["--trainer.devices=2", "--trainer.strategy=ddp"]
    lines = fit(tmp_path / "failed", *options, "--trainer.callbacks+=tests.support.failing_engine.FailsOnce")
    check(lines, alone[0])
    check_results(tmp_path / "failed/run", alone[1])


@pytest.mark.long
def test_two_groups_of_processes_that_share_an_engine_sample_what_one_process_samples(alone, tmp_path):
    options = ["--trainer.devices=4", "--trainer.strategy=ddp", "--rollout.engine.tensor_parallel_size=2"]
    check(fit(tmp_path / "groups", *options), alone[0], processes=4)
