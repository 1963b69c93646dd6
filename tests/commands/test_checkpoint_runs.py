"""Whole runs whose checkpoints break, cannot be written, or belong to another config. The sampler is a script."""

import os
import resource
import subprocess
import sys
from collections.abc import Iterable, Iterator
from functools import partial
from pathlib import Path

import pytest
import torch
import transformers
import yaml

from asymgrpo_app.checkpoints import files
from asymgrpo_app.checkpoints.files import Label, read_label
from asymgrpo_app.checkpoints.folder import list_checkpoints
from asymgrpo_app.checkpoints.run_folder import claimed
from asymgrpo_app.cli import main
from asymgrpo_app.module import AsymGRPOModule
from tests.support import killed_saves
from tests.support.checkpoint_files import DAMAGES, forge
from tests.support.events import repeated_scalars, steps_of_details
from tests.support.paths import REPOSITORY
from tests.support.scripted_engine import POLICY, ScriptedEngine, command
from tests.support.states import assert_same, content, saved_steps, weights
from tests.support.two_processes import on_two_processes

WITHOUT_VALIDATION = "--trainer.limit_val_batches=0"


@pytest.fixture(autouse=True)
def _scripted(monkeypatch):
    monkeypatch.setattr("asymgrpo_app.callbacks.rollout.VLLMEngine", ScriptedEngine)


@pytest.fixture
def fit(tmp_path, capsys):
    """Run `asymgrpo fit` in `tmp_path/run`; its exit code, and what it said on stdout and stderr."""

    def run(*arguments: str) -> tuple[int, str, str]:
        capsys.readouterr()
        code = main([*command(tmp_path), *arguments])
        said = capsys.readouterr()
        return code, said.out, said.err

    return run


def leftovers(run_dir: Path) -> list[str]:
    return [str(path) for path in run_dir.rglob("*.part")]


# ---- killed while it saves ----


QUICK_KILLS = ("before renaming", "after renaming", "before removing")


def _killed(folder: Path, names: Iterable[str]) -> Path:
    """Runs that were killed, by name."""
    result = subprocess.run(
        [sys.executable, "-m", "tests.support.killed_saves", str(folder), *names],
        cwd=REPOSITORY,
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert result.returncode == 0, result.stderr[-3000:]
    return folder


@pytest.fixture(scope="module")
def killed(tmp_path_factory) -> Path:
    return _killed(tmp_path_factory.mktemp("killed"), QUICK_KILLS)


@pytest.fixture(scope="module")
def all_killed(tmp_path_factory) -> Path:
    return _killed(tmp_path_factory.mktemp("all_killed"), killed_saves.KILLS)


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory) -> Iterator[Path]:
    folder = tmp_path_factory.mktemp("undisturbed")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("asymgrpo_app.callbacks.rollout.VLLMEngine", ScriptedEngine)
        assert killed_saves.run(folder) == 0
    return folder / "run"


@pytest.mark.parametrize("name", QUICK_KILLS)
def test_a_run_killed_while_it_saves_goes_on_as_if_nothing_had_happened(killed, undisturbed, name, capsys):
    assert_goes_on(killed / name, undisturbed, name, capsys)


@pytest.mark.long
@pytest.mark.parametrize("name", killed_saves.KILLS)
def test_whenever_it_is_killed_it_goes_on_as_if_nothing_had_happened(all_killed, undisturbed, name, capsys):
    assert_goes_on(all_killed / name, undisturbed, name, capsys)


def assert_goes_on(folder: Path, undisturbed: Path, name: str, capsys) -> None:
    _, first = killed_saves.KILLS[name]
    arguments = [*command(folder, killed_saves.ROWS), *killed_saves.ARGUMENTS, "--ckpt_path=last"]
    assert main(arguments) == 0
    said = capsys.readouterr().out
    assert ("no checkpoint" in said) == (first == 0)
    run = folder / "run"
    assert saved_steps(run) == [killed_saves.STEPS]
    assert leftovers(run) == []
    assert not list((run / "checkpoints").glob("*.abandoned*"))
    final, resumed = content(undisturbed, killed_saves.STEPS), content(run, killed_saves.STEPS)
    for key in ("state_dict", "optimizer_states", "callbacks", "lr_schedulers", "PromptDataModule", "loops"):
        assert_same(resumed[key], final[key], key)
    assert {**resumed["asymgrpo"], "config": ""} == {**final["asymgrpo"], "config": ""}

    assert repeated_scalars(run) == repeated_scalars(undisturbed)
    expected = steps_of_details(undisturbed)
    assert expected["samples/text_summary"] == [1, 2, 3, 4]
    expected["config/text_summary"] = [0, first + 1] if first else [0]
    assert steps_of_details(run) == expected
    assert sorted(path.name for path in run.glob("config*")) == ["config.yaml"]  # the same one, so it is written once


# ---- damaged ----


def test_last_says_what_it_skips_and_makes_the_steps_again(fit, tmp_path):
    run = tmp_path / "run"
    details = "--tensorboard.every_n_steps=1"
    assert fit("--steps=3", "--checkpoint.keep=null", details)[0] == 0
    final, values = weights(run, 3), repeated_scalars(run)
    DAMAGES["a bit in the tensors"](list_checkpoints(run)[3])
    DAMAGES["cut off in the middle"](list_checkpoints(run)[2])
    code, said, _ = fit("--steps=3", "--ckpt_path=last", details)
    assert code == 0
    assert said.startswith(
        "Skipped: step-00000003.ckpt: its content is not what was written: it does not match its digest.\n"
        "Skipped: step-00000002.ckpt: it is cut off, or something else.\n"
    )
    assert_same(weights(run, 3), final)
    assert repeated_scalars(run) == values
    assert steps_of_details(run)["samples/text_summary"] == [1, 2, 3]
    aside = sorted(path.name for path in (run / "checkpoints").glob("*.abandoned"))
    assert aside == ["step-00000002.ckpt.abandoned", "step-00000003.ckpt.abandoned"]


@pytest.mark.parametrize("verb", ["fit", "validate", "export"])
def test_a_run_without_a_whole_checkpoint_is_not_started_again(fit, tmp_path, capsys, verb):
    run = tmp_path / "run"
    assert fit("--steps=2", WITHOUT_VALIDATION)[0] == 0
    for path in list_checkpoints(run).values():
        DAMAGES["cut off in the middle"](path)
    before = sorted(run.rglob("*"))
    arguments = ["export", f"--run_dir={run}"] if verb == "export" else [verb, *command(tmp_path)[1:], "--steps=2"]
    capsys.readouterr()
    assert main([*arguments, "--ckpt_path=last"]) == 2
    (sentence,) = capsys.readouterr().err.splitlines()
    assert "no checkpoint in" in sentence
    assert "is whole (step-00000002.ckpt: it is cut off, or something else; step-00000001.ckpt: " in sentence
    assert sorted(run.rglob("*")) == before


@pytest.mark.parametrize("name", ["empty", "a bit in the tensors", "a bit in the archive's directory", "a folder"])
@pytest.mark.parametrize("verb", ["fit", "export"])
def test_a_damaged_checkpoint_that_is_named_is_refused(tmp_path, capsys, monkeypatch, verb, name):
    path = tmp_path / "run/checkpoints/step-00000001.ckpt"
    files.write_checkpoint({"state_dict": {}, "asymgrpo": {"completed_steps": 1, "config": ""}}, path, Label(1))
    DAMAGES[name](path)
    _no_model(monkeypatch)
    arguments = ["export"] if verb == "export" else command(tmp_path)
    assert main([*arguments, f"--ckpt_path={path}"]) == 2
    (sentence,) = capsys.readouterr().err.splitlines()
    assert f"--ckpt_path {path}: not a checkpoint of asymgrpo, or damaged: it" in sentence


def _no_model(monkeypatch) -> None:
    """Loading a model fails the test."""

    def must_not_load(*args, **kwargs):
        raise AssertionError("a model was loaded before the input was checked")

    monkeypatch.setattr(transformers.AutoModelForCausalLM, "from_pretrained", must_not_load)


@pytest.mark.parametrize("folder", ["..", ""])
def test_a_forged_checkpoint_does_not_take_the_run_with_it(fit, tmp_path, folder):
    run = tmp_path / "run"
    assert fit("--steps=2", "--checkpoint.keep=null", WITHOUT_VALIDATION)[0] == 0
    forge(list_checkpoints(run)[1], folder, [".metadata"])
    code, _, error = fit("--steps=3", "--ckpt_path=last", "--checkpoint.keep=1", WITHOUT_VALIDATION)
    assert (code, error) == (0, "")
    assert {"config.yaml", "checkpoints", "tensorboard", "export"} <= {path.name for path in run.iterdir()}
    assert 3 in saved_steps(run)


def test_events_are_on_the_disk_before_each_checkpoint(fit, monkeypatch):
    """So that after a power cut no checkpoint knows of steps that the events do not."""
    forced, fsync = [], os.fsync

    def noted(descriptor):
        forced.append(Path(f"/proc/self/fd/{descriptor}").readlink().name)
        fsync(descriptor)

    monkeypatch.setattr(os, "fsync", noted)
    assert fit("--steps=2", "--checkpoint.keep=null")[0] == 0
    kinds = [name.partition(".")[0] or "checkpoint" for name in forced if name.startswith((".step-", "events."))]
    assert [kind for kind, before in zip(kinds, ["", *kinds], strict=False) if kind != before] == [
        *("events", "checkpoint", "events", "checkpoint")
    ]


# ---- cannot be written ----


@pytest.fixture
def small_files():
    """No file of this process may grow beyond 2 MB; a checkpoint is larger."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (2_000_000, before[1]))
    yield
    resource.setrlimit(resource.RLIMIT_FSIZE, before)


def test_a_run_that_cannot_write_its_last_checkpoint_fails(fit, tmp_path, small_files):
    run = tmp_path / "run"
    code, said, error = fit("--steps=2", WITHOUT_VALIDATION)
    assert code == 1
    warning = "WARNING: The checkpoint of RL step 1 could not be written (file too large); there is no checkpoint yet."
    assert warning in said
    (sentence,) = error.splitlines()
    assert "The checkpoint of RL step 2 could not be written (file too large)" in sentence
    assert "--ckpt_path last" in sentence
    assert list((run / "checkpoints").iterdir()) == []
    assert not (run / "export").exists()


def test_after_room_was_made_it_goes_on(fit, tmp_path):
    run = tmp_path / "run"
    assert fit("--steps=1")[0] == 0
    before = list_checkpoints(run)[1].read_bytes()
    limit = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (2_000_000, limit[1]))
    try:
        code, _, error = fit("--steps=3", "--ckpt_path=last")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limit)
    assert code == 1
    assert f"the newest checkpoint is {list_checkpoints(run)[1]}" in error
    assert list_checkpoints(run)[1].read_bytes() == before
    assert fit("--steps=3", "--ckpt_path=last")[0] == 0
    assert [step for step, _ in repeated_scalars(run)["reward/mean"]] == [1, 2, 3]
    assert leftovers(run) == []


def test_three_failures_in_a_row_stop_the_run(fit, tmp_path, small_files):
    code, said, error = fit("--steps=9", WITHOUT_VALIDATION)
    assert code == 1
    assert said.count("WARNING: The checkpoint of RL step") == 2
    assert "The checkpoint of RL step 3 could not be written" in error


def test_failures_that_pass_do_not_stop_it(fit, tmp_path, monkeypatch):
    """Every second save fails: never three in a row, and not the last one."""
    run, real = tmp_path / "run", files.write_checkpoint

    def every_second(content, path, label):
        if label.step % 2:
            raise OSError(28, "No space left on device")
        real(content, path, label)

    monkeypatch.setattr("asymgrpo_app.checkpoints.plugin.write_checkpoint", every_second)
    code, said, _ = fit("--steps=8", "--checkpoint.keep=null", WITHOUT_VALIDATION)
    assert code == 0
    assert said.count("could not be written (no space left on device)") == 4
    assert "RL step 5 could not be written (no space left on device); the newest checkpoint is " in said
    assert saved_steps(run) == [2, 4, 6, 8]


@pytest.mark.parametrize("limit", [4_096, 30_000], ids=["config", "events"])
def test_other_files_that_cannot_be_written_end_the_run_in_a_sentence(tmp_path, capsys, limit):
    arguments = [*command(tmp_path), "--steps=9", WITHOUT_VALIDATION, "--checkpoint.every_n_steps=9"]
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, before[1]))
    try:
        assert main(arguments) == 1
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    (sentence,) = capsys.readouterr().err.splitlines()
    assert f"A file of the run in {tmp_path / 'run'} cannot be written: [Errno 27] File too large" in sentence
    assert leftovers(tmp_path / "run") == []


UNUSABLE = {
    "in a file": lambda folder: folder / "a_file/run",
    "a file": lambda folder: folder / "a_file",
    "no such place": lambda folder: "/proc/nowhere/run",
    "an address": lambda folder: "s3://bucket/run",
}


@pytest.mark.parametrize("name", UNUSABLE)
def test_a_folder_that_cannot_be_written_is_refused_before_a_model_is_loaded(fit, tmp_path, monkeypatch, name):
    (tmp_path / "a_file").touch()
    _no_model(monkeypatch)
    code, _, error = fit(f"--run_dir={UNUSABLE[name](tmp_path)}")
    assert code == 2
    (sentence,) = error.splitlines()
    assert sentence.startswith(f"asymgrpo: error: run_dir {UNUSABLE[name](tmp_path)}")


def test_a_folder_in_use_is_refused(fit, tmp_path, monkeypatch):
    _no_model(monkeypatch)
    with claimed(tmp_path / "run"):
        code, _, error = fit()
    assert code == 2
    assert "is in use, another process trains in it" in error
    with pytest.raises(AssertionError, match="a model was loaded"):
        fit()
    with claimed(tmp_path / "run"):  # the run that failed let go of it
        pass


# ---- the best ----


def test_the_best_checkpoints_survive_and_the_summary_names_them(fit, tmp_path, monkeypatch):
    """Validation every step, a checkpoint due every fourth; the best is saved when it comes, and kept by its value."""
    run = tmp_path / "run"
    values = [0.9, 0.3, 0.6, 0.5, 0.4, 0.5, 0.7, 0.65, 0.1]  # by step; the one before training is never saved
    publish = AsymGRPOModule.publish

    def published(self, scalars, **options):
        tag = "val/held_out/avg@8"
        publish(self, scalars | ({tag: values[self.completed_steps]} if tag in scalars else {}), **options)

    monkeypatch.setattr(AsymGRPOModule, "publish", published)
    arguments = ["--checkpoint.every_n_steps=4", "--checkpoint.keep=1", "--checkpoint.best.metric=val/held_out/avg@8"]
    code, said, _ = fit("--steps=4", *arguments)
    assert code == 0
    assert saved_steps(run) == [2, 4]
    best = list_checkpoints(run)[2]
    assert f"  Best          {best}  (val/held_out/avg@8 0.600)" in said
    assert read_label(best).validation["val/held_out/avg@8"] == pytest.approx(0.6, abs=1e-7)
    code, said, _ = fit("--steps=8", *arguments, "--ckpt_path=last")
    assert code == 0
    assert saved_steps(run) == [6, 8]
    assert f"  Best          {list_checkpoints(run)[6]}  (val/held_out/avg@8 0.700)" in said


def test_a_metric_that_is_not_there_is_refused_with_those_that_are(fit, tmp_path, monkeypatch):
    _no_model(monkeypatch)
    code, _, error = fit("--checkpoint.best.metric=val/countdown/avg@8")
    assert code == 2
    assert (
        "val/countdown/avg@8, which this run does not have: there are val/held_out/avg@8, val/held_out/pass@1" in error
    )
    code, _, error = fit("--checkpoint.best={metric: val/held_out/avg@8, keep: 0}")
    assert code == 2
    assert "checkpoint.best.keep must be at least 1, got 0" in error
    assert not (tmp_path / "run").exists()


# ---- another config ----


@pytest.fixture(scope="module")
def two_steps(tmp_path_factory) -> Path:
    """A run to resume in other ways; nothing may be written to it."""
    folder = tmp_path_factory.mktemp("two_steps")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("asymgrpo_app.callbacks.rollout.VLLMEngine", ScriptedEngine)
        assert main([*command(folder), "--steps=2", WITHOUT_VALIDATION]) == 0
    return folder


REFUSED = {
    "fewer steps": (["--steps=1"], "steps is 1, but ", "has completed 2 RL steps already"),
    "another seed": (["--seed_everything=1"], "seed_everything is 1, but ", "made with 0"),
    "another batch": (["--data.prompts_per_step=9"], "data.prompts_per_step is 9", "made with 18"),
    "another optimizer": (["--model.optimizer=torch.optim.SGD"], "model.optimizer", "torch.optim.AdamW"),
    "another source": (["--data.train=asymgrpo_app.prompts.Countdown"], "data.train", "JsonLines"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_a_change_that_breaks_the_run_is_refused(two_steps, monkeypatch, capsys, name):
    arguments, *parts = REFUSED[name]
    _no_model(monkeypatch)
    before = sorted(two_steps.rglob("*"))
    assert main([*command(two_steps), "--steps=4", "--ckpt_path=last", *arguments]) == 2
    (sentence,) = capsys.readouterr().err.splitlines()
    for part in parts:
        assert part in sentence
    assert sorted(two_steps.rglob("*")) == before


def test_a_change_that_makes_it_another_experiment_is_shown(two_steps, tmp_path, fit):
    checkpoint = list_checkpoints(two_steps / "run")[2]
    moved = tmp_path / "moved.jsonl"
    moved.write_bytes((two_steps / "problems.jsonl").read_bytes())
    code, said, _ = fit(
        f"--ckpt_path={checkpoint}",
        "--steps=3",
        "--data.validation=null",
        f"--data.train.path={moved}",
        "--model.advantage.beta_pos=0.7",
        "--checkpoint.keep=7",
    )
    assert code == 0
    lines = said.splitlines()
    assert lines[0] == "Changed since the checkpoint was written:"
    changed = {line.split(":")[0].strip(): line for line in lines[1 : lines.index(f"Run folder: {tmp_path / 'run'}")]}
    assert set(changed) == {
        "model.advantage.init_args.beta_pos",
        "data.train.init_args.path",
        "data.validation",
        "steps",
    }
    assert changed["steps"] == "  steps: 2 -> 3"
    assert saved_steps(tmp_path / "run") == [3]
    state = torch.load(list_checkpoints(tmp_path / "run")[3], weights_only=True)["asymgrpo"]
    assert yaml.safe_load(state["config"])["model"]["advantage"]["init_args"]["beta_pos"] == 0.7


def test_other_data_in_the_same_place_are_refused(two_steps, tmp_path, fit):
    fewer = tmp_path / "fewer.jsonl"
    fewer.write_text("".join((two_steps / "problems.jsonl").read_text().splitlines(keepends=True)[:90]))
    checkpoint = list_checkpoints(two_steps / "run")[2]
    code, _, error = fit(f"--ckpt_path={checkpoint}", "--steps=3", f"--data.train.path={fewer}")
    assert code == 2
    assert "data.train has 90 rows, but the checkpoint counts its place in 100 rows" in error
    assert not (tmp_path / "run/config.yaml").exists()  # a next try may use the folder


@pytest.mark.parametrize("verb", ["fit", "validate"])
def test_a_tokenizer_with_other_ids_is_refused(two_steps, tmp_path, capsys, verb):
    policy = tmp_path / "policy"
    policy.mkdir()
    for path in Path(POLICY).iterdir():
        (policy / path.name).write_bytes(path.read_bytes())
    text = (policy / "tokenizer.json").read_text()
    assert text.count('"+":') == text.count('"-":') == 1
    swapped = text.replace('"+":', '"?":').replace('"-":', '"+":').replace('"?":', '"-":')
    (policy / "tokenizer.json").write_text(swapped)
    checkpoint = list_checkpoints(two_steps / "run")[2]
    arguments = command(tmp_path)[1:]
    assert main([verb, *arguments, "--steps=3", f"--ckpt_path={checkpoint}", f"--model.policy={policy}"]) == 2
    assert "has another vocabulary than that of the checkpoint" in capsys.readouterr().err


def test_a_checkpoint_is_complete(two_steps):
    """All that a resume needs, and the config and the version for whoever finds the file alone."""
    state = torch.load(list_checkpoints(two_steps / "run")[2], weights_only=True)
    assert state["asymgrpo"]["completed_steps"] == 2
    assert state["asymgrpo"]["version"]
    assert state["asymgrpo"]["config"] == (two_steps / "run/config.yaml").read_text()
    assert state["PromptDataModule"]["rows"] == 100
    assert state["optimizer_states"][0]["state"]
    assert os.access(list_checkpoints(two_steps / "run")[2], os.R_OK)


# ---- several processes ----


def two_processes(folder: Path, *arguments: str, largest_file: int | None = None) -> subprocess.CompletedProcess[str]:
    limit = resource.RLIM_INFINITY if largest_file is None else largest_file
    ranks = [*command(folder), "--trainer.devices=2", "--trainer.strategy=ddp"]
    limited = partial(resource.setrlimit, resource.RLIMIT_FSIZE, (limit, limit))
    return on_two_processes("tests.support.scripted_engine", *ranks, *arguments, before=limited)


@pytest.mark.long
def test_two_processes_save_skip_and_fail_together(tmp_path):
    run = tmp_path / "run"
    failed = two_processes(tmp_path, "--steps=2", WITHOUT_VALIDATION, largest_file=2_000_000)
    assert failed.returncode == 1
    assert failed.stdout.count("WARNING: The checkpoint of RL step 1 could not be written (file too large)") == 1
    assert failed.stderr.count("The checkpoint of RL step 2 could not be written (file too large)") == 2  # both end
    assert saved_steps(run) == []

    assert two_processes(tmp_path, "--steps=3", "--ckpt_path=last", "--checkpoint.keep=null").returncode == 0
    assert saved_steps(run) == [1, 2, 3]
    final = weights(run, 3)
    DAMAGES["cut off in the middle"](list_checkpoints(run)[3])
    resumed = two_processes(tmp_path, "--steps=3", "--ckpt_path=last", "--checkpoint.keep=null")
    assert resumed.returncode == 0, resumed.stderr[-3000:]
    assert resumed.stdout.count("Skipped: step-00000003.ckpt: it is cut off, or something else.") == 1
    assert_same(weights(run, 3), final)
    assert [step for step, _ in repeated_scalars(run)["reward/mean"]] == [1, 2, 3]
