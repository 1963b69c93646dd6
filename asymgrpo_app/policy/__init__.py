"""The language model: loading, log-probabilities of completion tokens, attention over packed rows, adapters, export."""
