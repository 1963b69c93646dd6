"""Verifiers in worker processes: one that hangs, crashes or takes all memory costs only one completion's verdict."""
