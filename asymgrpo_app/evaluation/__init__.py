"""Sets of an evaluation, their metrics, intervals, results on disk, and comparisons."""

from asymgrpo_app.evaluation.estimators import maj_at_k, pass_at_k
from asymgrpo_app.evaluation.intervals import Estimate, difference_interval, mean_interval, share_interval
from asymgrpo_app.evaluation.outcomes import MetricChoice, ProblemOutcome, outcomes_of

__all__ = [
    "Estimate",
    "MetricChoice",
    "ProblemOutcome",
    "difference_interval",
    "maj_at_k",
    "mean_interval",
    "outcomes_of",
    "pass_at_k",
    "share_interval",
]
