"""Metrics of an evaluation."""

from asymgrpo_app.evaluation.metrics import EvaluationMetrics, pass_at_k

__all__ = ["EvaluationMetrics", "pass_at_k"]
