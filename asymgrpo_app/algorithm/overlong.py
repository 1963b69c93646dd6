"""Soft overlong punishment (DAPO, arXiv 2503.14476): a penalty on completions near the length limit."""

import torch
from torch import Tensor


def overlong_penalty(lengths: Tensor, max_tokens: int, buffer: int) -> Tensor:
    """Penalty by length: 0 up to max_tokens - buffer, then linear to -1 at max_tokens (DAPO Eq. 13).

    Args:
        lengths: Completion lengths in tokens, of any shape.
        max_tokens: The length limit, in tokens.
        buffer: Length of the ramp in tokens, in 1..max_tokens.

    Returns:
        float32 in [-1, 0], of the shape of `lengths`.

    Raises:
        ValueError: The buffer is outside 1..max_tokens.
    """
    if not 1 <= buffer <= max_tokens:
        raise ValueError(f"buffer must be in 1..{max_tokens} (max_tokens), got {buffer}")
    overshoot = (lengths - (max_tokens - buffer)).float() / buffer
    return -overshoot.clamp(0, 1)


def shaped_advantages(advantages: Tensor, shaping: Tensor, valid: Tensor) -> Tensor:
    """Add shaping terms, such as the length penalty, to the advantages of completions.

    The group accuracy p, and with it the curve each completion is on, come from correctness alone; the terms are then
    added as they stand, in units of the advantage: A' = A + shaping. So a right completion that is too long may end
    below 0, as in DAPO, and |A'| may pass the estimator's cap by at most the largest term. Groups whose advantages are
    all 0 stay at 0: a dropped group must not get a gradient by its lengths.

    Args:
        advantages: [P, G], 0 at invalid entries.
        shaping: [P, G], the sum of the terms; the length penalty is in [-1, 0].
        valid: [P, G] bool; invalid completions get no term.

    Returns:
        [P, G].
    """
    live = (advantages != 0).any(dim=-1, keepdim=True)
    return torch.where(live & valid, advantages + shaping, advantages)
