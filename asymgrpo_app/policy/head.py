"""Log-probabilities and entropies of completion tokens from hidden states, without ever holding [T, V] logits.

The head of a small model with a large vocabulary costs as much as its body and is the peak of memory. Here logits exist
for one chunk of tokens at a time; the backward pass computes them again.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable


def completion_logprobs(
    hidden: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    targets: Tensor,
    *,
    temperature: float,
    chunk_tokens: int = 512,
    entropy_grad: bool = False,
) -> tuple[Tensor, Tensor]:
    """Log-probability of each target, and entropy, of softmax((hidden weight^T + bias) / temperature).

    Matrix products run in autocast's dtype where autocast is on, in the dtype of `hidden` otherwise. Softmax statistics
    and the sum of the weight's gradient over chunks are float32 (float64 for float64 inputs).

    Args:
        hidden: [T, H] states that predict the targets, each that of the token before its target.
        weight: [V, H] of the output head, as one plain tensor.
        bias: [V] of the output head, or None.
        targets: [T] int64 token ids in 0..V-1.
        temperature: The sampling temperature, > 0; applied here and nowhere else.
        chunk_tokens: How many tokens have logits at the same time, >= 1.
        entropy_grad: Whether gradients flow through the entropy, which costs time in the backward pass.

    Returns:
        (logprobs, entropy), both [T] in nats, float32 (float64 for float64 inputs). Their gradients are exact up to the
        precision of the matrix products, and cannot be differentiated again.

    Raises:
        ValueError: A temperature or chunk size outside its range.
    """
    if not temperature > 0:
        raise ValueError(f"temperature must be > 0, got {temperature}")
    if chunk_tokens < 1:
        raise ValueError(f"chunk_tokens must be >= 1, got {chunk_tokens}")
    device = hidden.device.type
    dtype = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else hidden.dtype
    settings = _Settings(temperature, chunk_tokens, entropy_grad, dtype)
    with torch.autocast(device, enabled=False):
        logprobs, entropy = _CompletionLogprobs.apply(hidden, weight, bias, targets, settings)  # type: ignore[no-untyped-call]
    return logprobs, entropy


# Logits that are worked on at a time on a CPU: they stay in a core's own cache.
_BLOCK_VALUES = 2**19
# Words of the vocabulary whose weights get a part of their gradient at a time.
_TILE_WORDS = 8192


@dataclass(frozen=True)
class _Settings:
    temperature: float
    chunk_tokens: int
    entropy_grad: bool
    matmul_dtype: torch.dtype

    @property
    def statistics_dtype(self) -> torch.dtype:
        return torch.promote_types(self.matmul_dtype, torch.float32)


def working_bytes(
    num_tokens: int,
    width: int,
    vocabulary: int,
    *,
    matmul_dtype: torch.dtype,
    weight_dtype: torch.dtype,
    on_cpu: bool,
    weight_grad: bool = True,
    chunk_tokens: int = 512,
) -> int:
    """Upper bound on the bytes that the backward pass of `completion_logprobs` holds beside inputs and results.

    Includes the weight's gradient, if it has one (`weight_grad`), since it exists beside the sum that it is added to.
    """
    statistics = torch.promote_types(matmul_dtype, torch.float32)
    rows = min(chunk_tokens, num_tokens)
    block = min(rows, max(1, _BLOCK_VALUES // vocabulary)) if on_cpu else rows
    mixed = matmul_dtype != statistics
    values = rows * vocabulary * matmul_dtype.itemsize + rows * width * matmul_dtype.itemsize
    values += 2 * block * vocabulary * statistics.itemsize if mixed else 0
    weight = vocabulary * width * statistics.itemsize if weight_grad else 0
    weight += _TILE_WORDS * width * matmul_dtype.itemsize if mixed and weight_grad else 0
    weight += vocabulary * width * matmul_dtype.itemsize if weight_dtype != matmul_dtype else 0
    return values + weight + num_tokens * width * statistics.itemsize


class _Head:
    """The output head on one chunk of tokens at a time, in buffers that the chunks share.

    Matrix products are made for a whole chunk, all else for one block of its tokens at a time. Fresh memory costs more
    than the arithmetic done in it, since the system clears every page of it, and memory beyond the caches several
    times more.
    """

    def __init__(self, hidden: Tensor, weight: Tensor, bias: Tensor | None, settings: _Settings) -> None:
        self.settings = settings
        self.hidden = hidden
        self.weight = weight.to(settings.matmul_dtype)
        self.bias = None if bias is None else bias.to(settings.statistics_dtype)
        vocabulary, rows = len(weight), min(settings.chunk_tokens, len(hidden))
        # A GPU fills itself with a chunk, and would wait for the launch of smaller work.
        self._block_tokens = max(1, _BLOCK_VALUES // vocabulary) if weight.device.type == "cpu" else rows
        self._products = self.weight.new_empty(rows, vocabulary)
        mixed = settings.matmul_dtype != settings.statistics_dtype
        self._values = self.block_buffer() if mixed else None

    def block_buffer(self) -> Tensor:
        """A buffer in the dtype of statistics for the tokens of one block, [n, V]."""
        rows = min(self._block_tokens, len(self._products))
        return torch.empty_like(self._products[:rows], dtype=self.settings.statistics_dtype)

    def chunks(self) -> Iterator[slice]:
        """The tokens of each chunk."""
        yield from _cuts(0, len(self.hidden), self.settings.chunk_tokens)

    def states(self, chunk: slice) -> Tensor:
        """Hidden states of a chunk of c tokens, [c, H] in the dtype of matrix products."""
        return self.hidden[chunk].to(self.settings.matmul_dtype)

    def logits(self, chunk: slice) -> Iterator[tuple[slice, Tensor, Tensor]]:
        """Go through a chunk block by block.

        Yields:
            The slice of a block of n tokens; their logits over the temperature, [n, V] in the dtype of statistics, may
            be overwritten; and their part of the chunk's buffer of products, [n, V], for results. The two share their
            memory where their dtypes are the same.
        """
        products = self.products(chunk)
        torch.mm(self.states(chunk), self.weight.T, out=products)
        for block in _cuts(chunk.start, chunk.stop, self._block_tokens):
            part = products[block.start - chunk.start : block.stop - chunk.start]
            values = part if self._values is None else self._values[: len(part)].copy_(part)
            if self.bias is not None:
                values.add_(self.bias)
            if self.settings.temperature != 1:
                values.div_(self.settings.temperature)
            yield block, values, part

    def products(self, chunk: slice) -> Tensor:
        """The buffer of a chunk of c tokens, [c, V] in the dtype of matrix products."""
        return self._products[: chunk.stop - chunk.start]


def _cuts(start: int, stop: int, length: int) -> Iterator[slice]:
    for begin in range(start, stop, length):
        yield slice(begin, min(begin + length, stop))


class _CompletionLogprobs(torch.autograd.Function):
    """Autograd function of `completion_logprobs`. Between the passes only inputs and [T] statistics are kept."""

    @staticmethod
    def forward(
        ctx: Any, hidden: Tensor, weight: Tensor, bias: Tensor | None, targets: Tensor, settings: _Settings
    ) -> tuple[Tensor, Tensor]:
        head = _Head(hidden, weight, bias, settings)
        exponentials = head.block_buffer()
        logprobs = hidden.new_empty(len(hidden), dtype=settings.statistics_dtype)
        log_normalizer, entropy = torch.empty_like(logprobs), torch.empty_like(logprobs)
        for chunk in head.chunks():
            for block, logits, _ in head.logits(chunk):
                largest = logits.amax(dim=-1, keepdim=True)
                logits.sub_(largest)
                exp = torch.exp(logits, out=exponentials[: len(logits)])
                normalizer = exp.sum(dim=-1)
                logprobs[block] = logits.gather(-1, targets[block].unsqueeze(-1)).squeeze(-1) - normalizer.log()
                entropy[block] = normalizer.log() - exp.mul_(logits).sum(dim=-1) / normalizer
                log_normalizer[block] = normalizer.log() + largest.squeeze(-1)
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
    """Gradients by hidden states, weight and bias (those that are needed), the last two in the dtype of statistics.

    By the logits it is (onehot(target) - p) grad_logprobs - p (log p + entropy) grad_entropy.
    """
    hidden, weight, bias, targets, log_normalizer, entropy = ctx.saved_tensors
    # With the temperature in here, what follows is the gradient by the logits before they are divided by it.
    temperature = ctx.settings.temperature
    by_logprob = torch.zeros_like(entropy) if grad_logprobs is None else grad_logprobs / temperature
    by_entropy = None if grad_entropy is None else grad_entropy / temperature
    head = _Head(hidden, weight, bias, ctx.settings)
    needs, sums = ctx.needs_input_grad, ctx.settings.statistics_dtype
    by_hidden = torch.empty_like(hidden) if needs[0] else None
    by_weight = torch.zeros_like(weight, dtype=sums) if needs[1] else None
    by_bias = torch.zeros_like(bias, dtype=sums) if needs[2] else None
    scratch = None if by_entropy is None else head.block_buffer()
    tile = head.weight.new_empty(_TILE_WORDS, hidden.shape[1]) if needs[1] and sums != head.weight.dtype else None
    for chunk in head.chunks():
        for block, logits, products in head.logits(chunk):
            by_logits = logits.sub_(log_normalizer[block].unsqueeze(-1))  # log p, until it is overwritten
            by_targets = by_logprob[block].unsqueeze(-1)
            if by_entropy is None or scratch is None:
                by_logits.exp_().mul_(-by_targets)
            else:
                p = torch.exp(by_logits, out=scratch[: len(by_logits)])
                by_logits.add_(entropy[block].unsqueeze(-1)).mul_(by_entropy[block].unsqueeze(-1))
                by_logits.add_(by_targets).mul_(p).neg_()
            by_logits.scatter_add_(-1, targets[block].unsqueeze(-1), by_targets)
            if by_bias is not None:
                by_bias += by_logits.sum(dim=0)
            if products.dtype != by_logits.dtype:
                products.copy_(by_logits)
        if by_hidden is not None:
            by_hidden[chunk] = head.products(chunk) @ head.weight
        if by_weight is not None:
            _add_product(by_weight, head.products(chunk), head.states(chunk), tile)
    return by_hidden, by_weight, by_bias


def _add_product(total: Tensor, by_logits: Tensor, states: Tensor, tile: Tensor | None) -> None:
    """Add by_logits^T states to the gradient by the weight, [V, H]; a `tile` is for rounded products of some words."""
    if tile is None:
        total.addmm_(by_logits.T, states)
        return
    for words in _cuts(0, len(total), _TILE_WORDS):
        total[words] += torch.mm(by_logits[:, words].T, states, out=tile[: words.stop - words.start])
