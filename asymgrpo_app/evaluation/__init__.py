"""Sets of an evaluation, their metrics, intervals, results on disk, and comparisons."""

from typing import TYPE_CHECKING, Any

from asymgrpo_app.evaluation.estimators import maj_at_k, pass_at_k
from asymgrpo_app.evaluation.intervals import Estimate, difference_interval, mean_interval, share_interval
from asymgrpo_app.evaluation.outcomes import MetricChoice, ProblemOutcome, outcomes_of
from asymgrpo_app.rewards.answers import answer_classes

if TYPE_CHECKING:
    from asymgrpo_app.evaluation.metrics import SetMetrics

__all__ = [
    "Estimate",
    "MetricChoice",
    "ProblemOutcome",
    "SetMetrics",
    "answer_classes",
    "difference_interval",
    "maj_at_k",
    "mean_interval",
    "outcomes_of",
    "pass_at_k",
    "share_interval",
]


def __getattr__(name: str) -> Any:
    """Load the torchmetrics class on first use, so that `asymgrpo compare` starts without torch."""
    if name == "SetMetrics":
        from asymgrpo_app.evaluation.metrics import SetMetrics

        return SetMetrics
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
