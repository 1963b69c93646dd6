"""Causal attention of short sequences in 16 bits on a CPU, as a few products of matrices.

torch's fused kernel for CPUs is made for long sequences: with 16 bits and sequences of 20 to 200 tokens most of its
time, in the backward pass above all, goes into many tiny products. Here all heads that share a key head are one.
"""

from typing import Any

import torch
from torch import Tensor

LONGEST = 256
"""Tokens up to which this was faster than the fused kernel (benchmarks/attention.py); memory grows with the square."""

_SCORES_AT_ONCE = 2**23
"""Scores of so many elements are held at a time, in float32: 32 MiB, and at least those of one sequence."""


def fits(query: Tensor) -> bool:
    """Whether a query [B, heads, L, D] is of the kind that is faster here."""
    return query.device.type == "cpu" and query.dtype == torch.bfloat16 and query.shape[2] <= LONGEST


def short_attention(query: Tensor, key: Tensor, value: Tensor, scale: float | None) -> Tensor:
    """Causal attention; scores and softmax in float32, the other products in the inputs' type.

    Args:
        query: [B, heads, L, D].
        key: [B, key heads, L, D]; consecutive query heads share one.
        value: [B, key heads, L, D].
        scale: Of the scores; 1 / sqrt(D) if None.

    Returns:
        [B, heads, L, D].
    """
    scale = query.shape[-1] ** -0.5 if scale is None else scale
    return _ShortAttention.apply(query, key, value, scale)  # type: ignore[no-untyped-call,no-any-return]


class _ShortAttention(torch.autograd.Function):
    """Probabilities are made again in the backward pass: kept, they would be most of what attention keeps."""

    @staticmethod
    def forward(ctx: Any, query: Tensor, key: Tensor, value: Tensor, scale: float) -> Tensor:
        queries, keys, values = _by_key_head(query, key, value)
        result = torch.empty_like(queries)
        for part in _parts(queries, query.shape[2]):
            probabilities = _probabilities(queries[part], keys[part], scale, query.shape[2])
            torch.bmm(probabilities.to(query.dtype), values[part], out=result[part])
        ctx.save_for_backward(queries, keys, values, result)
        ctx.scale, ctx.shapes = scale, (query.shape, key.shape)
        return result.view(query.shape)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, Tensor, Tensor, None]:
        queries, keys, values, result = ctx.saved_tensors
        shape, key_shape = ctx.shapes
        of_result = gradient.reshape(result.shape)
        of_queries, of_keys, of_values = map(torch.empty_like, (queries, keys, values))
        for part in _parts(queries, shape[2]):
            given = of_result[part]
            probabilities = _probabilities(queries[part], keys[part], ctx.scale, shape[2])
            torch.bmm(probabilities.to(given.dtype).transpose(1, 2), given, out=of_values[part])
            # d softmax: P * (dP - sum P dP), and that sum is dO . O.
            inner = (given.float() * result[part].float()).sum(-1, keepdim=True)
            of_scores = torch.bmm(given.float(), values[part].float().transpose(1, 2)).sub_(inner)
            of_scores = of_scores.mul_(probabilities).mul_(ctx.scale).to(given.dtype)
            torch.bmm(of_scores, keys[part], out=of_queries[part])
            torch.bmm(of_scores.transpose(1, 2), queries[part], out=of_keys[part])
        return of_queries.view(shape), of_keys.view(key_shape), of_values.view(key_shape), None


def _by_key_head(query: Tensor, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """[B * key heads, heads per key head * L, D] of queries; [B * key heads, L, D] of keys and values."""
    batch, key_heads, length, width = key.shape
    return (
        query.reshape(batch * key_heads, -1, width),
        key.reshape(batch * key_heads, length, width),
        value.reshape(batch * key_heads, length, width),
    )


def _parts(queries: Tensor, length: int) -> list[slice]:
    """Slices of the first dimension whose scores are held at the same time."""
    count = max(1, _SCORES_AT_ONCE // (queries.shape[1] * length))
    return [slice(begin, begin + count) for begin in range(0, len(queries), count)]


def _probabilities(queries: Tensor, keys: Tensor, scale: float, length: int) -> Tensor:
    """Softmax over the keys up to each query's own place, [b, heads per key head * L, L] in float32."""
    later = torch.full((length, length), float("-inf")).triu(1)
    scores = torch.bmm(queries.float(), keys.float().transpose(1, 2))
    scores = torch.add(later, scores.unflatten(1, (-1, length)), alpha=scale)
    return torch.softmax(scores, -1, out=scores).flatten(1, 2)
