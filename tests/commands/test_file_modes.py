"""Every file that is written for a user has the permissions that the umask leaves, whatever library wrote it."""

import json
import os
import stat
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from asymgrpo_app.callbacks import rollout
from asymgrpo_app.cli import main
from asymgrpo_app.prompts.cache import cached
from asymgrpo_app.prompts.files import SourceFile
from asymgrpo_app.rollout.server.transfer import FolderTransfer
from asymgrpo_app.runtime.whole_files import permit
from tests.support.poison import poison
from tests.support.scripted_engine import command as scripted
from tests.support.seeded_engine import SeededEngine

UMASKS = [0o022, 0o077, 0o002]


@pytest.fixture(params=[pytest.param(umask, id=f"{umask:03o}") for umask in UMASKS])
def umask(request) -> Iterator[int]:
    before = os.umask(request.param)
    yield request.param
    os.umask(before)


def modes(folder: Path) -> dict[str, str]:
    """The permissions of all that is in a folder, and its own."""
    return {str(path.relative_to(folder)): f"{path.stat().st_mode & 0o7777:o}" for path in [folder, *folder.rglob("*")]}


def usual(folder: Path, umask: int) -> dict[str, str]:
    everything = [folder, *folder.rglob("*")]
    kinds = {str(path.relative_to(folder)): 0o777 if path.is_dir() else 0o666 for path in everything}
    return {name: f"{most & ~umask:o}" for name, most in kinds.items()}


@pytest.fixture
def seeded(monkeypatch) -> None:
    monkeypatch.setattr(rollout, "VLLMEngine", SeededEngine)


# What each run and command writes, at least.
WRITTEN = {
    "run": [
        *("config.yaml", "config.resumed-1.yaml", "results.json", "checkpoints/step-00000002.ckpt"),
        *("export/model.safetensors", "export/README.md", "export/config.json", "export/tokenizer.json"),
        *("tensorboard", "csv/lightning_logs/version_0/metrics.csv", "evaluations/base/results.json"),
        *("evaluations/base/predictions.jsonl", "evaluations/base/predictions.run.json"),
    ],
    "adapter": ["export/adapter_model.safetensors", "export/adapter_config.json"],
    "bad": ["non_finite/step-00000001.pt"],
    "exported": ["model.safetensors", "generation_config.json"],
    "compared": ["difference.png", "difference.json"],
}


def test_all_that_commands_write(umask, seeded, tmp_path, monkeypatch):
    run, small = tmp_path / "run", ["--data.prompts_per_step=8", "--trainer.val_check_interval=2"]
    command = [*scripted(tmp_path), *small]
    loggers = [
        {"class_path": "TensorBoardLogger", "init_args": {"save_dir": str(run), "name": "", "version": "tensorboard"}},
        {"class_path": "CSVLogger", "init_args": {"save_dir": str(run / "csv")}},
    ]
    assert main([*command, "--steps=1", f"--trainer.logger={json.dumps(loggers)}"]) == 0
    assert main([*command, "--steps=2", "--ckpt_path=last"]) == 0
    assert main(["validate", *command[1:]]) == 0
    assert main(["predict", *command[1:]]) == 0
    adapter = ["--model.lora.rank=2", "--model.lora.export=adapter", "--steps=1", f"--run_dir={tmp_path / 'adapter'}"]
    assert main([*command, *adapter]) == 0
    assert main(["export", f"--run_dir={run}", f"--output={tmp_path / 'exported'}"]) == 0
    record, compared = run / "results.json", tmp_path / "compared"
    options = [f"--plot={compared / 'difference.png'}", f"--output={compared / 'difference.json'}"]
    assert main(["compare", str(record), str(record), *options]) == 0
    poison(monkeypatch, lambda module: True)
    assert main([*command, "--model.max_skipped_updates=1", f"--run_dir={tmp_path / 'bad'}"]) == 1
    for name, files in WRITTEN.items():
        folder = tmp_path / name
        assert modes(folder) == usual(folder, umask)
        assert {*files} <= modes(folder).keys()


def test_weights_for_servers(umask, tmp_path):
    transfer = FolderTransfer(str(tmp_path / "shared/weights"), "run", torch.float32)
    transfer.publish([("embedding", torch.ones(3, 2))], 1)
    assert modes(tmp_path / "shared") == usual(tmp_path / "shared", umask)
    assert len(modes(tmp_path / "shared")) == 3


def test_a_file_of_the_cache_is_for_those_who_may_read_its_source(umask, tmp_path, monkeypatch):
    monkeypatch.setenv("ASYMGRPO_CACHE", str(tmp_path / "cache"))
    source = tmp_path / "private.jsonl"
    source.write_text("{}")
    source.chmod(0o640)
    made = cached(SourceFile.find(str(source)), "index", lambda path: path.write_bytes(b"0"))
    assert made.stat().st_mode & 0o777 == 0o640 & ~umask


def test_only_permissions_are_changed(umask, tmp_path):
    private, limited = tmp_path / "private", tmp_path / "limited"
    for path in (private, limited):
        path.write_text(path.name)
        path.chmod(0o600)
    permit([private])
    permit([limited], at_most=0o604)
    assert stat.S_IMODE(private.stat().st_mode) == 0o666 & ~umask
    assert stat.S_IMODE(limited.stat().st_mode) == 0o604 & ~umask
    assert [path.read_text() for path in (private, limited)] == ["private", "limited"]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["limited", "private"]
