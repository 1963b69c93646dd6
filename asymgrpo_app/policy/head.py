"""Log-probabilities and entropies of completion tokens from hidden states, without ever holding [T, V] logits.

The head of a small model with a large vocabulary costs as much as its body and is the peak of memory. Here logits exist
for some tokens at a time; the backward pass computes them again.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from asymgrpo_app.policy.head_passes import FusedPasses, Gradients, InPlacePasses, Passes, cuts


def completion_logprobs(
    hidden: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    targets: Tensor,
    *,
    temperature: float,
    chunk_tokens: int | None = None,
    entropy_grad: bool = False,
) -> tuple[Tensor, Tensor]:
    """Log-probability of each target, and entropy, of softmax((hidden weight^T + bias) / temperature).

    Hidden states and weight are rounded to autocast's dtype where autocast is on. Logits, softmax statistics and the
    sum of the weight's gradient over chunks are float32 (float64 for float64 inputs): products of rounded factors, not
    rounded themselves. The gradient by the logits is rounded to the dtype of the factors, for the products with weight
    and states.

    Args:
        hidden: [T, H] states that predict the targets, each that of the token before its target.
        weight: [V, H] of the output head, as one plain tensor.
        bias: [V] of the output head, or None.
        targets: [T] int64 token ids in 0..V-1.
        temperature: The sampling temperature, > 0; applied here and nowhere else.
        chunk_tokens: How many tokens have gradients by logits at the same time, >= 1; None: `CHUNK_TOKENS`.
        entropy_grad: Whether gradients flow through the entropy, which costs time in the backward pass.

    Returns:
        (logprobs, entropy), both [T] in nats, float32 (float64 for float64 inputs). Their gradients are exact up to the
        precision of the matrix products, and cannot be differentiated again.

    Raises:
        ValueError: A temperature or chunk size outside its range.
    """
    if not temperature > 0:
        raise ValueError(f"temperature must be > 0, got {temperature}")
    if chunk_tokens is not None and chunk_tokens < 1:
        raise ValueError(f"chunk_tokens must be >= 1, got {chunk_tokens}")
    device = hidden.device.type
    dtype = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else hidden.dtype
    sizes = _sizes(len(weight), len(hidden), chunk_tokens, on_gpu=device == "cuda")
    settings = _Settings(temperature, sizes, entropy_grad, dtype)
    with torch.autocast(device, enabled=False):
        logprobs, entropy = _CompletionLogprobs.apply(hidden, weight, bias, targets, settings)  # type: ignore[no-untyped-call]
    return logprobs, entropy


# A large chunk spares a GPU traffic: the gradient by the weight is read and written once for each of them.
CHUNK_TOKENS = {"cpu": 512, "cuda": 4096}
# Tokens that have float32 logits at the same time on a GPU, beside the gradients of a chunk: they fill it.
_GPU_LOGIT_TOKENS = 1024
# Logits that are worked on at a time on a CPU: they stay in a core's own cache.
_BLOCK_VALUES = 2**19
# Words of the vocabulary whose weights get a part of their gradient at a time.
_TILE_WORDS = 8192


@dataclass(frozen=True)
class _Sizes:
    """Tokens that are worked on together.

    Attributes:
        chunk: In products of the gradient by the logits.
        logits: In products that are logits.
        block: Element by element.
    """

    chunk: int
    logits: int
    block: int


def _sizes(vocabulary: int, num_tokens: int, chunk_tokens: int | None, *, on_gpu: bool) -> _Sizes:
    chunk = min(chunk_tokens or CHUNK_TOKENS["cuda" if on_gpu else "cpu"], max(1, num_tokens))
    logits = min(chunk, _GPU_LOGIT_TOKENS) if on_gpu else chunk
    # A GPU fills itself with more, and would wait for the launch of smaller work.
    block = logits if on_gpu else min(logits, max(1, _BLOCK_VALUES // vocabulary))
    return _Sizes(chunk, logits, block)


def _mixed(matmul_dtype: torch.dtype) -> bool:
    """Whether factors are of lower precision than logits."""
    return matmul_dtype != _statistics_dtype(matmul_dtype)


def _statistics_dtype(matmul_dtype: torch.dtype) -> torch.dtype:
    return torch.promote_types(matmul_dtype, torch.float32)


@dataclass(frozen=True)
class _Settings:
    temperature: float
    sizes: _Sizes
    entropy_grad: bool
    matmul_dtype: torch.dtype

    @property
    def statistics_dtype(self) -> torch.dtype:
        return _statistics_dtype(self.matmul_dtype)


def working_bytes(
    num_tokens: int,
    width: int,
    vocabulary: int,
    *,
    matmul_dtype: torch.dtype,
    weight_dtype: torch.dtype,
    on_cpu: bool,
    weight_grad: bool = True,
    chunk_tokens: int | None = None,
) -> int:
    """Upper bound on the bytes that the backward pass of `completion_logprobs` holds beside inputs and results.

    Includes the weight's gradient, if it has one (`weight_grad`), since it exists beside the sum that it is added to.
    """
    statistics, mixed = _statistics_dtype(matmul_dtype), _mixed(matmul_dtype)
    sizes = _sizes(vocabulary, num_tokens, chunk_tokens, on_gpu=not on_cpu)
    rows = min(sizes.chunk, num_tokens)
    values = rows * (vocabulary + width) * matmul_dtype.itemsize + sizes.block * vocabulary * statistics.itemsize
    weight = vocabulary * width * statistics.itemsize if weight_grad else 0
    weight += vocabulary * width * matmul_dtype.itemsize if weight_dtype != matmul_dtype else 0
    if mixed:
        values += sizes.logits * vocabulary * statistics.itemsize
        tile = (matmul_dtype if on_cpu else statistics).itemsize
        weight += min(_TILE_WORDS, vocabulary) * width * tile if weight_grad else 0
    if mixed and on_cpu:  # rounded factors in the dtype of logits
        values += sizes.logits * width * statistics.itemsize
        weight += vocabulary * width * statistics.itemsize
    return values + weight + num_tokens * width * statistics.itemsize


class _Head:
    """The output head on some tokens at a time, in buffers that they share."""

    def __init__(self, hidden: Tensor, weight: Tensor, bias: Tensor | None, settings: _Settings) -> None:
        self.settings = settings
        self.hidden = hidden
        self.weight = weight.to(settings.matmul_dtype)
        self.mixed = _mixed(settings.matmul_dtype)
        self.on_gpu = weight.device.type == "cuda"
        # A CPU has no product of rounded factors that is not rounded: there they are multiplied in float32.
        widened = self.mixed and not self.on_gpu
        self._factor = self.weight.to(settings.statistics_dtype) if widened else self.weight
        self._bias = None if bias is None else bias.to(settings.statistics_dtype)
        self._logits: Tensor | None = None

    def buffer(self, tokens: int, dtype: torch.dtype) -> Tensor:
        """A buffer for so many of the tokens, [n, V]."""
        return self.weight.new_empty(min(tokens, len(self.hidden)), len(self.weight), dtype=dtype)

    def passes(self) -> Passes:
        """The passes over logits."""
        settings = self.settings
        in_place = InPlacePasses(settings.temperature, self._bias, settings.sizes.block)
        if not self.on_gpu or self._bias is not None or not FusedPasses.are_usable():
            return in_place
        temperature = self.weight.new_full((1,), settings.temperature, dtype=settings.statistics_dtype)
        return FusedPasses(temperature, in_place)

    def tile(self) -> Tensor:
        """A buffer for the products of some words; on a CPU, which has no others, they are rounded."""
        dtype = self.settings.statistics_dtype if self.on_gpu else self.weight.dtype
        return self.weight.new_empty(min(_TILE_WORDS, len(self.weight)), self.weight.shape[1], dtype=dtype)

    def chunks(self) -> Iterator[slice]:
        """The tokens of each chunk."""
        yield from cuts(0, len(self.hidden), self.settings.sizes.chunk)

    def states(self, tokens: slice) -> Tensor:
        """Hidden states of n tokens, [n, H] in the dtype of the factors of products."""
        return self.hidden[tokens].to(self.settings.matmul_dtype)

    def logits(self, tokens: slice, out: Tensor | None = None) -> Tensor:
        """Logits of n tokens without the bias, [n, V] in the dtype of statistics, which may be overwritten.

        Args:
            tokens: At most `sizes.logits` of them.
            out: Memory for them; None: a buffer that all tokens share.
        """
        if out is None:
            if self._logits is None:
                self._logits = self.buffer(self.settings.sizes.logits, self.settings.statistics_dtype)
            out = self._logits[: tokens.stop - tokens.start]
        return _product(self.states(tokens).to(self._factor.dtype), self._factor.T, out)


class _CompletionLogprobs(torch.autograd.Function):
    """Autograd function of `completion_logprobs`. Between the passes only inputs and [T] statistics are kept."""

    @staticmethod
    def forward(
        ctx: Any, hidden: Tensor, weight: Tensor, bias: Tensor | None, targets: Tensor, settings: _Settings
    ) -> tuple[Tensor, Tensor]:
        head = _Head(hidden, weight, bias, settings)
        passes = head.passes()
        logprobs = hidden.new_empty(len(hidden), dtype=settings.statistics_dtype)
        log_normalizer, entropy = torch.empty_like(logprobs), torch.empty_like(logprobs)
        for tokens in cuts(0, len(hidden), settings.sizes.logits):
            found = passes.statistics(head.logits(tokens), targets[tokens])
            logprobs[tokens], log_normalizer[tokens], entropy[tokens] = found
        ctx.save_for_backward(hidden, weight, bias, targets, log_normalizer, entropy)
        ctx.settings = settings
        ctx.set_materialize_grads(False)
        if not settings.entropy_grad:
            ctx.mark_non_differentiable(entropy)
        return logprobs, entropy

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_logprobs: Tensor | None, grad_entropy: Tensor | None) -> tuple[Tensor | None, ...]:
        # Under manual optimization the backward pass, too, runs inside autocast.
        with torch.autocast(ctx.saved_tensors[0].device.type, enabled=False):
            gradients = _gradients(ctx, grad_logprobs, grad_entropy)
        inputs = ctx.saved_tensors[:3]
        return *(None if own is None else own.to(x.dtype) for own, x in zip(gradients, inputs, strict=True)), None, None


def _gradients(
    ctx: Any, grad_logprobs: Tensor | None, grad_entropy: Tensor | None
) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
    """Gradients by hidden states, weight and bias (those that are needed), the last two in the dtype of statistics."""
    hidden, weight, bias, targets, log_normalizer, entropy = ctx.saved_tensors
    settings: _Settings = ctx.settings
    # With the temperature in here, what follows is the gradient by the logits before they are divided by it.
    by_logprob = torch.zeros_like(entropy) if grad_logprobs is None else grad_logprobs / settings.temperature
    by_entropy = None if grad_entropy is None else grad_entropy / settings.temperature
    given = Gradients(targets, log_normalizer, entropy, by_logprob, by_entropy)
    head, needs, sums = _Head(hidden, weight, bias, settings), ctx.needs_input_grad, settings.statistics_dtype
    passes = head.passes()
    by_hidden = torch.empty_like(hidden) if needs[0] else None
    by_weight = torch.zeros_like(weight, dtype=sums) if needs[1] else None
    by_bias = torch.zeros_like(bias, dtype=sums) if needs[2] else None
    products = head.buffer(settings.sizes.chunk, settings.matmul_dtype)
    tile = head.tile() if needs[1] and head.mixed else None
    for chunk in head.chunks():
        by_logits = products[: chunk.stop - chunk.start]
        for tokens in cuts(chunk.start, chunk.stop, settings.sizes.logits):
            out = by_logits[tokens.start - chunk.start : tokens.stop - chunk.start]
            logits = head.logits(tokens, out=None if head.mixed else out)
            passes.gradient(logits, given[tokens], out, by_bias)
        if by_hidden is not None:
            by_hidden[chunk] = by_logits @ head.weight
        if by_weight is not None:
            _add_product(by_weight, by_logits, head.states(chunk), tile)
    return by_hidden, by_weight, by_bias


def _add_product(total: Tensor, by_logits: Tensor, states: Tensor, tile: Tensor | None) -> None:
    """Add by_logits^T states to the gradient by the weight, [V, H]; a `tile` is for some words at a time."""
    if tile is None:
        total.addmm_(by_logits.T, states)
        return
    for words in cuts(0, len(total), len(tile)):
        total[words] += _product(by_logits[:, words].T, states, tile[: words.stop - words.start])


def _product(left: Tensor, right: Tensor, out: Tensor) -> Tensor:
    """Matrix product in `out`, also where its dtype is higher than that of the factors, which a GPU alone can do."""
    if left.dtype == out.dtype:
        torch.mm(left, right, out=out)
    else:
        torch.mm(left, right, out_dtype=out.dtype, out=out)
    return out
