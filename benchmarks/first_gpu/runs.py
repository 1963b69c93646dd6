"""Checks of whole runs: the quick start, a resumed run beside a large sampler, several GPUs."""

import re
import subprocess
import sys
import tempfile
from importlib.util import find_spec
from pathlib import Path

import torch

from benchmarks.first_gpu.outcome import Check, Outcome

REPOSITORY = Path(__file__).resolve().parents[2]


def _fit(folder: str, device: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    accelerator = "gpu" if device == "cuda" else "cpu"
    own = [f"--run_dir={folder}/run", f"--trainer.accelerator={accelerator}", "--trainer.limit_val_batches=0"]
    own += ["--trainer.enable_progress_bar=false", "--data.prompts_per_step=16"]
    command = [sys.executable, "-m", "asymgrpo_app", "fit", "--config", "configs/quickstart.yaml", *own, *arguments]
    return subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True)


def _said(done: subprocess.CompletedProcess[str]) -> str:
    lines = [line.strip() for line in f"{done.stdout}\n{done.stderr}".splitlines() if line.strip()]
    telling = [line for line in lines if re.search(r"error|Error|accuracy|saved|RL step", line)]
    return " / ".join((telling or lines)[-2:])[-500:]


def quickstart(device: str) -> Outcome:
    """A few steps of the quick start in bf16-mixed, canary and digest included."""
    with tempfile.TemporaryDirectory() as folder:
        done = _fit(folder, device, "--steps=6", f"--trainer.precision={_precision(device)}")
    return Outcome(done.returncode == 0, f"code {done.returncode}: {_said(done)}")


def resume(device: str) -> Outcome:
    """A run whose sampler has 0.8 of the GPU and sleeps is stopped after two steps and goes on to four."""
    if find_spec("vllm") is None:
        return Outcome(None, "vLLM is not installed")
    from benchmarks.step import write_random_model

    arguments = [f"--trainer.precision={_precision(device)}"]
    with tempfile.TemporaryDirectory() as folder:
        if device == "cuda":
            write_random_model("1.5B", Path(folder) / "model")
            arguments += [f"--model.policy={folder}/model", "--rollout.engine.gpu_memory_utilization=0.8"]
            arguments += ["--rollout.engine.sleep_level=2", "--rollout.max_completion_tokens=64"]
        first = _fit(folder, device, "--steps=2", *arguments)
        second = _fit(folder, device, "--steps=4", "--ckpt_path=last", *arguments) if first.returncode == 0 else first
    return Outcome(second.returncode == 0, f"codes {first.returncode} and {second.returncode}: {_said(second)}")


def syncs(device: str) -> Outcome:
    """Reads of the device by the CPU in an update, as torch's own debug mode reports them, per micro-batch."""
    with tempfile.TemporaryDirectory() as folder:
        result = Path(folder) / "syncs"
        done = _fit(
            folder,
            device,
            "--steps=3",
            "--model.micro_batch_tokens=512",
            f"--trainer.precision={_precision(device)}",
            "--trainer.callbacks=benchmarks.first_gpu.sync_probe.SyncProbe",
            f"--trainer.callbacks.path={result}",
        )
        if done.returncode or not result.exists():
            return Outcome(False, f"code {done.returncode}: {_said(done)}")
        reads, batches = map(int, result.read_text().split())
    says = f"{reads} reads in an update of {batches} micro-batches: {reads / batches:.2f} each"
    return Outcome(reads <= 2 * batches + 20 if device == "cuda" else None, says)


def several(device: str) -> Outcome:
    """DDP and FSDP2 over two GPUs, three steps each."""
    if device == "cuda" and torch.cuda.device_count() < 2:
        return Outcome(None, "there is one GPU")
    rows, good = ["| strategy | code | |", "|---|---|---|"], True
    for strategy in ("ddp", "fsdp2"):
        with tempfile.TemporaryDirectory() as folder:
            done = _fit(folder, device, "--steps=3", "--trainer.devices=2", f"--trainer.strategy={strategy}")
        good &= done.returncode == 0
        rows.append(f"| {strategy} | {done.returncode} | {_said(done)} |")
    return Outcome(good, "see the table", rows)


def _precision(device: str) -> str:
    return "bf16-mixed" if device == "cuda" else "32-true"


CHECKS = {
    "quickstart": Check("the quick start runs in bf16-mixed", quickstart, 150.0),
    "syncs": Check("an update reads the device at most twice a micro-batch", syncs, 150.0),
    "resume": Check("a run resumes beside a sampler with 0.8 of the GPU that sleeps", resume, 240.0),
    "several": Check("DDP and FSDP2 over two GPUs", several, 240.0),
}
