"""Scalar metrics of one step: collected by every stage, exact over micro-batches, combined over ranks once."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from time import perf_counter

import torch
from torch import Tensor

from asymgrpo_app.algorithm.metrics import Mean

_NEGATED = "-"  # a smallest value is kept as the largest of the negated ones


@dataclass(frozen=True)
class Fetched:
    """Metrics of one rank on the CPU: sums with weights, and largest values, by tag."""

    means: dict[str, tuple[float, float]]
    maxima: dict[str, float]


Gather = Callable[[Fetched], list[Fetched]]
"""Collects the metrics of all ranks, on every rank."""


@dataclass
class StepMetrics:
    """Sums, largest values and plain values of one step or one evaluation, by tag.

    Tensors stay on their device until `combined` fetches them all at once. Ranks need not record the same tags: one may
    have had nothing to record.

    Attributes:
        means: Means over micro-batches and ranks.
        maxima: Largest values over micro-batches and ranks, 0-dimensional.
        values: Values of this rank alone, such as its seconds.
    """

    means: dict[str, Mean] = field(default_factory=dict)
    maxima: dict[str, Tensor] = field(default_factory=dict)
    values: dict[str, float] = field(default_factory=dict)

    def add(self, tag: str, mean: Mean) -> None:
        """Add to a mean's sum and weight."""
        if tag in self.means:
            total, weight = self.means[tag]
            mean = Mean(total + mean.total, weight + mean.weight)
        self.means[tag] = mean

    def add_all(self, means: Mapping[str, Mean]) -> None:
        """Add to several means."""
        for tag, mean in means.items():
            self.add(tag, mean)

    def largest(self, tag: str, values: Tensor) -> None:
        """Keep the largest of a tensor's values; an empty tensor is ignored."""
        if values.numel():
            value = values.detach().max()
            self.maxima[tag] = torch.maximum(value, self.maxima[tag]) if tag in self.maxima else value

    def smallest(self, tag: str, values: Tensor) -> None:
        """Keep the smallest of a tensor's values; an empty tensor is ignored."""
        self.largest(_NEGATED + tag, -values)

    def combined(self, gather: Gather) -> dict[str, float]:
        """The means and maxima over all ranks, and this rank's own values; every rank takes part.

        A mean over nothing is left out: it has no value.
        """
        sums: dict[str, tuple[float, float]] = {}
        maxima: dict[str, float] = {}
        for rank in gather(self._fetched()):
            for tag, (total, weight) in rank.means.items():
                old_total, old_weight = sums.get(tag, (0.0, 0.0))
                sums[tag] = (old_total + total, old_weight + weight)
            for tag, value in rank.maxima.items():
                maxima[tag] = max(value, maxima.get(tag, value))
        combined = {tag: total / weight for tag, (total, weight) in sums.items() if weight}
        for tag, value in maxima.items():
            combined[tag.removeprefix(_NEGATED)] = -value if tag.startswith(_NEGATED) else value
        return combined | self.values

    def _fetched(self) -> Fetched:
        scalars = [part for mean in self.means.values() for part in mean] + list(self.maxima.values())
        numbers = iter(_on_cpu(scalars))
        means = {tag: (next(numbers), next(numbers)) for tag in self.means}
        return Fetched(means, dict(zip(self.maxima, numbers, strict=True)))


def _on_cpu(scalars: list[Tensor]) -> list[float]:
    """Many 0-dimensional tensors as numbers, in one transfer where they are on a device."""
    if not scalars:
        return []
    device = next((scalar.device for scalar in scalars if scalar.device.type != "cpu"), torch.device("cpu"))
    numbers: list[float] = torch.stack([scalar.double().to(device) for scalar in scalars]).tolist()
    return numbers


class Stopwatch:
    """Stopwatch for the named stages of a step, in seconds, as `timing_s/<name>`.

    Args:
        metrics: Receives the seconds.
    """

    def __init__(self, metrics: StepMetrics) -> None:
        self._values = metrics.values
        self._start = perf_counter()

    def restart(self) -> None:
        """Forget the time since the last lap."""
        self._start = perf_counter()

    def lap(self, name: str) -> None:
        """Add the time since the last lap (or the start) to the seconds of `name`."""
        now = perf_counter()
        tag = f"timing_s/{name}"
        self._values[tag] = self._values.get(tag, 0.0) + now - self._start
        self._start = now
