"""avg@k and unbiased pass@k over problems, right across ranks and uneven batches."""

from collections.abc import Sequence
from math import comb

import torch
from torch import Tensor
from torchmetrics import Metric


def pass_at_k(num_samples: int, num_correct: int, k: int) -> float:
    """Unbiased estimate of the chance that at least one of k samples is right (arXiv 2107.03374, Eq. 1).

    Args:
        num_samples: n, completions drawn for the problem.
        num_correct: c of them that are right, 0 <= c <= n.
        k: Size of the draw, 1 <= k <= n.

    Returns:
        1 - C(n-c, k) / C(n, k), in [0, 1].

    Raises:
        ValueError: A number outside its range.
    """
    if not 0 <= num_correct <= num_samples or not 1 <= k <= num_samples:
        raise ValueError(f"pass@k needs 0 <= c <= n and 1 <= k <= n, got n={num_samples}, c={num_correct}, k={k}")
    return 1.0 - comb(num_samples - num_correct, k) / comb(num_samples, k)


class EvaluationMetrics(Metric):
    """`avg@n` (mean accuracy over n samples of each problem) and `pass@k` for several k, as means over problems.

    Args:
        ks: The k of each pass@k, at most the number of samples.
    """

    full_state_update = False
    accuracies: Tensor
    passes: Tensor
    problems: Tensor
    samples: Tensor

    def __init__(self, ks: Sequence[int]) -> None:
        super().__init__()
        self.ks = tuple(ks)
        self.add_state("accuracies", torch.zeros((), dtype=torch.float64), dist_reduce_fx="sum")
        self.add_state("passes", torch.zeros(len(self.ks), dtype=torch.float64), dist_reduce_fx="sum")
        self.add_state("problems", torch.zeros((), dtype=torch.int64), dist_reduce_fx="sum")
        self.add_state("samples", torch.zeros((), dtype=torch.int64), dist_reduce_fx="max")

    def update(self, rewards: Tensor) -> None:
        """Add problems: rewards in {0, 1}, [problems, samples]."""
        n = rewards.shape[1]
        correct = [int(c) for c in rewards.sum(dim=1).tolist()]
        self.accuracies += rewards.double().mean(dim=1).sum().to(self.accuracies.device)
        self.passes += torch.tensor(
            [sum(pass_at_k(n, c, k) for c in correct) for k in self.ks], dtype=torch.float64
        ).to(self.passes.device)
        self.problems += len(correct)
        self.samples = torch.full_like(self.samples, n)

    def compute(self) -> dict[str, Tensor]:
        """The means over all problems of all ranks."""
        means = {f"avg@{int(self.samples)}": self.accuracies / self.problems}
        return means | {f"pass@{k}": total / self.problems for k, total in zip(self.ks, self.passes, strict=True)}
