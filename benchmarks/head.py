"""The chunked output head against the naive one: time, peak memory, and error against float64.

    .venv/bin/python benchmarks/head.py                                    # 151,936 words, 1,024 hidden, 4,096 tokens
    .venv/bin/python benchmarks/head.py --vocabulary 49152 --width 576 --dtype float32

*Naive* is log-softmax of all logits in float32, from it the chosen tokens' log-probabilities and the entropy, the
latter without gradient unless said otherwise, and autograd's backward pass. `mixed` is float32 weights under bfloat16
autocast. Memory is the highest resident set (torch's on a GPU) above inputs, weights and their gradients, each case in
a process of its own; the chunked head's sum for the weight's gradient is no gradient of bfloat16 weights, and counts.
Errors are those of 256 tokens, relative, in norm.
"""

import argparse
import ctypes
import json
import subprocess
import sys
import threading
import time
from statistics import median

import psutil
import torch
from torch import Tensor

from asymgrpo_app.policy.head import completion_logprobs

CASES = ("naive", "chunked", "naive, entropy with gradient", "chunked, entropy with gradient")


def naive(hidden: Tensor, weight: Tensor, targets: Tensor, *, entropy_grad: bool) -> tuple[Tensor, Tensor]:
    logprobs = torch.log_softmax((hidden @ weight.T).float(), dim=-1)
    with torch.set_grad_enabled(entropy_grad):
        entropy = -(logprobs.exp() * logprobs).sum(dim=-1)
    return logprobs.gather(-1, targets.unsqueeze(-1)).squeeze(-1), entropy


class PeakMemory(threading.Thread):
    """Watches the resident set of this process."""

    def __init__(self) -> None:
        super().__init__(daemon=True)
        if hasattr(libc := ctypes.CDLL(None), "malloc_trim"):
            libc.malloc_trim(0)  # what was freed before must not serve as room
        self.process = psutil.Process()
        self.start_bytes = self.peak = self.process.memory_info().rss
        self.running = True

    def run(self) -> None:
        while self.running:
            self.peak = max(self.peak, self.process.memory_info().rss)
            time.sleep(0.001)


def tensors(tokens: int, width: int, vocabulary: int, dtype: torch.dtype, device: str) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    hidden = torch.randn(tokens, width, generator=generator).to(device, dtype)
    weight = (torch.randn(vocabulary, width, generator=generator) / width**0.5).to(device, dtype)
    targets = torch.randint(0, vocabulary, (tokens,), generator=generator).to(device)
    return hidden.requires_grad_(), weight.requires_grad_(), targets


def one_pass(case: str, dtype: str, hidden: Tensor, weight: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
    """Forward and backward."""
    with_entropy = case.endswith("gradient")
    with torch.autocast(hidden.device.type, torch.bfloat16, enabled=dtype == "mixed"):
        if case.startswith("naive"):
            logprobs, entropy = naive(hidden, weight, targets, entropy_grad=with_entropy)
        else:
            logprobs, entropy = completion_logprobs(
                hidden, weight, None, targets, temperature=1.0, entropy_grad=with_entropy
            )
    (logprobs.sum() + 0.1 * entropy.sum() if with_entropy else logprobs.sum()).backward()
    return logprobs.detach(), entropy.detach()


def measure(case: str, options: argparse.Namespace) -> dict[str, float]:
    """One case, in this process."""
    device = "cuda" if torch.cuda.is_available() else "cpu"
    dtype = torch.bfloat16 if options.dtype == "bfloat16" else torch.float32
    found = errors(case, options, dtype)  # first, so that the libraries have started
    hidden, weight, targets = tensors(options.tokens, options.width, options.vocabulary, dtype, device)
    gradients = (hidden.numel() + weight.numel()) * dtype.itemsize
    seconds, peaks = [], []
    for _ in range(options.repeats):
        hidden.grad = weight.grad = None
        before = torch.cuda.memory_allocated() if device == "cuda" else 0
        memory = PeakMemory()
        memory.start()
        begun = time.perf_counter()
        one_pass(case, options.dtype, hidden, weight, targets)
        if device == "cuda":
            torch.cuda.synchronize()
        seconds.append(time.perf_counter() - begun)
        memory.running = False
        memory.join()
        peak = torch.cuda.max_memory_allocated() - before if device == "cuda" else memory.peak - memory.start_bytes
        peaks.append(peak - gradients)
    return {"seconds": median(seconds), "peak_gib": max(peaks) / 2**30} | found


def errors(case: str, options: argparse.Namespace, dtype: torch.dtype) -> dict[str, float]:
    """Of 256 tokens and their gradients, against float64 on the CPU."""
    hidden, weight, targets = tensors(256, options.width, options.vocabulary, dtype, "cpu")
    exact_hidden, exact_weight = (tensor.detach().double().requires_grad_() for tensor in (hidden, weight))
    found = one_pass(case, options.dtype, hidden, weight, targets)
    logprobs = torch.log_softmax(exact_hidden @ exact_weight.T, dim=-1)
    entropy = -(logprobs.exp() * logprobs).sum(dim=-1)
    chosen = logprobs.gather(-1, targets.unsqueeze(-1)).squeeze(-1)
    (chosen.sum() + 0.1 * entropy.sum() if case.endswith("gradient") else chosen.sum()).backward()
    pairs = {
        "logprob": (found[0], chosen.detach()),
        "entropy": (found[1], entropy.detach()),
        "hidden_gradient": (hidden.grad, exact_hidden.grad),
        "weight_gradient": (weight.grad, exact_weight.grad),
    }
    return {name: float((a.double() - b).norm() / b.norm()) for name, (a, b) in pairs.items()}  # type: ignore[union-attr]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--vocabulary", type=int, default=151_936)
    parser.add_argument("--width", type=int, default=1024)
    parser.add_argument("--tokens", type=int, default=4096)
    parser.add_argument("--dtype", choices=["bfloat16", "float32", "mixed"], default="bfloat16")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--case", choices=CASES, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.case:
        print(json.dumps(measure(options.case, options)))
        return
    found = {}
    for case in CASES:
        done = subprocess.run([sys.executable, *sys.argv, "--case", case], capture_output=True, text=True)
        if done.returncode:
            sys.exit(done.stderr)
        found[case] = json.loads(done.stdout)
    print(f"{options.vocabulary:,} words, {options.width:,} hidden, {options.tokens:,} tokens, {options.dtype}\n")
    print("| head | seconds | peak GiB | log-probabilities | entropy | gradient of states | of weights |")
    print("|---|---|---|---|---|---|---|")
    for case, own in found.items():
        wrong = [f"{own[name]:.1e}" for name in ("logprob", "entropy", "hidden_gradient", "weight_gradient")]
        print(f"| {case} | {own['seconds']:.2f} | {own['peak_gib']:.3f} | {' | '.join(wrong)} |")
    for kind in ("", ", entropy with gradient"):
        own, plain = found[f"chunked{kind}"], found[f"naive{kind}"]
        times, memory = own["seconds"] / plain["seconds"], own["peak_gib"] / plain["peak_gib"]
        print(f"\nchunked / naive{kind}: {times:.2f} of the time, {memory:.3f} of the memory")


if __name__ == "__main__":
    main()
