"""Sampling completions: engines behind one small protocol, seeds, collection and micro-batching."""
