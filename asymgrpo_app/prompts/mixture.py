"""Several sources at once, in fixed proportions."""

import dataclasses
import math
from bisect import bisect_right
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from fractions import Fraction
from functools import lru_cache
from hashlib import blake2b
from itertools import accumulate, islice

from asymgrpo_app.errors import UserError
from asymgrpo_app.prompts.base import Prompt, PromptSource
from asymgrpo_app.prompts.order import sorted_order

_LONGEST_BLOCK = 10_000
_FIXED_SEED = 0


@dataclass
class WeightedSource:
    """A source and its weight in a mixture.

    Attributes:
        source: The source of the prompts.
        weight: Its share of the prompts, relative to the other sources' weights, above 0.
    """

    source: PromptSource
    weight: float = 1.0


class Mixture(PromptSource):
    """Prompts from several sources in fixed proportions; the sources may be mixtures, too.

    The proportions are exact, not drawn: the stream is a sequence of blocks, the shortest in which the weights come out
    as whole numbers, e.g. 3 prompts of one source and 1 of the other for the weights 0.75 and 0.25, in an order drawn
    from (seed, block). Weights that would need more than 10,000 prompts to a block are rounded to a block of 10,000, at
    least 1 of each source.

    Weights are shares of prompts, whatever the sizes of the sources: for every row to come equally often, give each
    source its number of rows as its weight. Each source keeps its own order and repeats on its own: a small source with
    a large weight begins its second epoch while a large one is still in its first. So a mixture as a whole has no
    epochs; its size is the sum of its sources' sizes, or none if one of them is endless.

    The uid of a prompt is `<number of the source from 0>/<uid within the source>`.

    Args:
        sources: The sources with their weights.

    Raises:
        UserError: There is no source, or a weight is not above 0.
    """

    def __init__(self, sources: list[WeightedSource]) -> None:
        if not sources:
            raise UserError("A mixture needs at least one source.")
        for number, part in enumerate(sources):
            if not (math.isfinite(part.weight) and part.weight > 0):
                raise UserError(f"sources[{number}].weight must be above 0 and finite, got {part.weight}.")
        self.sources = sources
        self._parts = [part.source for part in sources]
        self._shares = _shares([part.weight for part in sources])
        self._block_length = sum(self._shares)
        sizes = [part.size for part in self._parts]
        self.size = None if None in sizes else sum(size or 0 for size in sizes)

    def at(self, position: int, seed: int) -> Prompt:
        """The prompt at `position`; its block gives the source and the number of the source's earlier prompts."""
        block, index = divmod(position, self._block_length)
        number, earlier = _deal(self._shares, seed, block)[index]
        prompt = self._parts[number].at(block * self._shares[number] + earlier, _seed_of(number, seed))
        return _renamed(prompt, number)

    def finite_parts(self) -> list[PromptSource]:
        """The sources that end, those within mixtures included."""
        return [part for source in self._parts for part in source.finite_parts()]

    def parts(self) -> list[PromptSource]:
        """The sources, those within mixtures in place of them."""
        return [part for source in self._parts for part in source.parts()]

    def fixed(self, limit: int | None) -> Sequence[Prompt]:
        """The first `limit` prompts, dealt in the same proportions from each source's own fixed prompts.

        A source without further prompts is left out from there on. None: all prompts of all sources.

        Raises:
            UserError: `limit` is None and a source endless, or a source has no fixed prompts.
        """
        if limit is None and self.size is None:
            raise UserError("A mixture with an endless source needs a limit for evaluation.")
        numbers = list(islice(self._fixed_numbers(), limit))
        streams = {number: iter(self._parts[number].fixed(count)) for number, count in Counter(numbers).items()}
        return [_renamed(next(streams[number]), number) for number in numbers]

    def _fixed_numbers(self) -> Iterator[int]:
        """Yield the number of the source of each of the fixed prompts."""
        left = [math.inf if part.size is None else part.size for part in self._parts]
        pattern = [number for number, _ in _deal(self._shares, _FIXED_SEED, 0)]
        while pattern:
            for number in pattern:
                if left[number]:
                    left[number] -= 1
                    yield number
            pattern = [number for number in pattern if left[number]]


def _shares(weights: Sequence[float]) -> tuple[int, ...]:
    """Prompts of each source in a block, at least 1 each."""
    exact = [Fraction(str(weight)) for weight in weights]  # 0.1 as it is written, not as it is stored
    unit = Fraction(math.gcd(*(part.numerator for part in exact)), math.lcm(*(part.denominator for part in exact)))
    shares = [int(part / unit) for part in exact]
    if sum(shares) <= _LONGEST_BLOCK:
        return tuple(shares)
    scaled = [part * _LONGEST_BLOCK / sum(exact) for part in exact]
    shares = [max(1, math.floor(part)) for part in scaled]
    # Prompts left over by rounding down go to the largest remainders; those added by the minimum of 1 are taken from
    # the largest share.
    by_remainder = sorted(range(len(scaled)), key=lambda number: shares[number] - scaled[number])
    for number in by_remainder[: max(0, _LONGEST_BLOCK - sum(shares))]:
        shares[number] += 1
    shares[shares.index(max(shares))] -= max(0, sum(shares) - _LONGEST_BLOCK)
    return tuple(shares)


@lru_cache(maxsize=4)
def _deal(shares: tuple[int, ...], seed: int, block: int) -> tuple[tuple[int, int], ...]:
    """Source number of each prompt of a block, and the number of that source's earlier prompts in it."""
    ends = list(accumulate(shares))
    seen = [0] * len(shares)
    dealt = []
    for card in sorted_order(ends[-1], seed, block):
        number = bisect_right(ends, card)
        dealt.append((number, seen[number]))
        seen[number] += 1
    return tuple(dealt)


def _seed_of(number: int, seed: int) -> int:
    """The seed of a source's own order; other sources do not change it."""
    digest = blake2b(f"mixture {seed} {number}".encode(), digest_size=8).digest()
    return int.from_bytes(digest, "big") >> 1


def _renamed(prompt: Prompt, number: int) -> Prompt:
    return dataclasses.replace(prompt, uid=f"{number}/{prompt.uid}", place=prompt.place or prompt.uid)
