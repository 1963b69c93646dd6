"""Attention of short sequences in bfloat16 on a CPU, against float64 and against torch's fused kernel."""

import subprocess
import sys

import pytest
import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

from asymgrpo_app.policy import short_attention as module
from asymgrpo_app.policy.short_attention import LONGEST, fits, short_attention

Inputs = tuple[Tensor, Tensor, Tensor, Tensor]


def inputs(batch: int, length: int, heads: int, key_heads: int) -> Inputs:
    """Query, key, value and a gradient; scores of a standard deviation of 4, as trained models have them."""
    torch.manual_seed(length)
    own = [
        (2 * torch.randn(batch, length, number, 32)).bfloat16().transpose(1, 2)
        for number in (heads, key_heads, key_heads, heads)
    ]
    return own[0], own[1], own[2], own[3]


def gradients(attend, given: Inputs, dtype: torch.dtype) -> list[Tensor]:
    """The result and the gradients of query, key and value, in float64."""
    leaves = [tensor.detach().to(dtype).requires_grad_() for tensor in given[:3]]
    result = attend(*leaves)
    result.backward(given[3].to(dtype))
    return [result.detach().double(), *(leaf.grad.double() for leaf in leaves)]


def fused(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    return scaled_dot_product_attention(query, key, value, is_causal=True, enable_gqa=True)


def own(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    return short_attention(query, key, value, None)


def errors(found: list[Tensor], exact: list[Tensor]) -> list[float]:
    return [float((a - b).norm() / b.norm()) for a, b in zip(found, exact, strict=True)]


@pytest.mark.parametrize(("batch", "length"), [(3, 2), (2, 17), (4, 64), (1, LONGEST)])
@pytest.mark.parametrize(("heads", "key_heads"), [(4, 4), (6, 2), (3, 1)])
def test_as_exact_as_the_fused_kernel(batch, length, heads, key_heads):
    """Result and gradients to 1.5 % of their norm, the rounding of bfloat16, and not above twice the fused kernel's."""
    given = inputs(batch, length, heads, key_heads)
    exact = gradients(fused, given, torch.float64)
    for ours, theirs in zip(
        errors(gradients(own, given, torch.bfloat16), exact),
        errors(gradients(fused, given, torch.bfloat16), exact),
        strict=True,
    ):
        assert ours < 0.015
        assert ours <= 2 * theirs + 0.001


def test_scores_held_in_parts_change_nothing(monkeypatch):
    given = inputs(5, 30, 6, 2)
    whole = gradients(own, given, torch.bfloat16)
    monkeypatch.setattr(module, "_SCORES_AT_ONCE", 3 * 30 * 30 * 3)  # three key heads' scores at a time, of ten
    for a, b in zip(whole, gradients(own, given, torch.bfloat16), strict=True):
        assert torch.equal(a, b)


def test_a_scale_of_ones_own():
    query, key, value, _ = inputs(2, 12, 4, 2)
    expected = scaled_dot_product_attention(query, key, value, is_causal=True, scale=0.3, enable_gqa=True)
    torch.testing.assert_close(short_attention(query, key, value, 0.3), expected, atol=0.03, rtol=0.02)


def test_no_token_sees_a_later_one():
    query, key, value, _ = inputs(1, 20, 4, 2)
    before = own(query, key, value)
    for changed in (key, value):
        changed[:, :, 12:] += 1
    after = own(query, key, value)
    assert torch.equal(before[:, :, :12], after[:, :, :12])
    assert not torch.equal(before[:, :, 12:], after[:, :, 12:])


def test_what_it_is_used_for():
    assert fits(torch.zeros(1, 2, LONGEST, 8, dtype=torch.bfloat16))
    assert not fits(torch.zeros(1, 2, LONGEST + 1, 8, dtype=torch.bfloat16))
    assert not fits(torch.zeros(1, 2, 8, 8))
    assert not fits(torch.zeros(1, 2, 8, 8, dtype=torch.bfloat16, device="meta"))


def test_a_single_token_gets_its_own_value():
    query, key, value, _ = inputs(2, 1, 4, 2)
    assert torch.equal(own(query, key, value), value.repeat_interleave(2, dim=1))


_FREE = """
import torch
from psutil import Process
from asymgrpo_app.runtime.allocator import return_freed_memory
blocks = [torch.ones(2**14) for _ in range(3 * 2**12)]  # 0.75 GiB
kept = blocks[::100]  # so that memory cannot shrink from its end
full = Process().memory_info().rss
del blocks
returned = return_freed_memory()
print(returned, (full - Process().memory_info().rss) / 2**30, sum(float(block[0]) for block in kept) == len(kept))
"""


def test_freed_memory_goes_back():
    done = subprocess.run([sys.executable, "-c", _FREE], capture_output=True, text=True, check=True)
    returned, gib, intact = done.stdout.split()
    assert (returned, intact) == ("True", "True")
    assert 0.6 < float(gib) < 0.8


def test_little_freed_memory_stays():
    code = "from asymgrpo_app.runtime.allocator import return_freed_memory; print(return_freed_memory())"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"
