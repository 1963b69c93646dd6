"""The memory table of docs/scaling.md: what a run holds on each GPU, by `asymgrpo check`'s own estimate.

    python benchmarks/memory_table.py

For full training with AdamW (`fused: true`), bf16-mixed, gradient checkpointing and no reference policy. The shapes of
the models are those of their configurations on the hub; nothing is loaded.
"""

import argparse
from collections.abc import Iterator
from typing import Any

from transformers import Qwen2Config, Qwen3Config

from asymgrpo_app.checks.memory import held_policy, largest_micro_batch, pass_memory
from asymgrpo_app.policy.loading import empty_policy, packs

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


def work(config: Any, options: argparse.Namespace, checkpointing: bool) -> float:
    """GiB that a forward and a backward pass needs beside weights, gradients and optimizer."""
    policy = held_policy(config, "sdpa", "bf16-mixed", lora=None)
    lengths = 512, options.completion_tokens
    batch = largest_micro_batch((64, 8), lengths, options.micro_batch_tokens, packed=packs(policy))
    return sum(pass_memory(policy, batch, "bf16-mixed", checkpointing=checkpointing, on_gpu=True)) / GIB


def rows(options: argparse.Namespace) -> Iterator[str]:
    """The lines of the table."""
    shared = " | ".join(f"over {count} GPUs" for count in options.gpus)
    yield f"| model | weights | state | a pass | without checkpointing | vLLM's weights | on each GPU | {shared} |"
    yield "| --- " * (7 + len(options.gpus)) + "|"
    for name, config in MODELS.items():
        count = empty_policy(config).num_parameters()
        state, least = 16 * count / GIB, work(config, options, checkpointing=True)
        sizes = [state, least, work(config, options, checkpointing=False), 2 * count / GIB]
        sizes += [state / gpus + least for gpus in (1, *options.gpus)]
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
