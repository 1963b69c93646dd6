"""The order of rows: an exact shuffle with random access that needs no memory."""

from functools import lru_cache
from hashlib import blake2b
from math import isqrt

_SORTED_UP_TO = 256
"""Up to this many rows the order is drawn as a whole: a Feistel network on so few values would show its structure."""

_ROUNDS = 8
_KEY_BYTES = 16


def shuffled(index: int, count: int, seed: int, epoch: int) -> int:
    """The row at position `index` of an epoch: for fixed `count`, `seed` and `epoch` a bijection of range(count).

    A pure function that depends on no library's generator, so it is the same in every version. It takes constant time
    and memory: large counts go through a Feistel network whose two halves are digits in base ceil(sqrt(count)), as in
    Black and Rogaway, "Ciphers with Arbitrary Finite Domains" (2002), section 5, and results of `count` or more go
    through it again until one is below (for large counts that is rare: the network spans hardly more than `count`).

    Args:
        index: From 0, below `count`.
        count: Number of rows, at least 1.
        seed: Any integer.
        epoch: Any integer.

    Returns:
        A number from 0, below `count`.
    """
    if count <= _SORTED_UP_TO:
        return sorted_order(count, seed, epoch)[index]
    key = _key(seed, epoch)
    base = isqrt(count - 1) + 1
    value = index
    while True:
        left, right = divmod(value, base)
        for number in range(_ROUNDS):
            left, right = right, (left + _digest(key, number, right)) % base
        value = left * base + right
        if value < count:
            return value


@lru_cache(maxsize=8)
def sorted_order(count: int, seed: int, epoch: int) -> tuple[int, ...]:
    """A permutation of range(count), drawn uniformly from all, as a whole; for counts that fit well into memory."""
    key = _key(seed, epoch)
    return tuple(sorted(range(count), key=lambda value: _digest(key, _ROUNDS, value)))


@lru_cache(maxsize=8)
def _key(seed: int, epoch: int) -> bytes:
    return blake2b(f"row order {seed} {epoch}".encode(), digest_size=_KEY_BYTES).digest()


def _digest(key: bytes, number: int, value: int) -> int:
    """64 pseudo-random bits of the round number and the value (below 2**64)."""
    message = (value << 8 | number).to_bytes(9, "big")
    return int.from_bytes(blake2b(message, key=key, digest_size=8).digest(), "big")
