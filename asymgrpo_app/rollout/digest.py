"""A digest of weights that does not depend on how an engine stores them.

An engine fuses projections, pads vocabularies and, on CPU, keeps linear layers in a packed form that cannot be read. So
the digest adds up bit patterns, which no order changes and which padding zeros leave alone, and takes a few columns of
each linear layer: W e_i is column i to the last bit, whatever the storage.
"""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from asymgrpo_app.seeds import derive_seed

COLUMNS = 8  # of each linear layer are read; which ones changes with every version of the weights
_MODULUS = 2**64
_ELEMENTS_AT_ONCE = 2**22  # whose bits are added up together: 32 MiB of integers

_BITS = {torch.float32: torch.int32, torch.bfloat16: torch.int16, torch.float16: torch.int16}


@dataclass(frozen=True)
class WeightDigest:
    """Sums of bit patterns, modulo 2**64 (where the sums of int64 tensors wrap around).

    Attributes:
        linear: Over some columns of every linear layer, the output head included.
        other: Over all elements of everything else: embeddings, norms, biases.
    """

    linear: int
    other: int

    def __str__(self) -> str:
        return f"{self.linear % _MODULUS:016x}-{self.other % _MODULUS:016x}"

    def __add__(self, more: "WeightDigest") -> "WeightDigest":
        return WeightDigest((self.linear + more.linear) % _MODULUS, (self.other + more.other) % _MODULUS)


def columns(version: int, inputs: int) -> list[int]:
    """Indices of the columns that are read of a layer with `inputs` inputs; depends on the version of the weights."""
    start, stride = derive_seed("digest", version, inputs), inputs // COLUMNS + 1
    return sorted({(start + number * stride) % inputs for number in range(COLUMNS)})


def bit_sum(values: Tensor, dtype: torch.dtype | None = None) -> int:
    """Sum of the bit patterns of a float tensor, read as integers, plus that of their squares; modulo 2**64.

    Works on `_ELEMENTS_AT_ONCE` elements at a time: their integers take four to eight times the room of the weights.

    Args:
        values: Of any shape.
        dtype: Type that the values are rounded to first; None: their own.
    """
    total = torch.zeros((), dtype=torch.int64, device=values.device)
    for part in values.detach().reshape(-1).split(_ELEMENTS_AT_ONCE):
        total += _bits_and_squares(part.to(dtype or values.dtype))
    return int(total) % _MODULUS


def _bits_and_squares(values: Tensor) -> Tensor:
    bits = values.view(_BITS[values.dtype]).to(torch.int64)
    return bits.sum() + bits.square_().sum()


def policy_digest(
    named: Iterable[tuple[str, Tensor]], linear: Sequence[str], tied_head: str | None, dtype: torch.dtype, version: int
) -> WeightDigest:
    """The digest that an engine with these weights must have.

    Args:
        named: The policy's weights by name.
        linear: Names of the weights of linear layers, [out, in] each.
        tied_head: Name of the embedding whose weight is also that of the output head, None if the head has its own.
        dtype: Compute type of the engine.
        version: Version of the weights.
    """
    running = RunningDigest(linear, tied_head, dtype, version)
    for _ in running.of(named):
        pass
    return running.digest


class RunningDigest:
    """Digest of a stream of weights, updated as they pass, so that none has to be kept or gathered twice.

    Args:
        linear: As in `policy_digest`.
        tied_head: As in `policy_digest`.
        dtype: As in `policy_digest`.
        version: As in `policy_digest`.

    Attributes:
        digest: Digest of the weights that have passed.
    """

    def __init__(self, linear: Sequence[str], tied_head: str | None, dtype: torch.dtype, version: int) -> None:
        self.digest = WeightDigest(0, 0)
        self._linear = set(linear)
        self._tied_head = tied_head
        self._dtype = dtype
        self._version = version

    def of(self, named: Iterable[tuple[str, Tensor]]) -> Iterator[tuple[str, Tensor]]:
        """Yield the same weights, each after it was added to the digest."""
        for name, weight in named:
            if name not in self._linear:
                self.digest += WeightDigest(0, bit_sum(weight, self._dtype))
            if name in self._linear or name == self._tied_head:
                read = weight[:, columns(self._version, weight.shape[1])]
                self.digest += WeightDigest(bit_sum(read, self._dtype), 0)
            yield name, weight
