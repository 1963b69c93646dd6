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
    """The mean of `values`, of any shape, over all places or those where the mask `where` is true."""
    values = values.detach() if where is None else values.detach()[where]
    return Mean(values.sum(dtype=torch.float64), values.new_tensor(values.numel(), dtype=torch.float64))
