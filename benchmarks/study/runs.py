"""Training every method on every seed, some side by side, each with cores of its own."""

import json
import os
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from time import monotonic, sleep

from asymgrpo_app.callbacks.evaluation import RESULTS_NAME
from asymgrpo_app.errors import RunError, UserError
from benchmarks.study.definitions import REPOSITORY, Study

COST_NAME = "cost.json"
_LOG_NAME = "fit.log"


@dataclass
class _Running:
    method: str
    seed: int
    folder: Path
    cores: frozenset[int]
    process: subprocess.Popen[bytes]
    begun: float


def run_all(study: Study, folder: Path, jobs: int, methods: Sequence[str], seeds: Sequence[int]) -> None:
    """Train what is not trained yet; a run that was interrupted goes on, or begins again.

    Args:
        study: What to run.
        folder: Runs are `<folder>/<method>-<seed>`.
        jobs: Runs side by side; the cores are shared out among them. The number of threads may change the last digit of
            a result, so all runs of a study want the same.
        methods: Some of the study's.
        seeds: Any.

    Raises:
        UserError: There are fewer cores than jobs.
        RunError: A run failed; the others were done.
    """
    shares = _shares(jobs)
    todo = [(method, seed) for seed in seeds for method in methods]  # whole seeds first: each is a paired comparison
    todo = [(method, seed) for method, seed in todo if not (folder / f"{method}-{seed}" / RESULTS_NAME).exists()]
    print(f"{len(todo)} runs to do, {jobs} side by side, {len(shares[0])} cores each.", flush=True)
    failed: list[str] = []
    running: list[_Running] = []
    total, finished = len(todo), 0
    try:
        while todo or running:
            while todo and shares:
                running.append(_start(study, folder, *todo.pop(0), shares.pop()))
            sleep(0.5)
            for own in [own for own in running if own.process.poll() is not None]:
                running.remove(own)
                shares.append(own.cores)
                finished += 1
                failed += _finish(own, f"[{finished}/{total}]")
    finally:
        for own in running:
            own.process.terminate()
        for own in running:
            own.process.wait()
    if failed:
        raise RunError(f"{len(failed)} runs failed: {', '.join(failed)}; each has its {_LOG_NAME}.")


def _shares(jobs: int) -> list[frozenset[int]]:
    """The cores of this process in equal parts."""
    cores = sorted(os.sched_getaffinity(0))
    if not 1 <= jobs <= len(cores):
        raise UserError(f"--jobs is {jobs}: it must lie between 1 and the {len(cores)} cores.")
    each = len(cores) // jobs
    return [frozenset(cores[number * each : (number + 1) * each]) for number in range(jobs)]


def _start(study: Study, folder: Path, method: str, seed: int, cores: frozenset[int]) -> _Running:
    run_dir = folder / f"{method}-{seed}"
    run_dir.mkdir(parents=True, exist_ok=True)
    before, after = study.configs
    configs = [before, f"configs/methods/{method}.yaml", after]
    command = [sys.executable, "-m", "asymgrpo_app", "fit", *(f"--config={path}" for path in configs)]
    own = Path(os.path.relpath(run_dir, REPOSITORY))  # paths that are kept say nothing of the machine
    command += [f"--seed_everything={seed}", f"--run_dir={own}", "--ckpt_path=last"]
    threads = str(len(cores))
    environment = {**os.environ, "OMP_NUM_THREADS": threads, "MKL_NUM_THREADS": threads}
    listed = ",".join(map(str, sorted(cores)))
    with (run_dir / _LOG_NAME).open("ab") as log:
        process = subprocess.Popen(
            ["taskset", "--cpu-list", listed, *command],
            cwd=REPOSITORY,
            env=environment,
            stdout=log,
            stderr=subprocess.STDOUT,
        )
    return _Running(method, seed, run_dir, cores, process, monotonic())


def _finish(own: _Running, count: str) -> list[str]:
    """Say how a run ended; its name if it failed."""
    seconds = monotonic() - own.begun
    name = f"{own.method}-{own.seed}"
    if own.process.returncode or not (own.folder / RESULTS_NAME).exists():
        print(f"{count} {name} failed with code {own.process.returncode} after {seconds:.0f} s", flush=True)
        return [name]
    (own.folder / COST_NAME).write_text(json.dumps({"seconds": round(seconds), "cores": len(own.cores)}) + "\n")
    print(f"{count} {name} done in {seconds:.0f} s", flush=True)
    return []
