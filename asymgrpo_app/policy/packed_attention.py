"""Attention of transformers' models over packed rows (`asymgrpo_app.microbatch.packing`)."""

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import scaled_dot_product_attention

from asymgrpo_app.microbatch.microbatch import PackedAttention

NAME = "asymgrpo_packed_sdpa"
"""Name of this attention in transformers."""

# Architectures whose attention is the plain causal one in all layers; tests compare each with its padded form.
_ARCHITECTURES = frozenset(
    {"ernie4_5", "gemma", "glm4", "llama", "mistral", "olmo2", "phi3", "qwen2", "qwen3", "qwen3_moe", "smollm3"}
)


def can_pack(config: Any) -> bool:
    """Whether a model with this configuration is known to work on packed rows.

    False with a sliding window, which packed rows do not keep, and for architectures that were not compared.
    """
    kinds = set(getattr(config, "layer_types", None) or ["full_attention"])
    windowed = getattr(config, "sliding_window", None) is not None and getattr(config, "use_sliding_window", True)
    return config.model_type in _ARCHITECTURES and kinds == {"full_attention"} and not windowed


def packed_attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    packing: PackedAttention | None = None,
    scaling: float | None = None,
    **kwargs: Any,
) -> tuple[Tensor, None]:
    """Causal attention of each sequence of a packed row; `sdpa` for a plain batch.

    Sequences of similar length are gathered into batches that are padded on the right. Causal attention needs no mask
    against that padding, which is what keeps it on the fast path.

    Args:
        module: The attention layer.
        query: [1, heads, N, D].
        key: [1, key heads, N, D].
        value: [1, key heads, N, D].
        attention_mask: Mask of a plain batch.
        packing: Index maps of a packed row; None for a plain batch.
        scaling: Factor on the scores; 1 / sqrt(D) if None.
        **kwargs: For `sdpa`.

    Returns:
        [1, N, heads, D], and None for the attention weights.
    """
    if packing is None:
        from transformers.integrations.sdpa_attention import sdpa_attention_forward

        return sdpa_attention_forward(module, query, key, value, attention_mask, scaling=scaling, **kwargs)
    rows = [tensor.transpose(1, 2)[0] for tensor in (query, key, value)]  # [N, heads, D]
    if torch.is_autocast_enabled(query.device.type):
        # What attention computes in: gathered in float32, it would move twice the memory.
        rows = [row.to(torch.get_autocast_dtype(query.device.type)) for row in rows]
    # A token's query works in one of its copies alone, so that the others' results are never read.
    spread = [_Spread.apply(row, packing) for row in rows]  # type: ignore[no-untyped-call]
    results = [
        _attend(q, k, v, scaling).transpose(1, 2)
        for q, k, v in zip(*(_batches(part, packing) for part in spread), strict=True)
    ]
    flat = torch.cat([result.flatten(0, 1) for result in results])
    return flat.index_select(0, packing.owners).unsqueeze(0), None


def _attend(query: Tensor, key: Tensor, value: Tensor, scaling: float | None) -> Tensor:
    if query.is_cuda and query.dtype == torch.float32:
        # No fused kernel on a GPU takes grouped heads in float32; without one all scores would be in memory.
        key, value = (one.repeat_interleave(query.shape[1] // one.shape[1], dim=1) for one in (key, value))
    return scaled_dot_product_attention(query, key, value, is_causal=True, scale=scaling, enable_gqa=True)


def _batches(spread: Tensor, packing: PackedAttention) -> list[Tensor]:
    """Split [S, heads, D] of all buckets into [b, heads, L, D] of each bucket."""
    shapes = [bucket.shape for bucket in packing.buckets]
    parts = spread.split([shape.numel() for shape in shapes])
    return [part.unflatten(0, shape).transpose(1, 2) for part, shape in zip(parts, shapes, strict=True)]


class _Spread(torch.autograd.Function):
    """Copy tokens [N, ...] to all buckets [S, ...]; gradients of a token's copies are summed in float32."""

    @staticmethod
    def forward(ctx: Any, tokens: Tensor, packing: PackedAttention) -> Tensor:
        ctx.packing = packing
        places = torch.cat([bucket.flatten() for bucket in packing.buckets])
        return tokens.index_select(0, places)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        packing: PackedAttention = ctx.packing
        exact = torch.promote_types(gradient.dtype, torch.float32)
        total = gradient.index_select(0, packing.owners).to(exact)
        total.index_add_(0, packing.shared_tokens, gradient.index_select(0, packing.shared).to(exact))
        return total.to(gradient.dtype), None


def register() -> None:
    """Make the attention known to transformers by its name."""
    from transformers import AttentionInterface, AttentionMaskInterface
    from transformers.masking_utils import sdpa_mask

    if NAME not in AttentionInterface():  # it may be there in a form that is not compiled
        AttentionInterface.register(NAME, packed_attention)
        AttentionMaskInterface.register(NAME, sdpa_mask)
