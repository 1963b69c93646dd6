"""What a step of the likely optimizers costs on the weights of a model of 135 million parameters.

    .venv/bin/python benchmarks/optimizers.py

Weights, gradients and state are float32, and each optimizer has a process of its own. *Memory* is what a step needs for
a moment above these three; *difference* is that of the weights to those of AdamW's plain loop after the same steps,
relative to how far that one moved them. On a GPU where there is one.
"""

import argparse
import json
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from statistics import median
from time import perf_counter

import torch
from torch import Tensor
from transformers import AutoModelForCausalLM, LlamaConfig

STEPS = 8
Make = Callable[[list[Tensor]], torch.optim.Optimizer]
OPTIMIZERS: dict[str, Make] = {
    "AdamW, plain loop": lambda weights: torch.optim.AdamW(weights, lr=1e-5, weight_decay=0.0, foreach=False),
    "AdamW, foreach": lambda weights: torch.optim.AdamW(weights, lr=1e-5, weight_decay=0.0, foreach=True),
    "AdamW, fused": lambda weights: torch.optim.AdamW(weights, lr=1e-5, weight_decay=0.0, fused=True),
    "SGD, momentum": lambda weights: torch.optim.SGD(weights, lr=1e-5, momentum=0.9),
}


def random_weights() -> list[Tensor]:
    """Those of SmolLM2-135M's shape, the same ones each time."""
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=49_152,
        hidden_size=576,
        intermediate_size=1536,
        num_hidden_layers=30,
        num_attention_heads=9,
        num_key_value_heads=3,
        tie_word_embeddings=True,
    )
    device = "cuda" if torch.cuda.is_available() else "cpu"
    return list(AutoModelForCausalLM.from_config(config, dtype=torch.float32).to(device).parameters())


def held_mib() -> float:
    """What the process holds now; peaks count anew from here."""
    if torch.cuda.is_available():
        torch.cuda.reset_peak_memory_stats()
        return torch.cuda.memory_allocated() / 2**20
    Path("/proc/self/clear_refs").write_text("5")
    return peak_mib()


def peak_mib() -> float:
    if torch.cuda.is_available():
        return torch.cuda.max_memory_allocated() / 2**20
    status = Path("/proc/self/status").read_text()
    return int(status.split("VmHWM:")[1].split()[0]) / 2**10


def measure(name: str, weights_file: Path) -> None:
    """Print one optimizer's figures as JSON, and write down how far it moved the weights."""
    weights = random_weights()
    first = [weight.detach().clone() for weight in weights]
    optimizer = OPTIMIZERS[name](weights)
    seconds: list[float] = []
    before = 0.0
    for step in range(STEPS):
        for weight in weights:
            weight.grad = torch.randn_like(weight) if weight.grad is None else weight.grad.normal_()
        if step == 1:  # gradients and state are there; the first step, which makes the state, has its own peak
            before = held_mib()
        begun = perf_counter()
        optimizer.step()
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        seconds.append(perf_counter() - begun)
    memory = peak_mib() - before
    moved = torch.cat([(new.detach() - old).flatten().cpu() for new, old in zip(weights, first, strict=True)])
    torch.save(moved, weights_file)
    print(json.dumps({"ms": 1e3 * median(seconds[1:]), "mib": memory}))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--one", help=argparse.SUPPRESS)
    parser.add_argument("--weights-file", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.one:
        measure(options.one, options.weights_file)
        return
    print("| optimizer | ms a step | memory, MiB | difference |\n| --- | --- | --- | --- |")
    with tempfile.TemporaryDirectory() as folder:
        plain: Tensor | None = None
        for number, name in enumerate(OPTIMIZERS):
            path = Path(folder) / f"{number}.pt"
            command = [sys.executable, __file__, "--one", name, "--weights-file", str(path)]
            row = json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
            moved = torch.load(path, weights_only=True)
            plain = moved if plain is None else plain
            difference = f"{float((moved - plain).norm() / plain.norm()):.1e}" if "AdamW" in name else ""
            print(f"| {name} | {row['ms']:.0f} | {row['mib']:.0f} | {difference} |", flush=True)


if __name__ == "__main__":
    main()
