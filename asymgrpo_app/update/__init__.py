"""Optimizer updates from judged rollouts, and the metrics of a step."""
