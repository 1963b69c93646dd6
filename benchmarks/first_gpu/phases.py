"""The phases of a step, for random weights of the 0.5B and the 1.5B shape."""

import subprocess
import sys
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path

from benchmarks.first_gpu.outcome import Check, Outcome

REPOSITORY = Path(__file__).resolve().parents[2]


def phases_of(shape: str) -> Callable[[str], Outcome]:
    """The check that measures a shape's phases; the rehearsal takes the quick start's policy."""

    def measured(device: str) -> Outcome:
        if find_spec("vllm") is None:
            return Outcome(None, "vLLM is not installed")
        if device == "cuda":
            work = ["--shape", shape, "--completions", "256", "--micro-batch-tokens", "16384", "--without-floor"]
            rest = ["--", "--rollout.max_completion_tokens=512"]
        else:
            work, rest = ["--countdown", "--completions", "64", "--without-floor"], []
        command = [sys.executable, "benchmarks/step.py", *work, "--steps", "5", "--skip", "2", *rest]
        done = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True)
        if done.returncode:
            return Outcome(False, f"code {done.returncode}: {done.stderr.strip()[-500:]}")
        table = [line for line in done.stdout.splitlines() if line.startswith("|")]
        whole = next((line for line in table if "whole step" in line), "")
        return Outcome(True, whole.replace("|", " ").strip(), table)

    return measured


CHECKS = {
    "step_0.5B": Check("the phases of a step, 0.5B, 256 completions of at most 512 tokens", phases_of("0.5B"), 180.0),
    "step_1.5B": Check("the phases of a step, 1.5B, 256 completions of at most 512 tokens", phases_of("1.5B"), 240.0),
}
