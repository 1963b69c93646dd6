"""Scalars of one step, right under micro-batches and across ranks."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from torch import Tensor

from asymgrpo_app.algorithm.metrics import Mean


@dataclass
class Parts:
    """What one rank knows: sums with counts, and largest values, by name."""

    means: dict[str, tuple[float, float]] = field(default_factory=dict)
    maxima: dict[str, float] = field(default_factory=dict)


Gather = Callable[[Parts], list[Parts]]
"""Collects the parts of all ranks, on every rank."""


class StepMetrics:
    """Collects sums with counts, largest and smallest values, and combines them over ranks once per step.

    Ranks need not record the same names: one may have had nothing to record.
    """

    def __init__(self) -> None:
        self._parts = Parts()

    def mean(self, name: str, total: Tensor | float, count: Tensor | float) -> None:
        """Add a sum and the number of things summed."""
        old_total, old_count = self._parts.means.get(name, (0.0, 0.0))
        self._parts.means[name] = (old_total + float(total), old_count + float(count))

    def means(self, pairs: Mapping[str, Mean]) -> None:
        """Add several sums and counts."""
        for name, (total, count) in pairs.items():
            self.mean(name, total, count)

    def largest(self, name: str, values: Tensor) -> None:
        """Keep the largest of a tensor's values; of none, none."""
        if values.numel():
            value = float(values.max())
            self._parts.maxima[name] = max(value, self._parts.maxima.get(name, value))

    def smallest(self, name: str, values: Tensor) -> None:
        """Keep the smallest of a tensor's values; of none, none."""
        self.largest(_NEGATED + name, -values)

    def combined(self, gather: Gather) -> dict[str, float]:
        """The values over all ranks. A mean over nothing is left out: it has no value."""
        sums: dict[str, tuple[float, float]] = {}
        maxima: dict[str, float] = {}
        for parts in gather(self._parts):
            for name, (total, count) in parts.means.items():
                old_total, old_count = sums.get(name, (0.0, 0.0))
                sums[name] = (old_total + total, old_count + count)
            for name, value in parts.maxima.items():
                maxima[name] = max(value, maxima.get(name, value))
        values = {name: total / count for name, (total, count) in sums.items() if count}
        for name, value in maxima.items():
            values[name.removeprefix(_NEGATED)] = -value if name.startswith(_NEGATED) else value
        return values


_NEGATED = "-"  # a smallest value is kept as the largest of the negated ones
