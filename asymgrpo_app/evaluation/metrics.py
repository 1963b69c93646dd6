"""The metrics of one evaluation set, right across ranks and uneven batches."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torchmetrics import Metric

from asymgrpo_app.evaluation.intervals import Estimate
from asymgrpo_app.evaluation.outcomes import MetricChoice, ProblemOutcome, estimates


@dataclass(frozen=True)
class ProblemValues:
    """The values behind an evaluation, for all problems of all ranks.

    Attributes:
        indices: [P] indices of the problems in their set, ascending.
        values: [P] values by metric; NaN where a problem has none.
    """

    indices: list[int]
    values: dict[str, list[float]]


class SetMetrics(Metric):
    """All metrics of one set: `avg@n`, `pass@k`, `maj@k` or `greedy`, truncation, length, ... (docs/evaluation.md).

    The state is one row of float64 per problem. Problems may come in any order, in batches of any size, and in any
    split over ranks: they are put in order before anything is added up, so the result is the same to the last digit.

    Args:
        ks: The k of each pass@k, at most the number of samples.
        majority_ks: The k of each maj@k, at most the number of samples.
        greedy: Whether the set is sampled once at temperature 0; see `MetricChoice`.
    """

    full_state_update = False
    rows: list[Tensor] | Tensor

    def __init__(self, ks: Sequence[int], majority_ks: Sequence[int] = (), greedy: bool = False) -> None:
        super().__init__()
        # A rank without problems takes part in the gathering with an empty tensor of this type.
        self.set_dtype(torch.float64)
        self.choice = MetricChoice(tuple(ks), tuple(majority_ks), greedy)
        # Rows one after the other in one dimension: ranks without problems have no rows to take a width from.
        self.add_state("rows", [], dist_reduce_fx="cat")
        self.problems: ProblemValues | None = None

    def update(self, outcomes: Sequence[ProblemOutcome]) -> None:
        """Add the outcomes of problems; the sequence may be empty."""
        rows = [
            [outcome.completions[0].index, len(outcome.completions), *self.choice.values(outcome)]
            for outcome in outcomes
        ]
        state: list[Tensor] = self.rows  # type: ignore[assignment]  # a tensor only between gathering and computing
        state.append(torch.tensor(rows, dtype=torch.float64, device=self.device).flatten())

    def compute(self) -> dict[str, Estimate]:
        """The means over all problems of all ranks with their intervals; empty without problems.

        Afterwards `problems` has the values behind them.

        Raises:
            ValueError: Problems with different numbers of completions.
        """
        parts = [self.rows] if isinstance(self.rows, Tensor) else self.rows
        rows = torch.cat(parts).view(-1, 2 + len(self.choice.names(0))).tolist() if parts else []
        by_index = {int(index): (int(samples), values) for index, samples, *values in rows}
        numbers = {samples for samples, _ in by_index.values()}
        if len(numbers) > 1:
            raise ValueError(f"every problem of a set needs the same number of completions, got {sorted(numbers)}")
        indices = sorted(by_index)
        names = self.choice.names(max(numbers, default=0))
        values = {name: [by_index[index][1][i] for index in indices] for i, name in enumerate(names)}
        self.problems = ProblemValues(indices, values)
        return estimates(values)
