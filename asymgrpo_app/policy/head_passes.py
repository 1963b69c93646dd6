"""What the output head does with logits, element by element: statistics of softmax, and the gradient by the logits.

In two forms that agree up to rounding: in place and block by block, on any device; and as pure functions that
torch.compile makes into one kernel each on a GPU, where reading and writing the logits is what takes the time.
"""

import os
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cache
from typing import Any, Protocol

import torch
from torch import Tensor
from torch.utils._triton import has_triton

from asymgrpo_app.runtime.console import say

UNFUSED = "The output head's passes over logits are not fused, and the update takes longer"


@dataclass(frozen=True)
class Gradients:
    """What the gradient by the logits of n tokens depends on, [n] each; on top the derivative by the temperature.

    Attributes:
        targets: Token ids.
        log_normalizer: Logarithm of the sum of the exponentials of the logits.
        entropy: Entropies.
        by_logprob: Gradients by the log-probabilities, over the temperature.
        by_entropy: Gradients by the entropies, over the temperature; None: the entropy carries none.
    """

    targets: Tensor
    log_normalizer: Tensor
    entropy: Tensor
    by_logprob: Tensor
    by_entropy: Tensor | None

    def __getitem__(self, tokens: slice) -> "Gradients":
        by_entropy = None if self.by_entropy is None else self.by_entropy[tokens]
        of = (self.targets[tokens], self.log_normalizer[tokens], self.entropy[tokens], self.by_logprob[tokens])
        return Gradients(*of, by_entropy)


class Passes(Protocol):
    """The two passes over the logits of n tokens, [n, V], which may be overwritten; they are not yet divided."""

    def statistics(self, logits: Tensor, targets: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Log-probabilities of the targets, logarithms of the normalizers, and entropies, [n] each."""

    def gradient(self, logits: Tensor, given: Gradients, out: Tensor, by_bias: Tensor | None) -> None:
        """Write the gradient by the logits to `out`, [n, V], and add its sum over tokens to `by_bias`, [V].

        It is (onehot(target) - p) by_logprob - p (log p + entropy) by_entropy. `out` may be the logits themselves.
        """


class InPlacePasses:
    """The passes in place, on a block of tokens at a time.

    Fresh memory costs more than the arithmetic done in it, since the system clears every page of it, and memory beyond
    the caches several times more.

    Args:
        temperature: Divides the logits.
        bias: [V] of the head in the dtype of the logits, or None.
        block: Tokens of a block.
    """

    def __init__(self, temperature: float, bias: Tensor | None, block: int) -> None:
        self._temperature = temperature
        self._bias = bias
        self._block = block
        self._scratch: Tensor | None = None

    def _exp(self, values: Tensor) -> Tensor:
        """Exponentials of a block, in a buffer that all blocks share; the first is the largest."""
        if self._scratch is None:
            self._scratch = torch.empty_like(values)
        return torch.exp(values, out=self._scratch[: len(values)])

    def _scaled(self, logits: Tensor) -> Iterator[tuple[slice, Tensor]]:
        for block in cuts(0, len(logits), self._block):
            values = logits[block]
            if self._bias is not None:
                values.add_(self._bias)
            if self._temperature != 1:
                values.div_(self._temperature)
            yield block, values

    def statistics(self, logits: Tensor, targets: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        logprobs, log_normalizer, entropy = (logits.new_empty(len(logits)) for _ in range(3))
        for block, values in self._scaled(logits):
            largest = values.amax(dim=-1, keepdim=True)
            values.sub_(largest)
            exp = self._exp(values)
            normalizer = exp.sum(dim=-1)
            logprobs[block] = values.gather(-1, targets[block].unsqueeze(-1)).squeeze(-1) - normalizer.log()
            entropy[block] = normalizer.log() - exp.mul_(values).sum(dim=-1) / normalizer
            log_normalizer[block] = normalizer.log() + largest.squeeze(-1)
        return logprobs, log_normalizer, entropy

    def gradient(self, logits: Tensor, given: Gradients, out: Tensor, by_bias: Tensor | None) -> None:
        for block, values in self._scaled(logits):
            own = given[block]
            by_logits = values.sub_(own.log_normalizer.unsqueeze(-1))  # log p, until it is overwritten
            by_targets = own.by_logprob.unsqueeze(-1)
            if own.by_entropy is None:
                by_logits.exp_().mul_(-by_targets)
            else:
                p = self._exp(by_logits)
                by_logits.add_(own.entropy.unsqueeze(-1)).mul_(own.by_entropy.unsqueeze(-1))
                by_logits.add_(by_targets).mul_(p).neg_()
            by_logits.scatter_add_(-1, own.targets.unsqueeze(-1), by_targets)
            if by_bias is not None:
                by_bias += by_logits.sum(dim=0)
            if out is not logits:
                out[block].copy_(by_logits)


def cuts(start: int, stop: int, length: int) -> Iterator[slice]:
    """Slices of a length that cover a range; the last may be shorter."""
    for begin in range(start, stop, length):
        yield slice(begin, min(begin + length, stop))


# ---- as one kernel each ----


def statistics(logits: Tensor, targets: Tensor, temperature: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """As `Passes.statistics`, for a head without a bias; `temperature` is [1]."""
    scaled = logits / temperature
    largest = scaled.amax(dim=-1, keepdim=True)
    shifted = scaled - largest
    exp = shifted.exp()
    normalizer = exp.sum(dim=-1)
    chosen = logits.gather(-1, targets.unsqueeze(-1)).squeeze(-1) / temperature - largest.squeeze(-1)
    log = normalizer.log()
    return chosen - log, log + largest.squeeze(-1), log - (exp * shifted).sum(dim=-1) / normalizer


def gradient(
    logits: Tensor,
    temperature: Tensor,
    targets: Tensor,
    log_normalizer: Tensor,
    entropy: Tensor,
    by_logprob: Tensor,
    by_entropy: Tensor | None,
    out: Tensor,
) -> None:
    """As `Passes.gradient`, for a head without a bias; `temperature` is [1]."""
    logprobs = logits / temperature - log_normalizer.unsqueeze(-1)
    factor = by_logprob.unsqueeze(-1)
    if by_entropy is not None:
        factor = factor + (logprobs + entropy.unsqueeze(-1)) * by_entropy.unsqueeze(-1)
    chosen = torch.arange(logits.shape[-1], device=logits.device) == targets.unsqueeze(-1)
    out.copy_(torch.where(chosen, by_logprob.unsqueeze(-1), 0.0) - logprobs.exp() * factor)


@cache
def fused(function: Callable[..., Any], backend: str = "inductor") -> Callable[..., Any]:
    """The function as one kernel for all numbers of tokens, made when it is first called."""
    return torch.compile(function, dynamic=True, fullgraph=True, backend=backend)


def missing_compiler() -> str | None:
    """What torch.compile lacks on a GPU, in a few words; None if nothing."""
    if not has_triton():
        return "Triton does not work here"
    names = [os.environ["CC"]] if os.environ.get("CC") else ["gcc", "clang"]
    return None if any(map(shutil.which, names)) else f"there is no C compiler ({', '.join(names)})"


class FusedPasses:
    """The passes as compiled kernels; those of `fallback` once a kernel cannot be made.

    Args:
        temperature: Divides the logits.
        fallback: Does the same.
        backend: Of torch.compile.
    """

    usable: bool | None = None  # not yet known

    def __init__(self, temperature: Tensor, fallback: InPlacePasses, backend: str = "inductor") -> None:
        self._temperature = temperature
        self._fallback = fallback
        self._backend = backend

    @classmethod
    def are_usable(cls) -> bool:
        """Whether kernels can be made on this machine's GPU, as far as is known; says once that they cannot."""
        if cls.usable is None:
            if (missing := missing_compiler()) is not None:
                say(f"{UNFUSED}: {missing}.")
            cls.usable = missing is None
        return cls.usable

    def statistics(self, logits: Tensor, targets: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        found: tuple[Tensor, Tensor, Tensor] | None = self._call(statistics, logits, targets, self._temperature)
        return self._fallback.statistics(logits, targets) if found is None else found

    def gradient(self, logits: Tensor, given: Gradients, out: Tensor, by_bias: Tensor | None) -> None:
        assert by_bias is None
        rows = given.targets, given.log_normalizer, given.entropy, given.by_logprob, given.by_entropy
        if self._call(gradient, logits, self._temperature, *rows, out, done=True) is None:
            self._fallback.gradient(logits, given, out, None)

    def _call(self, function: Callable[..., Any], *arguments: Any, done: Any = None) -> Any:
        """Result of the kernel (`done` if it has none); None if it cannot be made."""
        if FusedPasses.usable is False:
            return None
        try:
            result = fused(function, self._backend)(*arguments)
        except torch.OutOfMemoryError:
            raise
        except Exception as error:  # whatever dynamo, inductor, Triton or a compiler raise; the inputs are untouched
            say(f"{UNFUSED}: {type(error).__name__}: {' '.join(str(error).split())[:300]}")
            FusedPasses.usable = False
            return None
        return result if done is None else done
