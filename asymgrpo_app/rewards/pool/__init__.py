"""Verifiers in processes of their own: a verdict that hangs, crashes or takes all memory costs one completion."""
