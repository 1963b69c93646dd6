"""The quick start through a sampler server against the quick start in process, seed by seed.

    .venv/bin/python benchmarks/server.py --seeds 0 1 2

Server and trainer have one core each and one thread, so that they do not starve each other and both kinds of run add up
in the same order. Prints the accuracies of each pair of runs, the first step in which anything they log of completions
or gradients differs, and the seconds of a step.
"""

import argparse
import json
import os
import socket
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from statistics import median
from time import sleep
from urllib.error import URLError
from urllib.request import Request, urlopen

from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

REPOSITORY = Path(__file__).resolve().parent.parent
CONFIG = "--config=configs/quickstart.yaml"
COMPARED = ("reward/mean", "response_length/mean", "actor/entropy", "actor/grad_norm")
METRICS = ("avg@8", "pass@8", "maj@8")
START_LIMIT_S = 300


def command(core: int, *arguments: str) -> list[str]:
    """`asymgrpo` on one core."""
    return ["taskset", "--cpu-list", str(core), sys.executable, "-m", "asymgrpo_app", *arguments]


def environment() -> dict[str, str]:
    return {**os.environ, "OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}


@contextmanager
def served(core: int, folder: Path) -> Iterator[list[str]]:
    """A server on one core; gives the options of a run that samples on it."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    token, weights = folder / "token", folder / "weights"
    weights.mkdir()
    options = [f"--port={port}", f"--token_file={token}", f"--weights_folder={weights}"]
    with (folder / "serve.log").open("w") as log:
        process = subprocess.Popen(
            command(core, "serve", CONFIG, *options), cwd=REPOSITORY, env=environment(), stdout=log, stderr=log
        )
    try:
        url = f"http://127.0.0.1:{port}"
        _wait(process, url, token)
        server = {"urls": f"[{url}]", "token_file": token, "weights_folder": weights}
        yield ["--rollout.sampler=server", *(f"--rollout.server.{name}={value}" for name, value in server.items())]
    finally:
        process.terminate()
        process.wait()


def _wait(process: subprocess.Popen[bytes], url: str, token: Path) -> None:
    for _ in range(START_LIMIT_S):
        if process.poll() is not None:
            sys.exit(f"the server ended with code {process.returncode}")
        sleep(1)
        if token.exists():
            request = Request(f"{url}/health", headers={"Authorization": f"Bearer {token.read_text().strip()}"})
            try:
                with urlopen(request, timeout=5):
                    return
            except (URLError, OSError):
                continue
    sys.exit(f"the server did not start in {START_LIMIT_S} s")


def run(core: int, seed: int, run_dir: Path, options: list[str]) -> Path:
    """One quick start."""
    arguments = ["fit", CONFIG, f"--seed_everything={seed}", f"--run_dir={run_dir}", *options]
    done = subprocess.run(
        command(core, *arguments, "--trainer.enable_progress_bar=false"),
        cwd=REPOSITORY,
        env=environment(),
        capture_output=True,
        text=True,
    )
    if done.returncode:
        sys.exit(done.stderr[-3000:])
    return run_dir


def curves(run_dir: Path) -> dict[str, list[float]]:
    """What is compared, step by step, and the seconds of each."""
    events = EventAccumulator(str(run_dir / "tensorboard"), size_guidance={"scalars": 0}).Reload()
    return {tag: [event.value for event in events.Scalars(tag)] for tag in (*COMPARED, "timing_s/step")}


def accuracies(run_dir: Path) -> dict[str, float]:
    metrics = json.loads((run_dir / "results.json").read_text())["sets"]["countdown"]["metrics"]
    return {name: metrics[name]["value"] for name in METRICS}


def compared(seed: int, inside: Path, through: Path) -> str:
    """A line of the table."""
    ours, theirs = curves(inside), curves(through)
    steps = zip(*(zip(ours[tag], theirs[tag], strict=True) for tag in COMPARED), strict=True)
    differs = next((n for n, pairs in enumerate(steps, start=1) if any(a != b for a, b in pairs)), None)
    before, after = accuracies(inside), accuracies(through)
    cells = [f"{before[name]:.3f} / {after[name]:.3f}" for name in METRICS]
    seconds = f"{median(ours['timing_s/step']):.2f} / {median(theirs['timing_s/step']):.2f}"
    return f"| {seed} | {' | '.join(cells)} | {differs or 'none'} | {seconds} |"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("arguments", nargs="*", help="further arguments of `asymgrpo fit`, after --")
    options = parser.parse_args()
    cores = sorted(os.sched_getaffinity(0))
    if len(cores) < 2:
        parser.error("server and trainer need a core each")
    print(f"| seed | {' | '.join(METRICS)} | first step that differs | seconds a step |")
    print("| --- |" + " --- |" * (len(METRICS) + 2), flush=True)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        inside = {seed: run(cores[0], seed, folder / f"inside-{seed}", options.arguments) for seed in options.seeds}
        with served(cores[1], folder) as sampler:
            for seed in options.seeds:
                through = run(cores[0], seed, folder / f"server-{seed}", [*sampler, *options.arguments])
                print(compared(seed, inside[seed], through), flush=True)
    print("\nEach cell: in process / through the server.")


if __name__ == "__main__":
    main()
