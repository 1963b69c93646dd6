"""What the options of an update cost and save: forward and backward passes over the same micro-batches.

    .venv/bin/python benchmarks/update_options.py
    .venv/bin/python benchmarks/update_options.py --tokens 16384 --micro-batches 8      # for a GPU

Random weights of SmolLM2-135M's shape, random groups of eight completions of up to 160 tokens that share a prompt of
50, packed into micro-batches. Every row has a process of its own. *Seconds* are those of a pass over all micro-batches
after one that warms up, whose extra seconds are the *first* ones (compilation above all); *memory* is the peak above
weights and gradients. A CPU without kernels for bfloat16 calculates in float32 throughout.
"""

import argparse
import json
import subprocess
import sys
from contextlib import nullcontext
from pathlib import Path
from statistics import mean
from time import perf_counter

import torch
from transformers import AutoModelForCausalLM, LlamaConfig

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
from asymgrpo_app.checks.precision import calculates_bfloat16
from asymgrpo_app.microbatch.cutting import MicroBatches, cut
from asymgrpo_app.microbatch.microbatch import Form, MicroBatch, TokenSequence
from asymgrpo_app.policy.compilation import compile_blocks
from asymgrpo_app.policy.loading import micro_batch_form, token_logprobs
from asymgrpo_app.policy.packed_attention import NAME
from asymgrpo_app.runtime.allocator import return_freed_memory, reuse_freed_memory
from asymgrpo_app.runtime.environment import quiet_environment
from benchmarks.optimizers import held_mib, peak_mib

ROUNDS = 2
DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
IN_BFLOAT16 = DEVICE == "cuda" or calculates_bfloat16()
# The keys of a config, and what they are here.
ROWS = {
    "bf16-mixed": {},
    "32-true": {"float32": True},
    "padded, not packed": {"attention": "sdpa"},
    "attention: eager (padded)": {"attention": "eager"},
    "gradient_checkpointing": {"checkpointing": True},
    "compile": {"compile": True},
    "compile and gradient_checkpointing": {"compile": True, "checkpointing": True},
}


def micro_batches(number: int, tokens: int, form: Form) -> list[MicroBatch]:
    generator = torch.Generator().manual_seed(0)

    def random_tokens(length: int) -> list[int]:
        return torch.randint(0, 49_152, (length,), generator=generator).tolist()

    sequences = []
    for _ in range(max(1, number * tokens // 700)):  # a group of eight is about 700 tokens packed
        prompt = random_tokens(50)
        lengths = torch.randint(10, 161, (8,), generator=generator).tolist()
        sequences += [TokenSequence(prompt, random_tokens(length)) for length in lengths]
    groups = cut(sequences, range(len(sequences)), tokens, form)
    return list(MicroBatches(sequences, groups, form, torch.device(DEVICE)))


def measure(row: str, number: int, tokens: int) -> None:
    """Print one row's figures as JSON."""
    options = ROWS[row]
    if DEVICE == "cpu":
        reuse_freed_memory()
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
    attention = options.get("attention", NAME)
    policy = AutoModelForCausalLM.from_config(config, dtype=torch.float32, attn_implementation=attention).to(DEVICE)
    policy.train()
    if options.get("checkpointing"):
        policy.gradient_checkpointing_enable({"use_reentrant": False})
    if options.get("compile"):
        compile_blocks(policy)
    for weight in policy.parameters():
        weight.grad = torch.zeros_like(weight)
    bfloat16 = IN_BFLOAT16 and not options.get("float32")
    with torch.autocast(DEVICE, torch.bfloat16, enabled=bfloat16):
        work = micro_batches(number, tokens, micro_batch_form(policy))
    return_freed_memory()
    before = held_mib()
    seconds = []
    for _ in range(ROUNDS + 1):
        begun = perf_counter()
        for batch in work:
            with torch.autocast(DEVICE, torch.bfloat16) if bfloat16 else nullcontext():
                logprobs, _ = token_logprobs(policy, batch, temperature=1.0)
            logprobs.sum().backward()
        if DEVICE == "cuda":
            torch.cuda.synchronize()
        seconds.append(perf_counter() - begun)
    taken = mean(seconds[1:])
    print(json.dumps({"seconds": taken, "first": seconds[0] - taken, "mib": peak_mib() - before}))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tokens", type=int, default=384, help="of a micro-batch")
    parser.add_argument("--micro-batches", type=int, default=6)
    parser.add_argument("--row", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.row:
        measure(options.row, options.micro_batches, options.tokens)
        return
    quiet_environment()  # the processes below inherit it
    print("| options | seconds | times as long | first | memory, MiB |\n| --- | --- | --- | --- | --- |")
    plain = 0.0
    for row in list(ROWS)[0 if IN_BFLOAT16 else 1 :]:
        command = [sys.executable, __file__, f"--row={row}", f"--tokens={options.tokens}"]
        command.append(f"--micro-batches={options.micro_batches}")
        found = json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout.splitlines()[-1])
        plain = plain or found["seconds"]
        ratio = f"{found['seconds'] / plain:.2f}"
        print(f"| {row} | {found['seconds']:.2f} | {ratio} | {found['first']:.1f} | {found['mib']:.0f} |", flush=True)


if __name__ == "__main__":
    main()
