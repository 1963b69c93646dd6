"""Attention of short sequences on a CPU: ours against torch's fused kernel, forward and backward.

    .venv/bin/python benchmarks/attention.py
    .venv/bin/python benchmarks/attention.py --dtype float32

Nine query heads share three key heads of 64, as in a model of 135 million parameters; in the quick start's, the last
ones, four share two of 32. Errors are norms of the
difference to float64, relative to the norm, the largest of result, query, key and value.
"""

import argparse
from collections.abc import Callable
from statistics import median
from time import perf_counter

import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

from asymgrpo_app.policy.short_attention import short_attention
from asymgrpo_app.runtime.allocator import reuse_freed_memory

# Sequences, tokens, query heads, key heads, width of a head.
SHAPES = (
    *(
        (batch, length, 9, 3, 64)
        for batch, length in ((64, 20), (16, 40), (2, 140), (4, 190), (4, 250), (2, 400), (1, 768))
    ),
    *((batch, length, 4, 2, 32) for batch, length in ((64, 17), (512, 18))),
)
ROUNDS = 10

Attend = Callable[[Tensor, Tensor, Tensor], Tensor]


def fused(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    return scaled_dot_product_attention(query, key, value, is_causal=True, enable_gqa=True)


def own(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    return short_attention(query, key, value, None)


def passes(attend: Attend, given: tuple[Tensor, ...], dtype: torch.dtype) -> list[Tensor]:
    """The result and the three gradients."""
    leaves = [tensor.to(dtype, copy=True).requires_grad_() for tensor in given[:3]]
    result = attend(leaves[0], leaves[1], leaves[2])
    result.backward(given[3].to(dtype))
    return [result.detach(), *(leaf.grad for leaf in leaves if leaf.grad is not None)]


def milliseconds(attend: Attend, given: tuple[Tensor, ...]) -> float:
    taken = []
    for _ in range(ROUNDS + 1):
        begun = perf_counter()
        passes(attend, given, given[0].dtype)
        taken.append(1e3 * (perf_counter() - begun))
    return median(taken[1:])


def error(attend: Attend, given: tuple[Tensor, ...], exact: list[Tensor]) -> float:
    found = passes(attend, given, given[0].dtype)
    return max(float((a.double() - b).norm() / b.norm()) for a, b in zip(found, exact, strict=True))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--dtype", choices=["bfloat16", "float32"], default="bfloat16")
    dtype: torch.dtype = getattr(torch, parser.parse_args().dtype)
    reuse_freed_memory()
    print("| sequences x tokens, heads | fused, ms | ours, ms | times as fast | error, fused | error, ours |")
    print("| --- | --- | --- | --- | --- | --- |")
    for batch, length, heads, key_heads, width in SHAPES:
        torch.manual_seed(0)
        counts = (heads, key_heads, key_heads, heads)
        given = tuple((2 * torch.randn(batch, length, count, width)).to(dtype).transpose(1, 2) for count in counts)
        exact = passes(fused, given, torch.float64)
        theirs, ours = milliseconds(fused, given), milliseconds(own, given)
        errors = f"{error(fused, given, exact):.1e} | {error(own, given, exact):.1e}"
        shape = f"{batch} x {length}, {heads}"
        print(f"| {shape} | {theirs:.2f} | {ours:.2f} | {theirs / ours:.2f} | {errors} |", flush=True)


if __name__ == "__main__":
    main()
