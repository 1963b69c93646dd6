"""The memory table of docs/scaling.md: what a run holds on each GPU, by `asymgrpo check`'s own estimate.

    python benchmarks/memory_table.py

For full training with AdamW (`fused: true`), bf16-mixed, gradient checkpointing and no reference policy. The shapes of
the models are those of their configurations on the hub; nothing is loaded.
"""

import argparse
from collections.abc import Iterator

from transformers import Qwen2Config, Qwen3Config

from asymgrpo_app.checks.memory import MemoryEstimate, MemorySettings, estimate_memory

GIB = 2**30


def _qwen3(hidden: int, inner: int, layers: int, heads: int, tied: bool) -> Qwen3Config:
    return Qwen3Config(
        vocab_size=151_936,
        hidden_size=hidden,
        intermediate_size=inner,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        num_key_value_heads=8,
        head_dim=128,
        tie_word_embeddings=tied,
    )


MODELS = {
    "Qwen3-0.6B": _qwen3(1024, 3072, 28, 16, tied=True),
    "Qwen2.5-Math-1.5B": Qwen2Config(
        vocab_size=151_936,
        hidden_size=1536,
        intermediate_size=8960,
        num_hidden_layers=28,
        num_attention_heads=12,
        num_key_value_heads=2,
        tie_word_embeddings=True,
    ),
    "Qwen3-1.7B": _qwen3(2048, 6144, 28, 16, tied=True),
    "Qwen3-4B": _qwen3(2560, 9728, 36, 32, tied=True),
    "Qwen3-8B": _qwen3(4096, 12288, 36, 32, tied=False),
    "Qwen3-14B": _qwen3(5120, 17408, 40, 40, tied=False),
    "Qwen3-32B": _qwen3(5120, 25600, 64, 64, tied=False),
}


def settings(micro_batch_tokens: int, completion_tokens: int, checkpointing: bool) -> MemorySettings:
    """Those of the table."""
    return MemorySettings(
        precision="bf16-mixed",
        attention="sdpa",
        gradient_checkpointing=checkpointing,
        micro_batch_tokens=micro_batch_tokens,
        max_prompt_tokens=512,
        max_completion_tokens=completion_tokens,
        group_size=8,
        completions_per_update=512,
        optimizer_copies=2,
        reference=False,
        sampler_dtype="bfloat16",
        sampler_cache=0,
        device="cuda",
    )


def state_and_work(estimate: MemoryEstimate) -> tuple[float, float]:
    """GiB of weights, gradients and optimizer, and of what a forward and backward pass needs beside them."""
    state = sum(estimate.parts[name] for name in ("weights", "gradients", "optimizer"))
    work = estimate.parts["activations"] + estimate.parts["temporary buffers"]
    return state / GIB, work / GIB


def rows(options: argparse.Namespace) -> Iterator[str]:
    """The lines of the table."""
    shared = " | ".join(f"over {count} GPUs" for count in options.gpus)
    yield f"| model | weights | state | a pass | without checkpointing | vLLM's weights | on each GPU | {shared} |"
    yield "| --- " * (7 + len(options.gpus)) + "|"
    for name, config in MODELS.items():
        work = {}
        for checkpointing in (True, False):
            chosen = settings(options.micro_batch_tokens, options.completion_tokens, checkpointing)
            estimate = estimate_memory(config, chosen, available=0)
            state, work[checkpointing] = state_and_work(estimate)
        count = estimate.parts["weights"] / 4
        sizes = [state, *work.values(), 2 * count / GIB]
        sizes += [state / gpus + work[True] for gpus in (1, *options.gpus)]
        yield f"| {name} | {count / 1e9:.2f} billion | {' | '.join(f'{size:.1f}' for size in sizes)} |"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--micro_batch_tokens", type=int, default=16384)
    parser.add_argument("--completion_tokens", type=int, default=4096)
    parser.add_argument(
        "--gpus", type=int, nargs="+", default=[2, 4, 8, 16], help="numbers that the state is spread over"
    )
    for line in rows(parser.parse_args()):
        print(line, flush=True)


if __name__ == "__main__":
    main()
