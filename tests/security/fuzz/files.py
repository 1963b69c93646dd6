"""Readers of checkpoints, results files and configs, which get changed files."""

import json
import shutil
import zipfile
from collections.abc import Callable, Sequence
from contextlib import suppress
from io import BytesIO
from pathlib import Path
from random import Random

import torch
import yaml
from torch.distributed.checkpoint.filesystem import FileSystemWriter
from torch.distributed.checkpoint.state_dict_saver import save

from asymgrpo_app.checkpoints.config_changes import config_changes
from asymgrpo_app.checkpoints.files import digest_of
from asymgrpo_app.checkpoints.folder import check_whole
from asymgrpo_app.checkpoints.shards import remove_checkpoint
from asymgrpo_app.cli.config_files import check_config_file
from asymgrpo_app.errors import RunError, UserError
from asymgrpo_app.evaluation.compare import compare, comparison_table
from asymgrpo_app.evaluation.files import write_record
from asymgrpo_app.evaluation.results import EvaluationProtocol, EvaluationRun, results, set_result
from tests.security.fuzz.mutations import mutated
from tests.security.fuzz.run import Attack, Target
from tests.support.crafted_archives import FILES, FOLDERS, label, sealed, whole, with_pickle
from tests.support.paths import REPOSITORY

_JSON = [b"1e999", b"-1e999", b"1e308", b"NaN", b"9" * 5_000, b"1" + b"0" * 400, b"null", b"true", b'""', b"[]", b"{}"]
_JSON += [b"[" * 2_000, b'{"a":' * 2_000, b'"\\ud800"', b'"\\u001b[2J"', b"\xff", b"\0", b"-", b"0.1", b"1", b"-1"]
_YAML = [b"&a ", b"*a", b"<<: ", b"- ", b": ", b"? ", b"!!python/object:os.x ", b"!!int ", b"!!binary ", b"!!set "]
_YAML += [b"{", b"}", b"[" * 200, b"\t", b"---\n", b"...\n", b"%YAML 9.9\n", b"2026-99-99", b"0x" + b"f" * 9_000]
_YAML += [b"1:" * 999, b"|\n", b">9\n"]
_CHECKPOINT, _SHARDS = "step-00000001.ckpt", "step-00000001.shards"
_WORDS = [name.encode("utf-8", "replace") for name in [*FOLDERS, *FILES]]


def _file(
    seeds: Callable[[Path], list[bytes]],
    words: Sequence[bytes],
    read: Callable[[Path], object],
    write: Callable[[Path, bytes], object] = Path.write_bytes,
    name: str = "file",
) -> Target:
    """A reader of a file, which may write into the file's folder; `seeds` has sound contents that it must take."""

    def target(folder: Path) -> Attack:
        path, contents = folder / name, seeds(folder)
        for content in contents:
            write(path, content)
            read(path)

        def attack(draw: Random) -> bool:
            write(path, mutated(draw, draw.choice(contents), words))
            try:
                read(path)
            except (UserError, RunError):
                return True
            return False

        return attack

    return target


# ---- checkpoints: the label, with a digest that is right ----


def _labels(folder: Path) -> list[bytes]:
    save({"weight/a": torch.zeros(2)}, storage_writer=FileSystemWriter(folder / "saved"), no_dist=True)
    files = sorted((folder / "saved").iterdir())
    found = {file.name: [file.stat().st_size, digest_of(file, file.stat().st_size)] for file in files}
    values = {"val/countdown/avg@8": 0.5, "val/x/greedy": float("nan")}
    own = [label(), label(validation=values), label(shards={"folder": _SHARDS, "files": found})]
    return [json.dumps(content).encode() for content in own]


def _seal(path: Path, content: bytes) -> None:
    shutil.copytree(path.parent / "saved", path.parent / _SHARDS, dirs_exist_ok=True)
    (path.parent / "other").mkdir(exist_ok=True)
    (path.parent / "other/kept").touch()
    sealed(path, whole(), content[:65_000])


def _read_label(path: Path) -> None:
    try:
        check_whole(path)
    finally:
        remove_checkpoint(path)
        assert (path.parent / "other/kept").exists()


def _pickles(_: Path) -> list[bytes]:
    with zipfile.ZipFile(BytesIO(whole())) as archive:
        return [archive.read(name) for name in archive.namelist() if name.endswith("data.pkl")]


def _seal_pickle(path: Path, content: bytes) -> None:
    sealed(path, with_pickle(content, **{"data/0": bytes(16)}), label())


def _read_pickle(path: Path) -> None:
    with suppress(FileNotFoundError):
        check_whole(path)


# ---- results ----


def _results(folder: Path) -> list[bytes]:
    protocol = EvaluationProtocol(problems=2, samples=2, temperature=1.0, top_p=1.0, max_tokens=16)
    sets = {name: set_result(protocol, ["a", "b"], {"avg@2": [0.5, 1.0], "length": [3.0, 4.0]}) for name in ("s", "t")}
    write_record(folder / "results.json", results(EvaluationRun("m", None, 0), sets))
    return [(folder / "results.json").read_bytes()]


def _compare(path: Path) -> None:
    comparison_table(compare([path, path]))
    comparison_table(compare([path, path], "length"))


# ---- configs ----


def _configs(_: Path) -> list[bytes]:
    return [path.read_bytes() for path in sorted((REPOSITORY / "configs").rglob("*.yaml"))[:8]]


def _read_config(path: Path) -> None:
    check_config_file(path)
    with suppress(yaml.YAMLError):
        list(map(str, config_changes(path.read_text(encoding="utf-8"), "steps: 1\n")))


TARGETS = {
    "checkpoint_label": _file(_labels, _JSON + _WORDS, _read_label, _seal, _CHECKPOINT),
    "checkpoint_pickle": _file(_pickles, [bytes([n]) for n in range(256)], _read_pickle, _seal_pickle, _CHECKPOINT),
    "results_file": _file(_results, _JSON, _compare),
    "config_yaml": _file(_configs, _YAML + _JSON, _read_config),
}
