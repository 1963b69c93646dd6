"""The method as pure tensor functions: no Lightning, no I/O, no random state.

Verdicts of groups become advantages (`advantages`, `baselines`). Objectives turn advantages and log-probabilities into
per-token losses (`clipped`, `gspo`, `cispo`, `covariance`), which `aggregation` reduces to one number. Completions are
packed: 1-D tensors over the completion tokens of a micro-batch.
"""
