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
        samples: Completions per problem.
        values: [P] values by metric; NaN where a problem has none.
    """

    indices: list[int]
    samples: int
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
        rows = [[outcome.index, outcome.samples, *self.choice.values(outcome)] for outcome in outcomes]
        state: list[Tensor] = self.rows  # type: ignore[assignment]  # a tensor only between gathering and computing
        state.append(torch.tensor(rows, dtype=torch.float64, device=self.device).flatten())

    def compute(self) -> dict[str, Estimate]:
        """The means over all problems of all ranks with their intervals; empty without problems.

        Afterwards `problems` has the values behind them.

        Raises:
            ValueError: Problems with different numbers of completions.
        """
        state = torch.cat(self.rows) if isinstance(self.rows, list) and self.rows else self.rows
        flat: list[float] = state.tolist() if isinstance(state, Tensor) else []
        width = 2 + len(self.choice.names(0))
        by_index = {int(flat[i]): flat[i + 1 : i + width] for i in range(0, len(flat), width)}
        indices = sorted(by_index)
        rows = [by_index[index] for index in indices]
        numbers = {int(row[0]) for row in rows}
        if len(numbers) > 1:
            raise ValueError(f"every problem of a set needs the same number of completions, got {sorted(numbers)}")
        samples = max(numbers, default=0)
        values = {name: [row[1 + i] for row in rows] for i, name in enumerate(self.choice.names(samples))}
        self.problems = ProblemValues(indices, samples, values)
        return estimates(values)
