"""95 % intervals over problems: for shares, other means, paired differences, and means over sets.

The completions of one problem are not independent of each other, so a set of 100 problems with 8 completions each has
100 observations and not 800. Everything here takes one value per problem; intervals are for the population of problems
that the set is a sample of. docs/evaluation.md has the rules in words and the simulated coverage.
"""

from collections.abc import Sequence
from functools import lru_cache
from math import atan, cos, fsum, inf, isclose, pi, sin, sqrt
from typing import NamedTuple

_LEVEL = 0.95
_PRIOR = 0.2  # added to sums of squares over problems to steady a ratio of variances; chosen by simulation


class Estimate(NamedTuple):
    """A mean over problems with its interval.

    Attributes:
        value: The mean.
        low: Lower end of the 95 % interval; -inf where nothing bounds it.
        high: Upper end.
        n: Number of problems.
    """

    value: float
    low: float
    high: float
    n: int


@lru_cache(maxsize=1024)
def t_quantile(degrees: int) -> float:
    """The two-sided 95 % point of Student's t distribution: P(|T| <= t) = 0.95.

    Args:
        degrees: Degrees of freedom, at least 1.
    """
    low, high = 1.9, 12.8  # the normal distribution's 1.96, and 12.71 of one degree of freedom
    while not isclose(low, high, rel_tol=1e-12):
        middle = (low + high) / 2
        low, high = (middle, high) if _within(middle, degrees) < _LEVEL else (low, middle)
    return (low + high) / 2


def _within(t: float, degrees: int) -> float:
    """P(|T| <= t) in closed form (Abramowitz and Stegun, 26.7.3 and 26.7.4)."""
    angle = atan(t / sqrt(degrees))
    odd = degrees % 2
    term, total = (cos(angle), 0.0) if odd else (1.0, 0.0)
    for power in range(1 + odd, degrees, 2):
        total += term
        term *= cos(angle) ** 2 * power / (power + 1)
    return 2 / pi * (angle + sin(angle) * total) if odd else sin(angle) * total


def share_interval(values: Sequence[float]) -> Estimate:
    """The mean of values in [0, 1]: Wilson's score interval for n / r problems.

    r is the design effect, the variance of the values over m (1 - m), the largest that values in [0, 1] with mean m can
    have (values of 0 and 1 do). It is drawn towards 1, the more so the less the values tell about it:
    r = (S + 0.2) / (n m (1 - m) + 0.2), with S the sum of squared deviations. So all right, or all wrong, gives
    Wilson's interval for n problems, and no values give an interval of width 0. The quantile is Student's with n - 1
    degrees of freedom; one problem alone says nothing: [0, 1].

    Args:
        values: One value per problem, at least one.
    """
    n = len(values)
    mean = min(max(fsum(values) / n, 0.0), 1.0)
    if n == 1:
        return Estimate(mean, 0.0, 1.0, n)
    largest = n * mean * (1 - mean)
    effect = (fsum((value - mean) ** 2 for value in values) + _PRIOR) / (largest + _PRIOR)
    z2 = t_quantile(n - 1) ** 2 * effect / n
    center = (mean + z2 / 2) / (1 + z2)
    half = sqrt(z2 * mean * (1 - mean) + z2 * z2 / 4) / (1 + z2)
    # At a mean of 0 and 1 the end is exactly there; rounding must not push it beyond.
    return Estimate(mean, min(max(center - half, 0.0), mean), max(min(center + half, 1.0), mean), n)


def mean_interval(values: Sequence[float]) -> Estimate:
    """The mean of values without known bounds (tokens, nats): Student's t; unbounded for one problem.

    Args:
        values: One value per problem, at least one.
    """
    n = len(values)
    mean = fsum(values) / n
    if n == 1:
        return Estimate(mean, -inf, inf, n)
    half = t_quantile(n - 1) * sqrt(fsum((value - mean) ** 2 for value in values) / (n - 1) / n)
    return Estimate(mean, mean - half, mean + half, n)


def difference_interval(differences: Sequence[float]) -> Estimate:
    """The mean of paired differences of values in [0, 1]: Student's t, with one imaginary problem's worth of change.

    Where two policies differ on few problems, the observed variance says little about the problems that were not drawn.
    So the variance gets r / n on top, r = (sum d^2 + 0.2) / (sum |d| + 0.2) being the size of a typical difference: 1
    for differences of -1, 0 and 1, where half a problem is added to each cell of the 2 x 2 table (Agresti and Min
    2005, Statistics in Medicine 24, 729). Equal values everywhere give an interval of about 2 / n on both sides, never
    one of width 0; one problem alone says nothing: [-1, 1].

    Args:
        differences: One value in [-1, 1] per problem, at least one.
    """
    n = len(differences)
    mean = fsum(differences) / n
    if n == 1:
        return Estimate(mean, -1.0, 1.0, n)
    squares, sizes = fsum(d * d for d in differences), fsum(map(abs, differences))
    typical = (squares + _PRIOR) / (sizes + _PRIOR)
    variance = fsum((d - mean) ** 2 for d in differences) / n + typical / n
    half = t_quantile(n - 1) * sqrt(variance / n)
    return Estimate(mean, max(mean - half, -1.0), min(mean + half, 1.0), n)


def mean_over_sets(estimates: Sequence[Estimate]) -> Estimate:
    """The mean over sets, all with the same weight; the sets are fixed, their problems are the sample.

    The distance from the value to an end stands for each set's standard error on that side, so distances add up in
    squares (Zou and Donner 2008, Statistics in Medicine 27, 1693: MOVER). `n` is the number of problems of all sets.

    Args:
        estimates: One per set, at least one.
    """
    number = len(estimates)
    value = fsum(estimate.value for estimate in estimates) / number
    below = sqrt(fsum((estimate.value - estimate.low) ** 2 for estimate in estimates)) / number
    above = sqrt(fsum((estimate.high - estimate.value) ** 2 for estimate in estimates)) / number
    return Estimate(value, value - below, value + above, sum(estimate.n for estimate in estimates))
