"""KL divergence to the reference policy, estimated per token."""

from torch import Tensor

from asymgrpo_app.algorithm.ratios import bounded


def k3(logprobs: Tensor, ref_logprobs: Tensor) -> Tensor:
    """Per-token estimate exp(d) - d - 1 of KL(policy || reference), with d = ref_logprobs - logprobs.

    Unbiased in value for tokens sampled from the policy, and never negative (Schulman, "Approximating KL divergence",
    2020; used by GRPO, arXiv 2402.03300 Eq. 4).

    Args:
        logprobs: [T] in nats, carries the gradient.
        ref_logprobs: [T] in nats, constant.

    Returns:
        [T], >= 0.
    """
    difference = bounded(ref_logprobs.detach() - logprobs)
    return difference.exp() - difference - 1
