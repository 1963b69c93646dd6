"""Attention of transformers' models over packed rows (`asymgrpo_app.microbatch.packing`)."""

from functools import cache
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn.functional import scaled_dot_product_attention

from asymgrpo_app.microbatch.microbatch import BucketAttention, PackedAttention, VarlenAttention
from asymgrpo_app.runtime.console import say

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

    In the form `buckets`, sequences of similar length are gathered into batches that are padded on the right. Causal
    attention needs no mask against that padding, which is what keeps it on the fast path.

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
    rows = tuple(tensor.transpose(1, 2).squeeze(0) for tensor in (query, key, value))  # [N, heads, D]
    if torch.is_autocast_enabled(query.device.type):
        # What attention computes in: gathered in float32, it would move twice the memory.
        rows = tuple(row.to(torch.get_autocast_dtype(query.device.type)) for row in rows)
    if isinstance(packing, VarlenAttention):
        kernel: Kernel = "varlen" if rows[0].is_cuda and rows[0].dtype in _VARLEN_TYPES else "reference"
        q, k, v = rows
        return shared_prompt_attention(q, k, v, packing, scale=scaling, kernel=kernel).unsqueeze(0), None
    # A token's query works in one of its copies alone, so that the others' results are never read.
    spread = [_Spread.apply(row, packing) for row in rows]  # type: ignore[no-untyped-call]
    results = [
        _attend(q, k, v, scaling).transpose(1, 2)
        for q, k, v in zip(*(_batches(part, packing) for part in spread), strict=True)
    ]
    flat = torch.cat([result.flatten(0, 1) for result in results])
    return flat.index_select(0, packing.owners).unsqueeze(0), None


# ---- the form `varlen` ----

Kernel = Literal["varlen", "reference"]
"""What computes attention over sequences of any length: torch's fused kernel for GPUs, or plain products and softmax,
sequence by sequence, on any device."""

_VARLEN_TYPES = (torch.bfloat16, torch.float16)


def shared_prompt_attention(
    query: Tensor, key: Tensor, value: Tensor, runs: VarlenAttention, *, scale: float | None, kernel: Kernel
) -> Tensor:
    """Causal attention of each prompt over itself, and of each completion over its prompt and itself.

    Args:
        query: [N, heads, D] of the tokens of a packed row.
        key: [N, key heads, D].
        value: [N, key heads, D].
        runs: Index maps of the row, on the same device.
        scale: Factor on the scores; 1 / sqrt(D) if None.
        kernel: What computes it; `varlen` takes a GPU and 16 bits (see `varlen_refusal`).

    Returns:
        [N, heads, D]. The gradients of a token's copies as key and value are summed in float32, always in one order.
    """
    keys, values = (_SpreadKeys.apply(row, runs) for row in (key, value))  # type: ignore[no-untyped-call]
    compute = _varlen_kernel if kernel == "varlen" else _reference_kernel
    return compute(query, keys, values, runs, scale)


def _varlen_kernel(query: Tensor, keys: Tensor, values: Tensor, runs: VarlenAttention, scale: float | None) -> Tensor:
    from torch.nn.attention.varlen import varlen_attn  # takes as long to import as all of this package

    result: Any = varlen_attn(
        query,
        keys,
        values,
        runs.query_starts,
        runs.key_starts,
        runs.longest_query,
        runs.longest_key,
        scale=scale,
        window_size=(-1, 0),  # every key up to a query's own, counted from the end of its run
        enable_gqa=True,
    )
    attended: Tensor = result
    return attended


def _reference_kernel(
    query: Tensor, keys: Tensor, values: Tensor, runs: VarlenAttention, scale: float | None
) -> Tensor:
    query_sizes, key_sizes = (starts.diff().tolist() for starts in (runs.query_starts, runs.key_starts))
    factor = query.shape[-1] ** -0.5 if scale is None else scale
    results = []
    for q, k, v in zip(query.split(query_sizes), keys.split(key_sizes), values.split(key_sizes), strict=True):
        k, v = (one.repeat_interleave(q.shape[1] // k.shape[1], dim=1) for one in (k, v))
        scores = torch.einsum("qhd,khd->hqk", q, k) * factor
        hidden = torch.ones(len(q), len(k), dtype=torch.bool, device=q.device).triu(len(k) - len(q) + 1)
        weights = scores.masked_fill(hidden, -torch.inf).softmax(dim=-1)
        results.append(torch.einsum("hqk,khd->qhd", weights, v))
    return torch.cat(results)


class _SpreadKeys(torch.autograd.Function):
    """Copy tokens [N, ...] to the keys of all runs [K, ...]; gradients of a token's copies are summed in float32."""

    @staticmethod
    def forward(ctx: Any, tokens: Tensor, runs: VarlenAttention) -> Tensor:
        ctx.runs = runs
        return tokens.index_select(0, runs.keys)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        runs: VarlenAttention = ctx.runs
        exact = torch.promote_types(gradient.dtype, torch.float32)
        total = gradient.index_select(0, runs.owners)
        # Each sum is made by one thread, from the first copy to the last: `index_add_` would add in any order on a GPU.
        # Lengths are not checked (`unsafe`), for which the GPU would be waited for.
        copies = gradient.index_select(0, runs.copies).to(exact)
        sums = torch.segment_reduce(copies, "sum", lengths=runs.num_copies, axis=0, unsafe=True)
        return total.index_copy_(0, runs.shared_tokens, sums.to(total.dtype)), None


def takes_varlen(device: torch.device, dtype: torch.dtype, head_size: int) -> bool:
    """Whether packed rows are computed in the form `varlen`; says once why not, where a GPU computes in 16 bits.

    Args:
        device: Where the policy is.
        dtype: What attention computes in.
        head_size: Width of a head.
    """
    if device.type != "cuda" or dtype not in _VARLEN_TYPES:
        return False
    refusal = varlen_refusal(device, head_size)
    if refusal is not None:
        _say_once(f"Attention over packed rows takes padded buckets, which is slower: {refusal}.")
    return refusal is None


def varlen_refusal(device: torch.device, head_size: int) -> str | None:
    """Why torch's kernel for sequences of any length cannot run in 16 bits on this GPU; None if it can."""
    if not torch.backends.cuda.is_flash_attention_available():
        return "this build of torch has no flash attention"
    if torch.cuda.get_device_capability(device) < (8, 0):
        return "flash attention needs a GPU of compute capability 8.0 or more"
    if head_size % 8 or head_size > 256:
        return f"flash attention needs heads of a multiple of 8 up to 256, and the policy's have {head_size}"
    return None


@cache
def _say_once(text: str) -> None:
    say(text)


# ---- the form `buckets` ----


def _attend(query: Tensor, key: Tensor, value: Tensor, scaling: float | None) -> Tensor:
    if query.is_cuda and query.dtype == torch.float32:
        # No fused kernel on a GPU takes grouped heads in float32; without one all scores would be in memory.
        key, value = (one.repeat_interleave(query.shape[1] // one.shape[1], dim=1) for one in (key, value))
    return scaled_dot_product_attention(query, key, value, is_causal=True, scale=scaling, enable_gqa=True)


def _batches(spread: Tensor, packing: BucketAttention) -> list[Tensor]:
    """Split [S, heads, D] of all buckets into [b, heads, L, D] of each bucket."""
    shapes = [bucket.shape for bucket in packing.buckets]
    parts = spread.split([shape.numel() for shape in shapes])
    return [part.unflatten(0, shape).transpose(1, 2) for part, shape in zip(parts, shapes, strict=True)]


class _Spread(torch.autograd.Function):
    """Copy tokens [N, ...] to all buckets [S, ...]; gradients of a token's copies are summed in float32."""

    @staticmethod
    def forward(ctx: Any, tokens: Tensor, packing: BucketAttention) -> Tensor:
        ctx.packing = packing
        places = torch.cat([bucket.flatten() for bucket in packing.buckets])
        return tokens.index_select(0, places)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        packing: BucketAttention = ctx.packing
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
