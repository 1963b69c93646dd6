"""Checks before a run starts, and its report on batch sizes, memory and precision."""
