"""How often the 95 % intervals of an evaluation cover the truth, by simulation.

    .venv/bin/python benchmarks/interval_coverage.py --problems 100

Draws problems of random difficulty, then right and wrong completions of each, and asks how often the interval of
avg@n, pass@k, maj@k, and of the paired difference to a second policy contains the true mean over all such problems.
"""

import argparse
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from asymgrpo_app.evaluation.estimators import maj_at_k, pass_at_k
from asymgrpo_app.evaluation.intervals import Estimate, difference_interval, share_interval

Floats = NDArray[np.float64]
Interval = Callable[[Sequence[float]], Estimate]

_TRUTH_PROBLEMS = 400_000
_MAJORITY_TRUTH_PROBLEMS = 40_000
_WRONG = (0.45, 0.3, 0.15)  # shares of three wrong answers among the wrong completions; the rest has no answer


def beta(a: float, b: float) -> Callable[[np.random.Generator, int], Floats]:
    """Difficulties from a beta distribution."""
    return lambda rng, number: rng.beta(a, b, number)


def mixture(
    share: float,
    first: Callable[[np.random.Generator, int], Floats],
    second: Callable[[np.random.Generator, int], Floats],
) -> Callable[[np.random.Generator, int], Floats]:
    """A share of the problems from the first, the others from the second."""
    return lambda rng, number: np.where(rng.random(number) < share, first(rng, number), second(rng, number))


# Chance of a right completion, problem by problem.
WORLDS = {
    "uniform": beta(1, 1),
    "solved or not": beta(0.3, 0.3),
    "hard": beta(1, 4),
    "easy": beta(9, 1),
    "nearly always right": beta(5, 0.2),
    "nearly never right": beta(0.2, 5),
    "easy with a hard tail": mixture(0.9, beta(50, 0.5), beta(1, 3)),
    "all alike": beta(200, 200),
}


@dataclass(frozen=True)
class Metric:
    """What is estimated.

    Attributes:
        kind: `avg`, `pass` or `maj`, or `gain`: the difference in avg@n to a policy that is better on most problems.
        samples: n.
        k: Of pass@k and maj@k.
    """

    kind: str
    samples: int
    k: int = 1

    @property
    def name(self) -> str:
        return f"{self.kind}@{self.samples if self.kind in ('avg', 'gain') else self.k} of {self.samples}"


def values(metric: Metric, chances: Floats, rng: np.random.Generator) -> Floats:
    """The metric of one simulated evaluation, problem by problem."""
    n = metric.samples
    if metric.kind == "maj":
        wrong = [(1 - chances) * share for share in _WRONG]
        shares = np.stack([chances, *wrong, (1 - chances) * (1 - sum(_WRONG))], axis=-1)
        return np.array([_majority(counts, metric.k) for counts in rng.multinomial(n, shares)])
    right = rng.binomial(n, chances)
    if metric.kind == "gain":
        return (rng.binomial(n, better(chances, rng)) - right) / n
    by_count = [pass_at_k(n, count, metric.k if metric.kind == "pass" else 1) for count in range(n + 1)]
    return np.array(by_count)[right]


def better(chances: Floats, rng: np.random.Generator) -> Floats:
    """Chances of the better policy: the odds are multiplied by a number around 1.6."""
    clipped = np.clip(chances, 1e-9, 1 - 1e-9)
    odds = clipped / (1 - clipped) * np.exp(rng.normal(0.5, 0.5, chances.shape))
    return odds / (1 + odds)


def _majority(counts: NDArray[np.int64], k: int) -> float:
    answers = [
        None if answer == len(counts) - 1 else answer for answer in range(len(counts)) for _ in range(counts[answer])
    ]
    return maj_at_k(answers, [answer == 0 for answer in answers], k)


def truth(metric: Metric, world: str, rng: np.random.Generator) -> float:
    """The mean over all problems of the world."""
    if metric.kind == "maj":  # unbiased, so the mean over many problems is as good as the chance itself
        return float(values(metric, WORLDS[world](rng, _MAJORITY_TRUTH_PROBLEMS), rng).mean())
    chances = WORLDS[world](rng, _TRUTH_PROBLEMS)
    if metric.kind == "gain":
        return float((better(chances, rng) - chances).mean())
    return float((1 - (1 - chances) ** (metric.k if metric.kind == "pass" else 1)).mean())


def coverage(metric: Metric, world: str, problems: int, evaluations: int, seed: int) -> tuple[float, float]:
    """Share of simulated evaluations whose interval contains the truth, and the truth."""
    rng = np.random.default_rng(seed)
    target = truth(metric, world, rng)
    interval: Interval = difference_interval if metric.kind == "gain" else share_interval
    covered = 0
    for _ in range(evaluations):
        estimate = interval(values(metric, WORLDS[world](rng, problems), rng).tolist())
        covered += estimate.low <= target <= estimate.high
    return covered / evaluations, target


METRICS = [
    *(Metric("avg", n) for n in (1, 4, 8, 16)),
    *(Metric("pass", n, k) for n, k in ((4, 2), (8, 4), (16, 8))),
    *(Metric("maj", n, k) for n, k in ((4, 4), (8, 4), (16, 8))),
    *(Metric("gain", n) for n in (1, 4, 16)),
]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--problems", type=int, default=100, help="problems of an evaluation")
    parser.add_argument("--evaluations", type=int, default=4_000, help="evaluations per cell")
    parser.add_argument("--seed", type=int, default=0, help="seed of the simulation")
    options = parser.parse_args()
    print(f"| {options.problems} problems | " + " | ".join(WORLDS) + " |")
    print("| --- |" + " ---: |" * len(WORLDS))
    for metric in METRICS:
        cells = []
        for world in WORLDS:
            share, target = coverage(metric, world, options.problems, options.evaluations, options.seed)
            cells.append(f"{100 * share:.1f} ({100 * target:.0f})")
        print(f"| {metric.name} | " + " | ".join(cells) + " |", flush=True)


if __name__ == "__main__":
    main()
