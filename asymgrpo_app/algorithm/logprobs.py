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
    chunk_tokens: int = 1024,
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
        chunk_tokens: How many tokens have logits at the same time, >= 1; at most three such buffers exist.
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


@dataclass(frozen=True)
class _Settings:
    temperature: float
    chunk_tokens: int
    entropy_grad: bool
    matmul_dtype: torch.dtype

    @property
    def statistics_dtype(self) -> torch.dtype:
        return torch.promote_types(self.matmul_dtype, torch.float32)


class _Head:
    """The output head on one chunk of tokens at a time, in buffers that the chunks share.

    Fresh memory of this size costs more than the arithmetic done in it, since the system clears every page of it.
    """

    def __init__(self, hidden: Tensor, weight: Tensor, bias: Tensor | None, settings: _Settings) -> None:
        self.settings = settings
        self.hidden = hidden
        self.weight = weight.to(settings.matmul_dtype)
        self.bias = None if bias is None else bias.to(settings.statistics_dtype)
        self._products = self.buffer(settings.matmul_dtype)
        mixed = settings.matmul_dtype != settings.statistics_dtype
        self._values = self.buffer(settings.statistics_dtype) if mixed else self._products

    def buffer(self, dtype: torch.dtype) -> Tensor:
        """Room for one value per token of a chunk and word of the vocabulary."""
        rows = min(self.settings.chunk_tokens, len(self.hidden))
        return self.weight.new_empty(rows, self.weight.shape[0], dtype=dtype)

    def chunks(self) -> Iterator[slice]:
        """The tokens of each chunk."""
        for start in range(0, len(self.hidden), self.settings.chunk_tokens):
            yield slice(start, min(start + self.settings.chunk_tokens, len(self.hidden)))

    def states(self, chunk: slice) -> Tensor:
        """Hidden states of a chunk of c tokens, [c, H] in the dtype of matrix products."""
        return self.hidden[chunk].to(self.settings.matmul_dtype)

    def logits(self, chunk: slice) -> Tensor:
        """Logits over the temperature, [c, V] in the dtype of statistics; overwritten by the next call."""
        states = self.states(chunk)
        products, values = self._products[: len(states)], self._values[: len(states)]
        torch.mm(states, self.weight.T, out=products)
        if values is not products:
            values.copy_(products)
        if self.bias is not None:
            values.add_(self.bias)
        return values if self.settings.temperature == 1 else values.div_(self.settings.temperature)

    def as_products(self, values: Tensor) -> Tensor:
        """Values [c, V] in the dtype of matrix products; overwritten by the next call of `logits`."""
        if values.dtype == self.settings.matmul_dtype:
            return values
        return self._products[: len(values)].copy_(values)


class _CompletionLogprobs(torch.autograd.Function):
    """See `completion_logprobs`. Between the passes only inputs and [T] statistics are kept."""

    @staticmethod
    def forward(
        ctx: Any, hidden: Tensor, weight: Tensor, bias: Tensor | None, targets: Tensor, settings: _Settings
    ) -> tuple[Tensor, Tensor]:
        head = _Head(hidden, weight, bias, settings)
        exponentials = head.buffer(settings.statistics_dtype)
        logprobs = hidden.new_empty(len(hidden), dtype=settings.statistics_dtype)
        log_normalizer, entropy = torch.empty_like(logprobs), torch.empty_like(logprobs)
        for chunk in head.chunks():
            logits = head.logits(chunk)
            largest = logits.amax(dim=-1, keepdim=True)
            logits.sub_(largest)
            exp = torch.exp(logits, out=exponentials[: len(logits)])
            normalizer = exp.sum(dim=-1)
            logprobs[chunk] = logits.gather(-1, targets[chunk].unsqueeze(-1)).squeeze(-1) - normalizer.log()
            entropy[chunk] = normalizer.log() - exp.mul_(logits).sum(dim=-1) / normalizer
            log_normalizer[chunk] = normalizer.log() + largest.squeeze(-1)
        ctx.save_for_backward(hidden, weight, bias, targets, log_normalizer, entropy)
        ctx.settings = settings
        ctx.set_materialize_grads(False)
        if not settings.entropy_grad:
            ctx.mark_non_differentiable(entropy)
        return logprobs, entropy

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_logprobs: Tensor | None, grad_entropy: Tensor | None) -> tuple[Tensor | None, ...]:
        hidden, weight, bias, targets, log_normalizer, entropy = ctx.saved_tensors
        # With the temperature in here, what follows is the gradient by the logits before they are divided by it.
        temperature = ctx.settings.temperature
        by_logprob = torch.zeros_like(entropy) if grad_logprobs is None else grad_logprobs / temperature
        by_entropy = None if grad_entropy is None else grad_entropy / temperature
        # Under manual optimization the backward pass, too, runs inside autocast.
        with torch.autocast(hidden.device.type, enabled=False):
            head = _Head(hidden, weight, bias, ctx.settings)
            gradients = _HeadGradients(head, ctx.needs_input_grad)
            scratch = None if by_entropy is None else head.buffer(head.settings.statistics_dtype)
            for chunk in head.chunks():
                log_p = head.logits(chunk).sub_(log_normalizer[chunk].unsqueeze(-1))
                by_targets = by_logprob[chunk].unsqueeze(-1)
                if by_entropy is None or scratch is None:
                    by_logits = log_p.exp_().mul_(-by_targets)
                else:
                    by_entropies = by_entropy[chunk].unsqueeze(-1)
                    by_logits = _gradient_with_entropy(
                        log_p, entropy[chunk].unsqueeze(-1), by_targets, by_entropies, scratch
                    )
                gradients.add(chunk, by_logits.scatter_add_(-1, targets[chunk].unsqueeze(-1), by_targets))
        bias_dtype = None if bias is None else bias.dtype
        return gradients.hidden, _cast(gradients.weight, weight.dtype), _cast(gradients.bias, bias_dtype), None, None


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
    """Gradients of hidden states, weight and bias, those that are needed, put together chunk by chunk.

    Sums over chunks are in the dtype of statistics.
    """

    def __init__(self, head: _Head, needed: tuple[bool, ...]) -> None:
        products, sums = head.settings.matmul_dtype, head.settings.statistics_dtype
        self._head = head
        self.hidden = torch.empty_like(head.hidden) if needed[0] else None
        self.weight = torch.zeros_like(head.weight, dtype=sums) if needed[1] else None
        self._weight_part = torch.empty_like(head.weight) if needed[1] and products != sums else None
        self.bias = torch.zeros_like(head.bias) if needed[2] and head.bias is not None else None

    def add(self, chunk: slice, by_logits: Tensor) -> None:
        """Add the part of a chunk of c tokens, from the gradient by its logits, [c, V] in the dtype of statistics."""
        if self.bias is not None:
            self.bias += by_logits.sum(dim=0)
        by_products = self._head.as_products(by_logits)
        if self.hidden is not None:
            self.hidden[chunk] = (by_products @ self._head.weight).to(self.hidden.dtype)
        if self.weight is None:
            return
        states = self._head.states(chunk)
        if self._weight_part is None:
            self.weight.addmm_(by_products.T, states)
        else:
            self.weight += torch.mm(by_products.T, states, out=self._weight_part)


def _cast(gradient: Tensor | None, dtype: torch.dtype | None) -> Tensor | None:
    return None if gradient is None else gradient.to(dtype)
