"""Sets of an evaluation, their metrics, intervals, results on disk, and comparisons."""

from asymgrpo_app.evaluation.estimators import maj_at_k, pass_at_k
from asymgrpo_app.evaluation.intervals import Estimate, share_interval

__all__ = ["Estimate", "maj_at_k", "pass_at_k", "share_interval"]
