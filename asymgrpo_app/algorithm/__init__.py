"""The method as pure tensor functions: no Lightning, no I/O, no random state.

Advantages come from groups of verdicts (`advantages`, `baselines`), log-probabilities and entropies from hidden states
(`logprobs`), and objectives turn both into per-token losses (`clipped`, `gspo`, `cispo`, `covariance`) that
`aggregation` weighs. Everything about completions is packed: 1-D tensors over the completion tokens of a micro-batch.
"""
