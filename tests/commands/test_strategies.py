"""DDP and FSDP2 on two processes: one run whatever the strategy, checkpoints of either layout, and their export."""

import shutil
from collections.abc import Iterable
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM

from asymgrpo_app.callbacks import rollout
from asymgrpo_app.checkpoints.files import read_label
from asymgrpo_app.checkpoints.folder import checkpoint_path, list_checkpoints
from asymgrpo_app.checkpoints.shards import read_whole
from asymgrpo_app.cli import main
from tests.support.events import repeated_scalars
from tests.support.scripted_engine import command
from tests.support.seeded_engine import SeededEngine
from tests.support.states import assert_same
from tests.support.strategy_runs import ADAMW, RUNS, SGD, STEPS, STOP, run
from tests.support.two_processes import on_two_processes

QUICK = ("full", "sharded", "full from sharded", "ddp from sharded")


def made(folder: Path, names: Iterable[str]) -> Path:
    names = list(names)
    for name in names:
        command(folder / name)  # writes the problems, which both processes read
    done = on_two_processes("tests.support.strategy_runs", str(folder), ",".join(names))
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-3000:]
    return folder


@pytest.fixture(scope="module")
def runs(tmp_path_factory) -> Path:
    """Some runs of `strategy_runs`, by name."""
    return made(tmp_path_factory.mktemp("runs"), QUICK)


@pytest.fixture(scope="module")
def all_runs(tmp_path_factory) -> Path:
    """All of them."""
    return made(tmp_path_factory.mktemp("runs"), RUNS)


def state(run_dir: Path, step: int = STEPS) -> dict:
    """Weights, optimizer, schedule and our own entries, of either layout."""
    content = read_whole(checkpoint_path(run_dir, step))
    own = {key: value for key, value in content["asymgrpo"].items() if key != "config"}
    return {name: content[name] for name in ("state_dict", "optimizer_states", "lr_schedulers")} | {"asymgrpo": own}


def distance(one: dict, other: dict) -> float:
    """Largest relative distance of a weight."""
    assert one.keys() == other.keys()
    return max(float((one[name] - other[name]).norm() / other[name].norm()) for name in one)


def goes_on_alike(run_dir: Path, origin: Path) -> float:
    """How far a run is from its origin at the end, as a share of the way since they parted; Adam magnifies rounding."""
    start, end, own = (state(*place)["state_dict"] for place in ((origin, STOP), (origin,), (run_dir,)))
    way = sum(float((end[name] - start[name]).square().sum()) for name in end)
    return (sum(float((end[name] - own[name]).square().sum()) for name in end) / way) ** 0.5


def test_a_run_that_goes_on_is_the_run_that_never_stopped(runs):
    assert_same(state(runs / "full from sharded/run"), state(runs / "full/run"))
    assert goes_on_alike(runs / "ddp from sharded/run", runs / "full/run") < 0.01


@pytest.mark.long
@pytest.mark.parametrize("name", [name for name, (_, origin) in RUNS.items() if origin is not None])
def test_all_runs_that_go_on_are_the_run_that_never_stopped(name, all_runs):
    if name.startswith("ddp"):
        assert goes_on_alike(all_runs / name / "run", all_runs / "full/run") < 0.01
    else:
        assert_same(state(all_runs / name / "run"), state(all_runs / "full/run"))


def test_both_layouts_hold_the_same(runs):
    assert list(list_checkpoints(runs / "sharded/run")) == [1, 2, 3, 4]
    for step in (1, STEPS):
        assert_same(state(runs / "sharded/run", step), state(runs / "full/run", step))
    shards = read_label(checkpoint_path(runs / "sharded/run", STEPS)).shards
    assert sorted(shards.files) == [".metadata", "__0_0.distcp", "__1_0.distcp"]
    assert read_label(checkpoint_path(runs / "full/run", STEPS)).shards is None
    weights = state(runs / "full/run")["state_dict"]
    assert weights["policy.lm_head.weight"].data_ptr() == weights["policy.model.embed_tokens.weight"].data_ptr()


@pytest.mark.long
def test_strategies_make_the_same_run(all_runs, tmp_path, monkeypatch):
    monkeypatch.setattr(rollout, "VLLMEngine", SeededEngine)
    assert run(tmp_path, SGD) == 0
    start = state(tmp_path / "run", 1)["state_dict"]
    alone, expected = state(tmp_path / "run"), repeated_scalars(tmp_path / "run")
    assert distance(alone["state_dict"], start) > 1e-3  # there is something to agree on
    for name in ("ddp with SGD", "fsdp2 with SGD"):
        own = state(all_runs / name / "run")["state_dict"]
        assert own.keys() == alone["state_dict"].keys()
        assert distance(own, alone["state_dict"]) < 1e-5
        found = repeated_scalars(all_runs / name / "run")
        assert found.keys() == expected.keys()
        for tag in expected:
            assert [step for step, _ in found[tag]] == [step for step, _ in expected[tag]]
            for (_, a), (_, b) in zip(found[tag], expected[tag], strict=True):
                assert a == pytest.approx(b, rel=1e-3, abs=1e-4), (name, tag)


def test_one_process_goes_on_with_shards(runs, tmp_path, monkeypatch):
    monkeypatch.setattr(rollout, "VLLMEngine", SeededEngine)
    source = checkpoint_path(runs / "sharded/run", STOP)
    assert run(tmp_path, ADAMW, f"--ckpt_path={source}") == 0
    assert goes_on_alike(tmp_path / "run", runs / "full/run") < 0.01


@pytest.mark.parametrize("name", ["full", "sharded"])
def test_the_export_has_the_weights(name, runs, tmp_path):
    run_dir = runs / name / "run"
    assert main(["export", f"--run_dir={run_dir}", f"--output={tmp_path / 'model'}"]) == 0
    saved = state(run_dir)["state_dict"]
    for folder in (tmp_path / "model", run_dir / "export"):
        model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
        assert type(model).__name__ == "Qwen3ForCausalLM"
        own = model.state_dict()
        assert own.keys() == {key.removeprefix("policy.") for key in saved}
        assert all(torch.equal(own[key.removeprefix("policy.")], value) for key, value in saved.items())


# ---- shards that are not whole ----


def _missing(folder: Path) -> None:
    (folder / "__1_0.distcp").unlink()


def _cut(folder: Path) -> None:
    path = folder / "__0_0.distcp"
    path.write_bytes(path.read_bytes()[:-1])


def _flipped(folder: Path) -> None:
    path = folder / "__1_0.distcp"
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


def _gone(folder: Path) -> None:
    shutil.rmtree(folder)


@pytest.mark.parametrize("damage", [_missing, _cut, _flipped, _gone])
def test_shards_that_are_not_whole_are_passed_over(damage, runs, tmp_path, capsys):
    shutil.copytree(runs / "sharded/run", tmp_path / "run")
    newest = checkpoint_path(tmp_path / "run", STEPS)
    damage(newest.parent / read_label(newest).shards.folder)
    assert main(["export", f"--run_dir={tmp_path / 'run'}", f"--ckpt_path={newest}"]) == 2
    assert f"--ckpt_path {newest}: not a checkpoint of asymgrpo, or damaged: step-" in capsys.readouterr().err
    assert main(["export", f"--run_dir={tmp_path / 'run'}"]) == 0
    said = capsys.readouterr().out
    assert f"Skipped: {newest.name}: step-" in said
    assert f"The policy of {checkpoint_path(tmp_path / 'run', STEPS - 1)} is in " in said


def test_shards_without_their_file_are_removed_by_the_next_run(runs, tmp_path, monkeypatch):
    monkeypatch.setattr(rollout, "VLLMEngine", SeededEngine)
    shutil.copytree(runs / "sharded/run", tmp_path / "run")
    newest = checkpoint_path(tmp_path / "run", STEPS)
    newest.unlink()  # as if the process had been killed before it wrote this
    before = sorted(own.name for own in newest.parent.glob("*.shards*"))
    assert run(tmp_path, ADAMW, "--ckpt_path=last") == 0
    after = sorted(own.name for own in newest.parent.glob("*.shards*"))
    assert after == before[:-1]
    assert read_label(newest).shards is None  # one process wrote it anew, whole


def test_what_goes_with_one_strategy_alone_is_refused(tmp_path, capsys):
    refusals = {
        "--checkpoint.layout=sharded": "checkpoint.layout is sharded, but",
        "--trainer.strategy=fsdp": "trainer.strategy fsdp is not supported: use ddp, or fsdp2 to shard weights.",
        "--trainer.strategy=deepspeed_stage_2": "trainer.strategy deepspeed_stage_2 is not supported",
        "--trainer.strategy=model_parallel": "trainer.strategy model_parallel is not supported",
        "--trainer.strategy={class_path: lightning.pytorch.strategies.ModelParallelStrategy}": (
            "trainer.strategy ModelParallelStrategy is not supported: use ddp, or fsdp2 to shard weights."
        ),
    }
    for option, sentence in refusals.items():
        assert run(tmp_path, option) == 2
        assert sentence in capsys.readouterr().err
    adafactor = "--model.optimizer={class_path: torch.optim.Adafactor, init_args: {lr: 0.001}}"
    assert run(tmp_path, "--trainer.strategy=fsdp2", adafactor) == 2
    assert "model.optimizer Adafactor keeps row_var of another shape than the weight's" in capsys.readouterr().err
    assert run(tmp_path, "--trainer.strategy=fsdp2", "--model.lora={}") == 2
    assert "model.lora does not go with trainer.strategy fsdp2" in capsys.readouterr().err
