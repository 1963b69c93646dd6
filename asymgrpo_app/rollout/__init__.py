"""Sampling of completions: engines behind one protocol, weight transfer and its checks, dynamic sampling, judging."""
