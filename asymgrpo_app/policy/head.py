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
            by_hidden, by_weight, by_bias = _gradients(ctx, grad_logprobs, grad_entropy)
        _, weight, bias, *_ = ctx.saved_tensors
        return (
            by_hidden,
            _cast(by_weight, weight.dtype),
            _cast(by_bias, None if bias is None else bias.dtype),
            None,
            None,
        )


def _gradients(
    ctx: Any, grad_logprobs: Tensor | None, grad_entropy: Tensor | None
) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
    """Gradients by hidden states, weight and bias, the last two as sums in the dtype of statistics."""
    hidden, weight, bias, targets, log_normalizer, entropy = ctx.saved_tensors
    # With the temperature in here, what follows is the gradient by the logits before they are divided by it.
    temperature = ctx.settings.temperature
    by_logprob = torch.zeros_like(entropy) if grad_logprobs is None else grad_logprobs / temperature
    by_entropy = None if grad_entropy is None else grad_entropy / temperature
    head = _Head(hidden, weight, bias, ctx.settings)
    gradients = _HeadGradients(head, ctx.needs_input_grad)
    scratch = None if by_entropy is None else head.block_buffer()
    for chunk in head.chunks():
        for block, logits, products in head.logits(chunk):
            log_p = logits.sub_(log_normalizer[block].unsqueeze(-1))
            by_targets = by_logprob[block].unsqueeze(-1)
            if by_entropy is None or scratch is None:
                by_logits = log_p.exp_().mul_(-by_targets)
            else:
                entropies, by_entropies = entropy[block].unsqueeze(-1), by_entropy[block].unsqueeze(-1)
                by_logits = _gradient_with_entropy(log_p, entropies, by_targets, by_entropies, scratch)
            by_logits.scatter_add_(-1, targets[block].unsqueeze(-1), by_targets)
            gradients.add_block(by_logits, products)
        gradients.add_chunk(chunk)
    return gradients.hidden, gradients.weight, gradients.bias


def _gradient_with_entropy(
    log_p: Tensor, entropy: Tensor, by_logprob: Tensor, by_entropy: Tensor, scratch: Tensor
) -> Tensor:
    """The gradient by the logits, less the target's own part: -p (by_logprob + by_entropy (log p + entropy)).

    Args:
        log_p: [c, V]; overwritten, it holds the result.
        entropy: [c, 1].
        by_logprob: [c, 1] gradient by the log-probabilities.
        by_entropy: [c, 1] gradient by the entropies, with d entropy / d logits = -p (log p + entropy).
        scratch: At least [c, V]; overwritten.
    """
    p = torch.exp(log_p, out=scratch[: len(log_p)])
    return log_p.add_(entropy).mul_(by_entropy).add_(by_logprob).mul_(p).neg_()


class _HeadGradients:
    """Gradients of hidden states, weight and bias (those that are needed), accumulated chunk by chunk.

    Sums over chunks are in the dtype of statistics.
    """

    def __init__(self, head: _Head, needed: tuple[bool, ...]) -> None:
        products, sums = head.settings.matmul_dtype, head.settings.statistics_dtype
        self._head = head
        self.hidden = torch.empty_like(head.hidden) if needed[0] else None
        self.weight = torch.zeros_like(head.weight, dtype=sums) if needed[1] else None
        tiled = needed[1] and products != sums
        self._weight_part = head.weight.new_empty(_TILE_WORDS, head.weight.shape[1]) if tiled else None
        self.bias = torch.zeros_like(head.bias) if needed[2] and head.bias is not None else None

    def add_block(self, by_logits: Tensor, place: Tensor) -> None:
        """Add the gradient by the logits of a block, [n, V] in the dtype of statistics; overwrites its products."""
        if self.bias is not None:
            self.bias += by_logits.sum(dim=0)
        if place.dtype != by_logits.dtype:
            place.copy_(by_logits)

    def add_chunk(self, chunk: slice) -> None:
        """Add the part of a chunk of tokens, after all its blocks were added."""
        by_logits = self._head.products(chunk)
        if self.hidden is not None:
            self.hidden[chunk] = by_logits @ self._head.weight
        if self.weight is None:
            return
        states = self._head.states(chunk)
        if self._weight_part is None:
            self.weight.addmm_(by_logits.T, states)
            return
        # Rounded parts of the weight's gradient exist for a tile of the vocabulary at a time.
        for words in _cuts(0, len(self.weight), _TILE_WORDS):
            part = self._weight_part[: words.stop - words.start]
            self.weight[words] += torch.mm(by_logits[:, words].T, states, out=part)


def _cast(gradient: Tensor | None, dtype: torch.dtype | None) -> Tensor | None:
    return None if gradient is None else gradient.to(dtype)
