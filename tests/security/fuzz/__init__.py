"""Feeds readers with changed inputs until the time is over: `python -m tests.security.fuzz NAME --seconds N`."""
