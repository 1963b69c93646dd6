"""Checks of what the update computes with: compilers, attention, the output head, a pass."""

import os
import subprocess
import tempfile
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from benchmarks.first_gpu.outcome import Check, Outcome

PROGRAM = """
#include <cstdio>
#include <cuda_runtime.h>
__global__ void add(int* x) { *x += 41; }
int main() {
  int *x, n = 1;
  if (cudaMalloc(&x, sizeof n)) return 2;
  cudaMemcpy(x, &n, sizeof n, cudaMemcpyHostToDevice);
  add<<<1, 1>>>(x);
  cudaMemcpy(&n, x, sizeof n, cudaMemcpyDeviceToHost);
  printf("%d", n);
}
"""


def compilers(device: str) -> Outcome:
    """nvcc of the wheels compiles, links and runs a program; torch.compile compiles a function."""
    from asymgrpo_app.runtime.cuda_toolkit import installed_toolkit, provide_cuda_home

    provide_cuda_home()
    compiled = torch.compile(lambda x: (x * 2 + 1).sum())
    numbers = torch.arange(1000.0, device=device)
    triton = abs(float(compiled(numbers)) - 1_000_000) < 1
    toolkit = installed_toolkit()
    if toolkit is None:
        return Outcome(triton if device == "cuda" else None, f"torch.compile: {triton}; no nvcc among the packages")
    with tempfile.TemporaryDirectory() as folder:
        source = Path(folder) / "add.cu"
        source.write_text(PROGRAM)
        home = os.environ["CUDA_HOME"]
        command = [
            f"{home}/bin/nvcc",
            "-arch=native",
            "-o",
            f"{folder}/add",
            str(source),
            f"-L{home}/lib64",
            "-lcudart",
        ]
        built = subprocess.run(command, capture_output=True, text=True)
        said = subprocess.run([f"{folder}/add"], capture_output=True, text=True).stdout if not built.returncode else ""
    return Outcome(
        triton and said == "42", f"torch.compile: {triton}; nvcc's program said {said or built.stderr[-300:]!r}"
    )


def head(device: str) -> Outcome:
    """Log-probabilities, entropies and gradients of the head under bf16 autocast against float64."""
    from asymgrpo_app.policy.head import completion_logprobs

    tokens, width, vocabulary = (2048, 896, 151_936) if device == "cuda" else (64, 128, 4096)
    generator = torch.Generator().manual_seed(0)
    hidden = torch.randn(tokens, width, generator=generator).to(device, torch.bfloat16).requires_grad_()
    weight = (torch.randn(vocabulary, width, generator=generator) * 0.08).to(device).requires_grad_()
    targets = torch.randint(vocabulary, (tokens,), generator=generator).to(device)
    with torch.autocast(device, torch.bfloat16):
        logprobs, entropy = completion_logprobs(hidden, weight, None, targets, temperature=1.0)
    chosen = slice(0, 64)
    logprobs[chosen].sum().backward()
    exact, exact_entropy, by_hidden = _exact_head(hidden, weight, targets, chosen)
    worst = float((logprobs[chosen].double() - exact).detach().abs().max())
    worst_entropy = float((entropy[chosen].double() - exact_entropy).detach().abs().max())
    assert hidden.grad is not None
    cosine = float(torch.cosine_similarity(hidden.grad[chosen].double().flatten(), by_hidden.flatten(), dim=0))
    passed = worst < 2e-3 and worst_entropy < 2e-3 and cosine > 0.9999
    return Outcome(
        passed,
        f"largest |log-probability - float64| {worst:.2g}, of the entropy {worst_entropy:.2g}, cosine of the gradient "
        f"{cosine:.6f} (float32 logits: 1e-3; bfloat16 ones step by 0.125)",
    )


def _exact_head(hidden: Tensor, weight: Tensor, targets: Tensor, chosen: slice) -> tuple[Tensor, Tensor, Tensor]:
    """In float64, of the bfloat16 numbers that the products take."""
    states = hidden.detach()[chosen].double().requires_grad_()
    logs = (states @ weight.detach().bfloat16().double().T).log_softmax(-1)
    picked = logs.gather(-1, targets[chosen, None]).squeeze(-1)
    (by_hidden,) = torch.autograd.grad(picked.sum(), states, retain_graph=True)
    return picked.detach(), -(logs.exp() * logs).sum(-1).detach(), by_hidden


def attention(device: str) -> Outcome:
    """Attention of completions over their shared prompt: torch's kernel for sequences of any length, and plain sums."""
    from asymgrpo_app.policy.packed_attention import shared_prompt_attention, takes_varlen

    on, dtype = torch.device(device), torch.bfloat16 if device == "cuda" else torch.float32
    fused = takes_varlen(on, dtype, 64)
    if device == "cuda" and not fused:
        return Outcome(False, "the kernel cannot be used here")
    (batch,) = _micro_batches(_sequences(), on, "varlen")
    generator = torch.Generator().manual_seed(2)
    number = batch.num_tokens
    rows = [torch.randn(number, heads, 64, generator=generator).to(on, dtype) for heads in (4, 2, 2, 4)]
    found = []
    for kernel in ("reference", "varlen" if fused else "reference"):
        leaves = [row.clone().requires_grad_() for row in rows[:3]]
        result = shared_prompt_attention(*leaves, batch.attention, scale=None, kernel=kernel)
        found.append([result, *torch.autograd.grad(result, leaves, rows[3])])
    gaps = [float(((one - other).abs().max() / one.abs().max()).detach()) for one, other in zip(*found, strict=True)]
    shown = ", ".join(f"{gap:.2g}" for gap in gaps)
    return Outcome(max(gaps) < 0.02, f"largest relative differences of values and of gradients by q, k, v: {shown}")


def passes(device: str) -> Outcome:
    """Log-probabilities and gradients of packed completions, on the device in bfloat16 and on the CPU in float32."""
    policy, sequences = _small_policy(), _sequences()
    reference, by_weight = _pass(policy, sequences, "cpu", low=False)
    found, found_by_weight = _pass(policy, sequences, device, low=True)
    gap = float((found - reference).abs().mean())
    cosine = float(torch.cosine_similarity(found_by_weight, by_weight, dim=0))
    return Outcome(
        gap < 0.02 and cosine > 0.995,
        f"mean |difference| of {len(found)} log-probabilities {gap:.2g}, cosine of all gradients {cosine:.6f}",
    )


def _sequences() -> list[Any]:
    """Six prompts with eight completions each, of random lengths and tokens."""
    from asymgrpo_app.microbatch.microbatch import TokenSequence

    generator = torch.Generator().manual_seed(1)

    def draw(least: int, most: int) -> list[int]:
        number = int(torch.randint(least, most, (1,), generator=generator))
        return torch.randint(512, (number,), generator=generator).tolist()

    prompts = [draw(5, 40) for _ in range(6)]
    return [TokenSequence(prompt, draw(1, 90)) for prompt in prompts for _ in range(8)]


def _micro_batches(sequences: list[Any], device: torch.device, form: Any) -> Any:
    """One micro-batch of all sequences."""
    from asymgrpo_app.microbatch.cutting import MicroBatches, cut

    return MicroBatches(sequences, cut(sequences, range(len(sequences)), 100_000, form), form, device)


def _small_policy() -> Any:
    """A policy with random weights, loaded as in a run."""
    from transformers import AutoModelForCausalLM, Qwen2Config

    from asymgrpo_app.policy.loading import load_policy

    config = Qwen2Config(
        vocab_size=512,
        hidden_size=256,
        intermediate_size=512,
        num_hidden_layers=3,
        num_attention_heads=4,
        num_key_value_heads=2,
        tie_word_embeddings=True,
    )
    torch.manual_seed(0)
    with tempfile.TemporaryDirectory() as folder:
        AutoModelForCausalLM.from_config(config, dtype=torch.float32).save_pretrained(folder)
        return load_policy(folder, "sdpa")


def _pass(policy: Any, sequences: list[Any], device: str, *, low: bool) -> tuple[Tensor, Tensor]:
    from asymgrpo_app.policy.loading import micro_batch_form, token_logprobs

    policy.to(device).zero_grad()
    with torch.autocast(device, torch.bfloat16, enabled=low):
        (batch,) = _micro_batches(sequences, torch.device(device), micro_batch_form(policy))
        logprobs, _ = token_logprobs(policy, batch, temperature=1.0)
        logprobs.mean().backward()
    gradients = torch.cat([weight.grad.flatten().double().cpu() for weight in policy.parameters()])
    return logprobs.detach().float().cpu(), gradients


CHECKS = {
    "compilers": Check("torch.compile and nvcc compile, link and run", compilers),
    "head": Check("the output head has float32 logits under bf16-mixed", head),
    "attention": Check("the attention kernel's causal rule is the layout's", attention),
    "passes": Check("a pass over packed completions is the CPU's to rounding", passes),
}
