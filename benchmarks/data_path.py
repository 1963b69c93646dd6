"""What a large file of prompts costs: making the index, opening it again, reading in shuffled order, and memory.

    .venv/bin/python benchmarks/data_path.py --rows 10_000_000

Writes a JSON Lines and a Parquet file of that many rows (about 200 bytes each) into a temporary folder, then measures
each in fresh processes. Memory is the most that was in use at any time above what the process had after its imports:
RSS counts every page of a mapped file that was touched, USS only what no other process shares.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import psutil

SEED = 1
_WRITTEN_AT_ONCE = 100_000
_MEGABYTE = 2**20


class MemoryPeak:
    """The most memory this process uses within the `with` block, in MiB above what it used at the start."""

    def __init__(self) -> None:
        self._process = psutil.Process()
        self._start = self._process.memory_full_info()
        self._done = threading.Event()
        self.rss = 0.0
        self.uss = 0.0

    def __enter__(self) -> "MemoryPeak":
        self._thread = threading.Thread(target=self._watch)
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._done.set()
        self._thread.join()
        self._look()

    def _watch(self) -> None:
        while not self._done.wait(0.02):
            self._look()

    def _look(self) -> None:
        now = self._process.memory_full_info()
        self.rss = max(self.rss, (now.rss - self._start.rss) / _MEGABYTE)
        self.uss = max(self.uss, (now.uss - self._start.uss) / _MEGABYTE)


def problems(rows: int) -> Iterator[dict[str, object]]:
    for number in range(rows):
        first, second = number * 7919 % 100_003, number * 104_729 % 99_991
        yield {
            "prompt": f"A library has {first} books and buys {second} more. How many books does it have now? Problem "
            f"{number}: answer with a whole number.",
            "answer": str(first + second),
            "level": number % 5,
        }


def write_jsonl(path: Path, rows: int) -> None:
    with path.open("w") as file:
        for problem in problems(rows):
            file.write(json.dumps(problem) + "\n")


def write_parquet(path: Path, rows: int) -> None:
    import pyarrow as pa
    from pyarrow import parquet

    schema = pa.schema({"prompt": pa.string(), "answer": pa.string(), "level": pa.int64()})
    stream = problems(rows)
    with parquet.ParquetWriter(path, schema) as writer:
        for start in range(0, rows, _WRITTEN_AT_ONCE):
            chunk = [next(stream) for _ in range(min(_WRITTEN_AT_ONCE, rows - start))]
            writer.write_table(pa.Table.from_pylist(chunk, schema))


def measure(kind: str, path: str, reads: int) -> dict[str, float]:
    from asymgrpo_app.prompts import JsonLines, ParquetFiles

    if kind == "parquet":
        import pyarrow.parquet  # noqa: F401 (belongs to the imports, not to the memory of the data)
    source_class = {"jsonl": JsonLines, "parquet": ParquetFiles}[kind]
    with MemoryPeak() as peak:
        start = time.perf_counter()
        source = source_class(path)
        opened = time.perf_counter()
        for position in range(reads):
            source.at(position, SEED)
        read = time.perf_counter()
    return {"open": opened - start, "rate": reads / (read - opened), "rss": peak.rss, "uss": peak.uss}


def in_fresh_process(kind: str, path: Path, reads: int) -> dict[str, float]:
    command = [sys.executable, __file__, "--measure", kind, "--path", str(path), "--reads", str(reads)]
    output = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout
    result: dict[str, float] = json.loads(output)
    return result


def report(rows: int, reads: int, folder: Path) -> None:
    os.environ["ASYMGRPO_CACHE"] = str(folder / "cache")
    print(f"{rows:,} rows, {reads:,} reads in shuffled order, file in the page cache\n")
    print("| | file | kept on disk | first opening | opening again | rows/s | RSS | USS |")
    print("|---|---|---|---|---|---|---|---|")
    for kind, write in (("jsonl", write_jsonl), ("parquet", write_parquet)):
        path = folder / f"rows.{kind}"
        write(path, rows)
        first = in_fresh_process(kind, path, 1)
        again = in_fresh_process(kind, path, reads)
        kept = sum(file.stat().st_size for file in (folder / "cache").iterdir())
        print(
            f"| {kind} | {path.stat().st_size / _MEGABYTE:,.0f} MiB | {kept / _MEGABYTE:,.0f} MiB | "
            f"{first['open']:.2f} s, {first['rss']:.0f} MiB RSS, {first['uss']:.0f} MiB USS | {again['open']:.3f} s | "
            f"{again['rate']:,.0f} | {again['rss']:.0f} MiB | {again['uss']:.0f} MiB |",
            flush=True,
        )
        path.unlink()
        for file in (folder / "cache").iterdir():
            file.unlink()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=10_000_000)
    parser.add_argument("--reads", type=int, default=1_000_000, help="rows read for the speed, in shuffled order")
    parser.add_argument("--folder", help="where the temporary folder is made (about 5 GB for 10 million rows)")
    parser.add_argument("--measure", choices=["jsonl", "parquet"], help=argparse.SUPPRESS)
    parser.add_argument("--path", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.measure:
        print(json.dumps(measure(arguments.measure, arguments.path, arguments.reads)))
        return
    with tempfile.TemporaryDirectory(prefix="asymgrpo-benchmark-", dir=arguments.folder) as folder:
        report(arguments.rows, arguments.reads, Path(folder))


if __name__ == "__main__":
    main()
