"""Means that can be added up over micro-batches and ranks before they are divided."""

from typing import NamedTuple

import torch
from torch import Tensor


class Mean(NamedTuple):
    """A mean in two parts, both float64 scalars without gradient.

    Sum each part over micro-batches and ranks, then divide: the result does not depend on how an update was cut. A
    weight of 0 means that there was nothing to average.
    """

    total: Tensor
    weight: Tensor


def mean_of(values: Tensor, where: Tensor | None = None) -> Mean:
    """The mean of `values`, of any shape, over all elements or those where the mask `where` is true.

    Does not synchronize with a GPU: the element count of a mask stays on the mask's device.
    """
    values = values.detach()
    if where is None:
        return Mean(values.sum(dtype=torch.float64), torch.tensor(values.numel(), dtype=torch.float64))
    return Mean(torch.where(where, values, 0).sum(dtype=torch.float64), where.sum(dtype=torch.float64))


def ratio(total: Tensor | float, weight: Tensor | float) -> Mean:
    """A `Mean` from a sum and its divisor, given as numbers or scalar tensors."""
    return Mean(*(torch.as_tensor(part, dtype=torch.float64).detach() for part in (total, weight)))
