"""Estimates of a step on GPUs that nobody measured: the tables of docs/scaling.md, from bytes, FLOP and bandwidth.

    python benchmarks/step_estimate.py                       # the recipes on 1, 4 and 8 H100 of 80 GB
    python benchmarks/step_estimate.py --gpu H200 --gpus 1 8

Every figure is an estimate, by the formulas below: what the hardware can do at the most, times a share of it that is
assumed (`GPU`). Lengths of completions are assumed to be exponential, with the mean of `MEAN_TOKENS` and cut at the
recipe's limit.
"""

import argparse
from dataclasses import dataclass, replace
from math import exp
from pathlib import Path
from typing import Any

import yaml

from asymgrpo_app.policy.loading import empty_policy
from benchmarks.memory_table import MODELS, work

RECIPES = Path(__file__).resolve().parent.parent / "configs/recipes"
MEAN_TOKENS = {"qwen3_0.6b_gsm8k": 250, "qwen2.5_math_1.5b_math": 700, "qwen3_4b_math": 1500}
PROMPT_TOKENS = 120
GIB = 2**30


@dataclass(frozen=True)
class GPU:
    """A GPU by its data sheet, and the shares of it that are assumed.

    Attributes:
        flops: Dense bfloat16 FLOP/s.
        bandwidth: Memory, bytes/s.
        link: To the other GPUs of the machine, bytes/s in each direction.
        memory: Bytes.
        update_share: Share of `flops` in forward and backward passes.
        memory_share: Share of `bandwidth` in decoding and in the optimizer's step.
        link_share: Share of `link`.
        token_s: Seconds of the CPU per sampled token: scheduling, and the objects of a token.
        decode_s: Seconds of a decoding step beside that: launch of its CUDA graph.
    """

    flops: float
    bandwidth: float
    link: float
    memory: float
    update_share: float = 0.40
    memory_share: float = 0.75
    link_share: float = 0.7
    token_s: float = 9e-6
    decode_s: float = 0.5e-3


GPUS = {
    "A100": GPU(312e12, 2.0e12, 300e9, 80e9),
    "H100": GPU(989e12, 3.35e12, 450e9, 80e9),
    "H200": GPU(989e12, 4.8e12, 450e9, 141e9),
    "B200": GPU(2250e12, 8.0e12, 900e9, 180e9),
}


@dataclass(frozen=True)
class Work:
    """What a recipe does in a step.

    Attributes:
        parameters: Of the policy.
        cache_bytes: Of keys and values per token in the sampler, bfloat16.
        attention_flops: Per token and token that it attends to, in a forward pass.
        completions: Of a step, on all GPUs.
        group_size: Completions per prompt.
        mean_tokens: Mean length of a completion.
        limit: Most tokens of a completion.
        updates: Optimizer updates of a step.
        micro_batch_tokens: Of one forward pass.
        concurrent: Most completions sampled at once on a GPU.
        share: Of a GPU's memory that the sampler has.
        sleeps: Whether the sampler's memory is free during the update.
        sharded: Whether weights are sharded (FSDP2).
        checkpointing: Whether activations are computed twice.
        exchange_bytes: Of a weight that is gathered, with `sharded`.
    """

    parameters: int
    cache_bytes: int
    attention_flops: int
    completions: int
    group_size: int
    mean_tokens: float
    limit: int
    updates: int
    micro_batch_tokens: int
    concurrent: int
    share: float
    sleeps: bool
    sharded: bool
    checkpointing: bool
    exchange_bytes: int = 4


def work_of(recipe: str) -> Work:
    """The work of a recipe, with the shape of its model from `MODELS`."""
    config = yaml.safe_load((RECIPES / f"{recipe}.yaml").read_text())
    model, rollout = config["model"], config["rollout"]
    shape: Any = MODELS[model["policy"].rpartition("/")[2]]
    head = getattr(shape, "head_dim", None) or shape.hidden_size // shape.num_attention_heads
    return Work(
        parameters=empty_policy(shape).num_parameters(),
        cache_bytes=2 * 2 * shape.num_hidden_layers * shape.num_key_value_heads * head,
        attention_flops=4 * shape.num_hidden_layers * shape.num_attention_heads * head,
        completions=config["data"]["prompts_per_step"] * rollout["group_size"],
        group_size=rollout["group_size"],
        mean_tokens=MEAN_TOKENS[recipe],
        limit=rollout["max_completion_tokens"],
        updates=model.get("updates_per_step", 1),
        micro_batch_tokens=model["micro_batch_tokens"],
        concurrent=rollout["engine"]["max_num_seqs"],
        share=rollout["engine"]["gpu_memory_utilization"],
        sleeps=rollout["engine"].get("sleep_level", 0) > 0,
        sharded=config["trainer"].get("strategy") == "fsdp2",
        checkpointing=model.get("gradient_checkpointing", False),
    )


def sampling_seconds(work: Work, gpu: GPU, gpus: int) -> float:
    """Decoding of a GPU's share of the completions until its longest one ends, after its prompts are read.

    A decoding step takes the longer of what the GPU reads (weights, and keys and values of all that is sampled) and
    computes, and what the CPU does for each token meanwhile.
    """
    waiting = work.completions / gpus
    weights = 2 * work.parameters
    room = max(work.share * gpu.memory - weights - 2 * GIB, 0) / work.cache_bytes  # tokens that the cache holds
    places = min(work.concurrent, room / (PROMPT_TOKENS + work.mean_tokens))
    if places < 1:
        raise ValueError("the sampler's memory holds no completion")
    prefill = waiting / work.group_size * PROMPT_TOKENS * 2 * work.parameters / (gpu.flops * gpu.update_share)
    seconds, active, token = prefill, 0.0, 0
    ends = 1 - exp(-1 / work.mean_tokens)  # share of the completions that end with a token
    while waiting > 0 or (active >= 0.5 and token < work.limit):
        begun = min(places - active, waiting) if waiting > 0 else 0.0
        waiting, active = waiting - begun, active + begun
        read = weights + active * (PROMPT_TOKENS + work.mean_tokens) * work.cache_bytes
        compute = 2 * work.parameters * active / (gpu.flops * gpu.update_share)
        on_gpu = max(read / (gpu.bandwidth * gpu.memory_share), compute) + gpu.decode_s
        seconds += max(on_gpu, active * gpu.token_s)
        active *= 1 - ends
        token = token + 1 if waiting <= 0 else 0  # the last ones that began decide
    return seconds


def update_seconds(work: Work, gpu: GPU, gpus: int) -> float:
    """Forward and backward passes: 2 FLOP per parameter and token forward, 4 backward, 2 more with checkpointing."""
    tokens = work.completions / gpus * (work.mean_tokens + PROMPT_TOKENS / work.group_size)
    times = 4 if work.checkpointing else 3  # forward passes' worth
    attention = work.attention_flops * work.mean_tokens  # an exponential length attends to its mean on average
    return tokens * times * (2 * work.parameters + attention) / (gpu.flops * gpu.update_share)


def exchange_seconds(work: Work, gpu: GPU, gpus: int) -> float:
    """Gradients of each update; with sharded weights, also two or three gatherings of all weights per micro-batch."""
    if gpus == 1:
        return 0.0
    part = (gpus - 1) / gpus / (gpu.link * gpu.link_share)
    if not work.sharded:
        return work.updates * 2 * 4 * work.parameters * part
    tokens = work.completions / gpus * (work.mean_tokens + PROMPT_TOKENS / work.group_size)
    passes = max(tokens / work.micro_batch_tokens, work.updates)
    gathered = passes * (3 if work.checkpointing else 2) * work.exchange_bytes * work.parameters
    return (gathered + work.updates * 4 * work.parameters) * part


def rest_seconds(work: Work, gpu: GPU, gpus: int) -> float:
    """AdamW's reads and writes (28 bytes a parameter and update), the push of weights and its check."""
    mine = work.parameters / (gpus if work.sharded else 1)
    adam = work.updates * 28 * mine / (gpu.bandwidth * gpu.memory_share)
    push = 6 * work.parameters / (gpu.bandwidth * gpu.memory_share) + 0.4
    gather = 4 * work.parameters / (gpu.link * gpu.link_share) if work.sharded and gpus > 1 else 0.0
    return adam + push + gather


def memory_gib(work: Work, gpu: GPU, gpus: int, pass_gib: float) -> float:
    """The most that a GPU holds: state and a pass, with the sampler's share unless it sleeps meanwhile."""
    shards = gpus if work.sharded else 1
    state = 16 * work.parameters / shards
    state += 4 * work.parameters if work.sharded and gpus > 1 else 0  # gradients, until an update is complete
    state += 4 * work.parameters if not work.sharded and gpus > 1 else 0  # DDP's buckets
    training = state / GIB + pass_gib
    sampler = work.share * gpu.memory / GIB
    kept = 12 * work.parameters / shards / GIB  # weights and moments, while it samples
    return max(training, kept + sampler) if work.sleeps else training + sampler


def phases(work: Work, gpu: GPU, gpus: int) -> list[float]:
    """Seconds of sampling, update, exchange and the rest."""
    return [part(work, gpu, gpus) for part in (sampling_seconds, update_seconds, exchange_seconds, rest_seconds)]


def recipes_table(gpu: GPU, counts: list[int]) -> list[str]:
    lines = ["| recipe | GPUs | sampling | update | exchange | rest | a step | GiB on each GPU |", "| --- " * 8 + "|"]
    for recipe in MEAN_TOKENS:
        work_, pass_gib = work_of(recipe), _pass_gib(recipe)
        for gpus in counts:
            seconds = phases(work_, gpu, gpus)
            held = memory_gib(work_, gpu, gpus, pass_gib)
            fits = f"{held:.0f}" if held < gpu.memory / GIB else f"{held:.0f}: too much"
            shown = " | ".join(f"{part:.1f} s" for part in [*seconds, sum(seconds)])
            lines.append(f"| {recipe} | {gpus} | {shown} | {fits} |")
    return lines


def _pass_gib(recipe: str) -> float:
    config = yaml.safe_load((RECIPES / f"{recipe}.yaml").read_text())
    limits = argparse.Namespace(
        completion_tokens=config["rollout"]["max_completion_tokens"],
        micro_batch_tokens=config["model"]["micro_batch_tokens"],
    )
    shape = MODELS[config["model"]["policy"].rpartition("/")[2]]
    return work(shape, limits, checkpointing=config["model"].get("gradient_checkpointing", False))


def options_table(gpu: GPU) -> list[str]:
    """What single options do to a step of the 1.5B recipe on one GPU, and of the 4B recipe on eight."""
    small, large = work_of("qwen2.5_math_1.5b_math"), work_of("qwen3_4b_math")
    changes: list[tuple[str, Work, GPU, int]] = [
        ("as it is", small, gpu, 1),
        ("without CUDA graphs (`enforce_eager: true`)", small, replace(gpu, decode_s=8e-3), 1),
        ("`gradient_checkpointing: false`", replace(small, checkpointing=False), gpu, 1),
        ("half of `max_num_seqs`", replace(small, concurrent=small.concurrent // 2), gpu, 1),
        ("`max_completion_tokens` halved", replace(small, limit=small.limit // 2), gpu, 1),
        ("as it is", large, gpu, 8),
        ("FSDP2 exchanges bfloat16", replace(large, exchange_bytes=2), gpu, 8),
        ("half of `micro_batch_tokens`", replace(large, micro_batch_tokens=large.micro_batch_tokens // 2), gpu, 8),
        ("0.3 of the GPU for the sampler", replace(large, share=0.3), gpu, 8),
    ]
    lines = ["| recipe and change | sampling | update | exchange | rest | a step |", "| --- " * 6 + "|"]
    for name, changed, on, gpus in changes:
        seconds = phases(changed, on, gpus)
        recipe = "1.5B, one GPU" if gpus == 1 else "4B, eight GPUs"
        shown = " | ".join(f"{part:.1f} s" for part in [*seconds, sum(seconds)])
        lines.append(f"| {recipe}: {name} | {shown} |")
    return lines


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--gpu", choices=GPUS, default="H100")
    parser.add_argument("--gpus", type=int, nargs="+", default=[1, 4, 8])
    options = parser.parse_args()
    print(*recipes_table(GPUS[options.gpu], options.gpus), "", *options_table(GPUS[options.gpu]), sep="\n")


if __name__ == "__main__":
    main()
