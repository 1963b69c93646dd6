"""Feeds a reader with changed files until the time is over, and says what it took.

python -m tests.security.fuzz NAME [--seconds N] [--seed N]

A reader may take a file or refuse it with a sentence. It fails with any other error, with 10 s for one file, or with
200 MiB more memory than it began with; what it was given is then left in a file that is named.
"""

import argparse
import json
import random
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import psutil

from asymgrpo_app.checkpoints.config_changes import config_changes
from asymgrpo_app.checkpoints.folder import check_whole
from asymgrpo_app.checkpoints.shards import remove_checkpoint
from asymgrpo_app.cli.config_files import check_config_file
from asymgrpo_app.errors import RunError, UserError
from asymgrpo_app.evaluation.compare import compare, comparison_table
from asymgrpo_app.evaluation.files import write_record
from asymgrpo_app.evaluation.results import EvaluationProtocol, EvaluationRun, results, set_result
from tests.support.crafted_archives import FILES, FOLDERS, label, sealed, whole, with_pickle
from tests.support.paths import REPOSITORY

_SLOWEST_S = 10.0
_GROWTH = 200 * 2**20
_JSON = [b"1e999", b"-1e999", b"1e308", b"NaN", b"9" * 5_000, b"1" + b"0" * 400, b"null", b"true", b'""', b"[]", b"{}"]
_JSON += [b"[" * 2_000, b'{"a":' * 2_000, b'"\\ud800"', b'"\\u001b[2J"', b"\xff", b"\0", b"-", b"0.1", b"1", b"-1"]
_YAML = [
    b"&a ",
    b"*a",
    b"<<: ",
    b"- ",
    b": ",
    b"? ",
    b"!!python/object:os.x ",
    b"!!int ",
    b"!!binary ",
    b"!!set ",
    b"{",
    b"}",
]
_YAML += [
    b"[" * 200,
    b"\t",
    b"---\n",
    b"...\n",
    b"%YAML 9.9\n",
    b"2026-99-99",
    b"0x" + b"f" * 9_000,
    b"1:" * 999,
    b"|\n",
    b">9\n",
]
_WORDS = [name.encode("utf-8", "replace") for name in [*FOLDERS, *FILES]]


@dataclass(frozen=True)
class Target:
    """A reader with what it is fed.

    Attributes:
        seeds: Sound contents.
        words: What is put into them, beside other bytes.
        read: Reads a file; it may write into the file's folder.
        write: Writes a changed content to a path.
    """

    seeds: Callable[[], list[bytes]]
    words: list[bytes]
    read: Callable[[Path], object]
    write: Callable[[Path, bytes], object] = Path.write_bytes


@dataclass(frozen=True)
class Figures:
    """What a run took.

    Attributes:
        inputs: Files that were read.
        refused: Those that were refused.
        growth: Largest growth of memory, in bytes.
        slowest_s: The longest time for one file, in seconds.
    """

    inputs: int
    refused: int
    growth: int
    slowest_s: float


def mutated(content: bytes, words: list[bytes], draw: random.Random) -> bytes:
    """A content with one to eight changes."""
    data = bytearray(content)
    for _ in range(draw.randint(1, 8)):
        place, length = draw.randrange(len(data) + 1), draw.choice((0, 1, 1, 2, 4, 8, 40))
        match draw.randrange(6):
            case 0 if data:
                data[place % len(data)] ^= 1 << draw.randrange(8)
            case 1:
                data[place : place + length] = draw.randbytes(length)
            case 2:
                del data[place : place + length]
            case 3:
                start = draw.randrange(len(data) + 1)
                data[place:place] = data[start : start + draw.choice((1, 8, 100, 1_000))]
            case _:
                data[place : place + length] = draw.choice(words)
    return bytes(data)


def fuzz(name: str, seconds: float, seed: int = 0) -> Figures:
    """Feed a target for so many seconds.

    Raises:
        AssertionError: It failed; the message names a file with what it was given.
    """
    target, draw, process = TARGETS[name], random.Random(seed), psutil.Process()
    inputs = refused = growth = 0
    slowest = 0.0
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "step-00000001.ckpt" if name == "checkpoint_label" else "file")
        for content in target.seeds():  # also loads what is loaded once
            target.write(path, content)
            target.read(path)
        before, end = process.memory_info().rss, time.monotonic() + seconds
        for content in _contents(target, draw, end):
            target.write(path, content)
            began = time.perf_counter()
            try:
                target.read(path)
            except (UserError, RunError):
                refused += 1
            except BaseException as error:
                raise AssertionError(f"{type(error).__name__}: {error}, of {_kept(content)}") from error
            inputs, slowest = inputs + 1, max(slowest, time.perf_counter() - began)
            growth = max(growth, process.memory_info().rss - before)
            assert slowest < _SLOWEST_S, f"{slowest:.1f} s for {_kept(content)}"
            assert growth < _GROWTH, f"{growth:,} bytes after {_kept(content)}"
    return Figures(inputs, refused, growth, slowest)


def _contents(target: Target, draw: random.Random, end: float) -> Iterator[bytes]:
    seeds = target.seeds()
    while time.monotonic() < end:
        yield mutated(draw.choice(seeds), target.words, draw)


def _kept(content: bytes) -> str:
    with tempfile.NamedTemporaryFile(prefix="fuzz-", delete=False) as file:
        file.write(content)
    return file.name


# ---- checkpoints: the label, with a digest that is right ----


def _labels() -> list[bytes]:
    shards = {"folder": "step-00000001.shards", "files": {".metadata": [0, "0" * 32], "__0_0.distcp": [1, "1" * 32]}}
    values = {"val/countdown/avg@8": 0.5, "val/x/greedy": float("nan")}
    own = [label(), label(validation=values), label(shards=shards)]
    return [json.dumps(content).encode() for content in own[:2]]


def _seal(path: Path, content: bytes) -> None:
    shards = path.with_suffix(".shards")
    shards.mkdir(exist_ok=True)
    (path.parent / "other").mkdir(exist_ok=True)
    (path.parent / "other/kept").touch()
    sealed(path, whole(), content[:65_000])


def _read_label(path: Path) -> None:
    try:
        check_whole(path)
    finally:
        remove_checkpoint(path)
        assert (path.parent / "other/kept").exists()


def _pickles() -> list[bytes]:
    import zipfile
    from io import BytesIO

    with zipfile.ZipFile(BytesIO(whole())) as archive:
        return [archive.read(name) for name in archive.namelist() if name.endswith("data.pkl")]


def _seal_pickle(path: Path, content: bytes) -> None:
    sealed(path, with_pickle(content, **{"data/0": bytes(16)}), label())


def _read_pickle(path: Path) -> None:
    with suppress(FileNotFoundError):
        check_whole(path)


# ---- results ----


def _results() -> list[bytes]:
    protocol = EvaluationProtocol(problems=2, samples=2, temperature=1.0, top_p=1.0, max_tokens=16)
    sets = {name: set_result(protocol, ["a", "b"], {"avg@2": [0.5, 1.0], "length": [3.0, 4.0]}) for name in ("s", "t")}
    with tempfile.TemporaryDirectory() as folder:
        write_record(Path(folder, "results.json"), results(EvaluationRun("m", None, 0), sets))
        return [Path(folder, "results.json").read_bytes()]


def _compare(path: Path) -> None:
    comparison_table(compare([path, path]))
    comparison_table(compare([path, path], "length"))


# ---- configs ----


def _configs() -> list[bytes]:
    return [path.read_bytes() for path in sorted((REPOSITORY / "configs").rglob("*.yaml"))[:8]]


def _read_config(path: Path) -> None:
    import yaml

    check_config_file(path)
    with suppress(yaml.YAMLError):
        list(map(str, config_changes(path.read_text(encoding="utf-8"), "steps: 1\n")))


TARGETS = {
    "checkpoint_label": Target(_labels, _JSON + _WORDS, _read_label, _seal),
    "checkpoint_pickle": Target(_pickles, [bytes([n]) for n in range(256)], _read_pickle, _seal_pickle),
    "results_file": Target(_results, _JSON, _compare),
    "config_yaml": Target(_configs, _YAML + _JSON, _read_config),
}


def main() -> None:
    """The program."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("name", choices=TARGETS)
    parser.add_argument("--seconds", type=float, default=60.0)
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args()
    figures = fuzz(given.name, given.seconds, given.seed)
    print(
        f"{given.name}: {figures.inputs:,} inputs, {figures.refused:,} refused, {figures.growth / 2**20:.1f} MiB, "
        f"slowest {figures.slowest_s:.3f} s"
    )


if __name__ == "__main__":
    sys.exit(main())
