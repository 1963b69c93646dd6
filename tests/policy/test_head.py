import math
from typing import NamedTuple

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from asymgrpo_app.policy.head import CHUNK_TOKENS, _product, completion_logprobs, working_bytes
from asymgrpo_app.policy.head_passes import cuts


def naive(hidden: Tensor, weight: Tensor, bias: Tensor | None, targets: Tensor, temperature: float):
    """The same from all logits at once, in float64."""
    logits = torch.nn.functional.linear(hidden.double(), weight.double(), None if bias is None else bias.double())
    logprobs = torch.log_softmax(logits / temperature, dim=-1)
    entropy = -(logprobs.exp() * logprobs).sum(dim=-1)
    return logprobs.gather(-1, targets.unsqueeze(-1)).squeeze(-1), entropy


def head(num_tokens: int, width: int, vocabulary: int, dtype: torch.dtype, spread: float = 1.0):
    generator = torch.Generator().manual_seed(num_tokens + vocabulary)
    hidden = torch.randn(num_tokens, width, generator=generator).to(dtype).requires_grad_()
    weight = (spread * torch.randn(vocabulary, width, generator=generator)).to(dtype).requires_grad_()
    bias = torch.randn(vocabulary, generator=generator).to(dtype).requires_grad_()
    return hidden, weight, bias, torch.randint(0, vocabulary, (num_tokens,), generator=generator)


def relative_error(actual: Tensor, expected: Tensor) -> float:
    return ((actual.double() - expected.double()).norm() / expected.double().norm()).item()


def test_closed_form() -> None:
    hidden = torch.tensor([[1.0], [0.0]])
    weight = torch.tensor([[math.log(9.0)], [0.0]])
    logprobs, entropy = completion_logprobs(hidden, weight, None, torch.tensor([0, 1]), temperature=2.0)
    # At temperature 2 the odds 9 : 1 become 3 : 1.
    assert logprobs.tolist() == pytest.approx([math.log(0.75), math.log(0.5)])
    assert entropy.tolist() == pytest.approx([-0.75 * math.log(0.75) - 0.25 * math.log(0.25), math.log(2)])


@pytest.mark.parametrize("chunk_tokens", [1, 3, 7, 100])
@pytest.mark.parametrize("temperature", [0.6, 1.0])
@pytest.mark.parametrize("with_bias", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_values_and_gradients(chunk_tokens: int, temperature: float, with_bias: bool, dtype: torch.dtype) -> None:
    hidden, weight, bias, targets = head(7, 5, 11, dtype)
    used_bias = bias if with_bias else None
    leaves = [hidden, weight, bias] if with_bias else [hidden, weight]
    outputs = completion_logprobs(
        hidden, weight, used_bias, targets, temperature=temperature, chunk_tokens=chunk_tokens, entropy_grad=True
    )
    expected = naive(hidden, weight, used_bias, targets, temperature)
    tolerance = 1e-12 if dtype == torch.float64 else 2e-6
    for actual, wanted in zip(outputs, expected, strict=True):
        assert actual.dtype == dtype
        assert relative_error(actual, wanted) < tolerance
    factors = torch.linspace(-1, 2, 7, dtype=torch.float64)
    combined = sum(((factors + i) * wanted).sum() for i, wanted in enumerate(expected))
    wanted_gradients = torch.autograd.grad(combined, leaves)
    combined = sum(((factors + i) * actual).sum() for i, actual in enumerate(outputs))
    for actual, wanted in zip(torch.autograd.grad(combined, leaves), wanted_gradients, strict=True):
        assert actual.dtype == dtype
        assert relative_error(actual, wanted) < tolerance


@pytest.mark.parametrize("output", [0, 1])
def test_gradcheck(output: int) -> None:
    hidden, weight, bias, targets = head(5, 3, 6, torch.float64)

    def one(*leaves: Tensor) -> Tensor:
        return completion_logprobs(*leaves, targets, temperature=0.7, chunk_tokens=2, entropy_grad=True)[output]

    assert torch.autograd.gradcheck(one, (hidden, weight, bias))


def test_entropy_carries_a_gradient_only_on_request() -> None:
    hidden, weight, _, targets = head(5, 3, 6, torch.float32)
    logprobs, entropy = completion_logprobs(hidden, weight, None, targets, temperature=1.0)
    assert logprobs.requires_grad
    assert not entropy.requires_grad


def test_no_grad() -> None:
    hidden, weight, bias, targets = head(5, 3, 6, torch.float32)
    with torch.no_grad():
        outputs = completion_logprobs(hidden, weight, bias, targets, temperature=1.0, entropy_grad=True)
    assert not any(output.requires_grad for output in outputs)
    for actual, wanted in zip(outputs, naive(hidden, weight, bias, targets, 1.0), strict=True):
        assert relative_error(actual, wanted) < 1e-6


@pytest.mark.parametrize("trainable", [(True, False), (False, True)])
def test_frozen_inputs_get_no_gradient(trainable: tuple[bool, bool]) -> None:
    hidden, weight, _, targets = head(5, 3, 6, torch.float32)
    expected = torch.autograd.grad(naive(hidden, weight, None, targets, 1.0)[0].sum(), [hidden, weight])
    leaves = [leaf.detach().requires_grad_(flag) for leaf, flag in zip((hidden, weight), trainable, strict=True)]
    completion_logprobs(*leaves, None, targets, temperature=1.0)[0].sum().backward()
    for leaf, flag, wanted in zip(leaves, trainable, expected, strict=True):
        assert (leaf.grad is not None) == flag
        if leaf.grad is not None:
            assert relative_error(leaf.grad, wanted) < 1e-6


def test_no_tokens() -> None:
    hidden, weight, bias, targets = head(0, 3, 6, torch.float32)
    logprobs, entropy = completion_logprobs(hidden, weight, bias, targets, temperature=1.0, entropy_grad=True)
    assert logprobs.shape == entropy.shape == (0,)
    (logprobs.sum() + entropy.sum()).backward()
    assert hidden.grad.shape == (0, 3)
    assert weight.grad.abs().max() == bias.grad.abs().max() == 0


@pytest.mark.parametrize("hidden_dtype", [torch.float32, torch.bfloat16])
def test_autocast_rounds_products_and_keeps_statistics_and_master_gradients_in_float32(hidden_dtype) -> None:
    hidden, weight, bias, targets = head(600, 32, 300, torch.float32, spread=0.3)
    hidden = hidden.detach().to(hidden_dtype).requires_grad_()
    with torch.autocast("cpu", torch.bfloat16):
        outputs = completion_logprobs(
            hidden, weight, bias, targets, temperature=0.8, chunk_tokens=50, entropy_grad=True
        )
        (outputs[0].sum() + 0.1 * outputs[1].sum()).backward()
    gradients = [hidden.grad, weight.grad, bias.grad]
    assert [gradient.dtype for gradient in gradients] == [hidden_dtype, torch.float32, torch.float32]
    expected = naive(hidden, weight, bias, targets, 0.8)
    wanted = torch.autograd.grad(expected[0].sum() + 0.1 * expected[1].sum(), [hidden, weight, bias])
    for actual, value in zip(outputs, expected, strict=True):
        assert actual.dtype == torch.float32
        assert relative_error(actual, value) < 5e-3
    for actual, value in zip(gradients, wanted, strict=True):
        assert relative_error(actual, value) < 1e-2


def test_gradients_of_a_bfloat16_head_are_summed_in_float32() -> None:
    hidden, weight, bias, targets = head(3000, 4, 6, torch.bfloat16, spread=0.3)
    # A mean far from 0 makes the sum grow past what bfloat16 can still add a token's part to.
    hidden = (hidden.detach() + 3).requires_grad_()
    targets = torch.zeros_like(targets)
    logprobs, _ = completion_logprobs(hidden, weight, bias, targets, temperature=1.0, chunk_tokens=1)
    gradients = torch.autograd.grad(logprobs.sum(), [weight, bias])
    wanted = torch.autograd.grad(naive(hidden, weight, bias, targets, 1.0)[0].sum(), [weight, bias])
    for gradient, value in zip(gradients, wanted, strict=True):
        assert gradient.dtype == torch.bfloat16
        assert relative_error(gradient, value) < 5e-3


def test_backward_inside_autocast_keeps_the_precision_of_the_forward_pass() -> None:
    hidden, weight, _, targets = head(7, 5, 11, torch.float32)
    logprobs, _ = completion_logprobs(hidden, weight, None, targets, temperature=1.0)
    with torch.autocast("cpu", torch.bfloat16):
        gradients = torch.autograd.grad(logprobs.sum(), [hidden, weight])
    wanted = torch.autograd.grad(naive(hidden, weight, None, targets, 1.0)[0].sum(), [hidden, weight])
    for actual, value in zip(gradients, wanted, strict=True):
        assert relative_error(actual, value) < 1e-6


def test_softmax_statistics_do_not_round_to_bfloat16() -> None:
    # Logits that bfloat16 holds exactly: only statistics could lose precision.
    hidden = torch.ones(1, 1, dtype=torch.bfloat16)
    weight = torch.linspace(-4, 3.9375, 128).bfloat16().unsqueeze(1)
    outputs = completion_logprobs(hidden, weight, None, torch.tensor([17]), temperature=1.0)
    for actual, wanted in zip(outputs, naive(hidden, weight, None, torch.tensor([17]), 1.0), strict=True):
        assert relative_error(actual, wanted) < 1e-6


def test_large_logits_stay_finite() -> None:
    hidden, weight, _, targets = head(20, 8, 30, torch.float32, spread=1e3)
    logprobs, entropy = completion_logprobs(hidden, weight, None, targets, temperature=0.1, entropy_grad=True)
    assert logprobs.isfinite().all()
    assert entropy.isfinite().all()
    assert entropy.min() >= 0
    (logprobs.sum() + entropy.sum()).backward()
    assert hidden.grad.isfinite().all()


class Operation(NamedTuple):
    """What an operation of torch returned."""

    name: str
    elements: int
    dtype: torch.dtype
    fresh: bool  # in memory of its own, not that of an argument


class Operations(TorchDispatchMode):
    """Records all operations."""

    def __init__(self) -> None:
        super().__init__()
        self.recorded: list[Operation] = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        given = [value for value in [*args, *(kwargs or {}).values()] if isinstance(value, Tensor)]
        memory = {value.untyped_storage().data_ptr() for value in given}
        result = func(*args, **(kwargs or {}))
        for value in result if isinstance(result, tuple | list) else [result]:
            if isinstance(value, Tensor):
                fresh = value.untyped_storage().data_ptr() not in memory
                self.recorded.append(Operation(func.overloadpacket.__name__, value.numel(), value.dtype, fresh))
        return result

    def largest(self, dtype: torch.dtype = torch.float32) -> int:
        """The number of elements of the largest tensor of a dtype."""
        return max(operation.elements for operation in self.recorded if operation.dtype == dtype)


def test_cuts_cover_a_range_and_the_last_may_be_shorter() -> None:
    assert list(cuts(2, 9, 3)) == [slice(2, 5), slice(5, 8), slice(8, 9)]
    assert list(cuts(0, 0, 3)) == []


@pytest.mark.parametrize("entropy_grad", [False, True])
def test_logits_exist_for_one_chunk_at_a_time(entropy_grad: bool) -> None:
    hidden, weight, _, targets = head(64, 4, 500, torch.float32)
    with Operations() as operations:
        outputs = completion_logprobs(
            hidden, weight, None, targets, temperature=1.0, chunk_tokens=8, entropy_grad=entropy_grad
        )
        (outputs[0].sum() + outputs[1].sum()).backward()
    assert operations.largest() == 8 * 500


def test_a_chunk_has_512_tokens_unless_told_otherwise() -> None:
    hidden, weight, _, targets = head(520, 1, 10, torch.float32)
    with Operations() as operations:
        completion_logprobs(hidden, weight, None, targets, temperature=1.0)
    assert operations.largest() == 512 * 10


@pytest.mark.parametrize("autocast", [False, True])
def test_chunks_share_their_buffers(autocast: bool) -> None:
    def buffers(num_tokens: int) -> int:
        hidden, weight, bias, targets = head(num_tokens, 3, 50, torch.float32)
        with Operations() as operations, torch.autocast("cpu", torch.bfloat16, enabled=autocast):
            outputs = completion_logprobs(
                hidden, weight, bias, targets, temperature=0.7, chunk_tokens=4, entropy_grad=True
            )
            (outputs[0].sum() + outputs[1].sum()).backward()
        return sum(operation.fresh and operation.elements >= 3 * 50 for operation in operations.recorded)

    assert buffers(4) == buffers(8) == buffers(20)


@pytest.mark.parametrize(("entropy_grad", "buffers"), [(False, 3), (True, 4)])
def test_only_the_gradient_of_entropy_takes_a_second_buffer_in_the_backward_pass(
    entropy_grad: bool, buffers: int
) -> None:
    hidden, weight, _, targets = head(8, 3, 50, torch.float32)
    with Operations() as operations:
        outputs = completion_logprobs(hidden, weight, None, targets, temperature=1.0, entropy_grad=entropy_grad)
        sum(output.sum() for output in outputs if output.requires_grad).backward()
    # Logits and their exponentials, the logits again in the backward pass, and p beside log p.
    assert sum(operation.fresh and operation.elements == 8 * 50 for operation in operations.recorded) == buffers


@pytest.mark.parametrize("entropy_grad", [False, True])
def test_values_and_gradients_do_not_depend_on_blocks(monkeypatch: pytest.MonkeyPatch, entropy_grad: bool) -> None:
    def run() -> list[Tensor]:
        hidden, weight, bias, targets = head(20, 5, 11, torch.float64)
        outputs = completion_logprobs(
            hidden, weight, bias, targets, temperature=0.7, chunk_tokens=7, entropy_grad=entropy_grad
        )
        (outputs[0].sum() + outputs[1].sum()).backward()
        return [*outputs, hidden.grad, weight.grad, bias.grad]

    whole = run()
    # Blocks of three tokens, three of them in a chunk.
    monkeypatch.setattr("asymgrpo_app.policy.head._BLOCK_VALUES", 3 * 11)
    for pieces, expected in zip(run(), whole, strict=True):
        torch.testing.assert_close(pieces, expected, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize(("block_values", "block"), [(2 * 500, 2), (1, 1)])
def test_exponentials_exist_for_one_block_at_a_time(monkeypatch, block_values: int, block: int) -> None:
    monkeypatch.setattr("asymgrpo_app.policy.head._BLOCK_VALUES", block_values)
    hidden, weight, _, targets = head(16, 1, 500, torch.float32)
    with Operations() as operations, torch.autocast("cpu", torch.bfloat16):
        completion_logprobs(hidden, weight, None, targets, temperature=1.0, chunk_tokens=8)[0].sum().backward()
    fresh = {op.elements for op in operations.recorded if op.fresh and op.dtype == torch.float32 and op.elements > 500}
    assert fresh == {8 * 500} | ({block * 500} if block > 1 else set())  # logits of a chunk, exponentials of a block
    assert operations.largest() == operations.largest(torch.bfloat16) == 8 * 500  # the gradients by these logits


def test_logits_are_float32_sums_of_rounded_factors() -> None:
    hidden, weight, _, targets = head(40, 64, 300, torch.float32, spread=2.0)  # logits of 30 and more
    with torch.autocast("cpu", torch.bfloat16):
        outputs = completion_logprobs(hidden, weight, None, targets, temperature=1.0)
    rounded = [leaf.bfloat16().double() for leaf in (hidden, weight)]
    for actual, wanted in zip(outputs, naive(*rounded, None, targets, 1.0), strict=True):
        # Rounded to bfloat16 they would be off by up to 1/16.
        torch.testing.assert_close(actual, wanted.float(), rtol=1e-5, atol=3e-5)


def test_gradients_are_products_of_a_rounded_gradient_by_the_logits() -> None:
    hidden, weight, _, targets = head(300, 64, 500, torch.float32, spread=0.5)
    with torch.autocast("cpu", torch.bfloat16):
        logprobs, entropy = completion_logprobs(
            hidden, weight, None, targets, temperature=1.0, chunk_tokens=100, entropy_grad=True
        )
        (logprobs.sum() + 0.1 * entropy.sum()).backward()
    rounded = [leaf.detach().bfloat16().double().requires_grad_() for leaf in (hidden, weight)]
    wanted = naive(*rounded, None, targets, 1.0)
    exact = torch.autograd.grad(wanted[0].sum() + 0.1 * wanted[1].sum(), rounded)
    for actual, value in zip((hidden.grad, weight.grad), exact, strict=True):
        # A value is off by at most 2^-9 of itself each time it is rounded: as factor and as product.
        assert relative_error(actual, value) < 2 * 2**-9


@pytest.mark.parametrize("device", ["cpu", "cuda"])
def test_chunks_are_larger_on_a_gpu(device: str) -> None:
    tokens, on_cpu = CHUNK_TOKENS[device], device == "cpu"
    settings = {"matmul_dtype": torch.float32, "weight_dtype": torch.float32, "weight_grad": False, "on_cpu": on_cpu}
    at, above = (working_bytes(tokens + more, 1, 10, **settings) for more in (0, 100))
    assert tokens == (512 if on_cpu else 4096)
    assert above - at == 100 * 4  # the gradients by further states, and nothing else


def test_a_product_of_lower_precision_in_float32_is_what_torch_has_for_a_gpu() -> None:
    """A CPU has no kernel for it; shapes and types are checked as on a GPU."""
    left, right = (torch.empty(shape, dtype=torch.bfloat16, device="meta") for shape in ((5, 3), (7, 3)))
    out = torch.empty(5, 7, device="meta")
    assert _product(left, right.T, out) is out
    with pytest.raises(RuntimeError, match="Expected out tensor to have dtype"):
        torch.mm(left, right.T, out=out)


@pytest.mark.parametrize(
    ("trainable", "products"),
    [
        # Of each of 2 chunks: logits in both passes, and the gradient by hidden states or by the weight.
        ((True, False, False), {"mm": 2 * 3, "addmm_": 0}),
        ((False, True, False), {"mm": 2 * 2, "addmm_": 2}),
        ((False, False, True), {"mm": 2 * 2, "addmm_": 0}),
    ],
)
def test_gradients_that_nobody_needs_are_not_computed(trainable: tuple[bool, ...], products: dict[str, int]) -> None:
    *leaves, targets = head(8, 3, 50, torch.float32)
    leaves = [leaf.detach().requires_grad_(needed) for leaf, needed in zip(leaves, trainable, strict=True)]
    with Operations() as operations:
        completion_logprobs(*leaves, targets, temperature=1.0, chunk_tokens=4)[0].sum().backward()
    assert {name: sum(op.name == name for op in operations.recorded) for name in products} == products
    sums_over_tokens = [op for op in operations.recorded if op.name == "sum" and op.elements == 50]
    assert len(sums_over_tokens) == (2 if trainable[2] else 0)


@pytest.mark.filterwarnings("error")  # as of a buffer that does not fit
def test_the_gradient_of_a_large_vocabulary_is_summed_up_in_tiles() -> None:
    hidden, weight, _, targets = head(6, 3, 8192 + 1000, torch.float32)
    with torch.autocast("cpu", torch.bfloat16):
        completion_logprobs(hidden, weight, None, targets, temperature=1.0, chunk_tokens=4)[0].sum().backward()
    (wanted,) = torch.autograd.grad(naive(hidden, weight, None, targets, 1.0)[0].sum(), weight)
    assert relative_error(weight.grad[:8192], wanted[:8192]) < 2e-2
    assert relative_error(weight.grad[8192:], wanted[8192:]) < 2e-2


WORDS, WIDTH = 2**18, 4  # of so many words, 2 tokens make a block on a CPU
CHUNK = 8 * (WORDS + WIDTH)  # the products of 8 tokens with every word, and their states
BLOCK = 2 * WORDS * 4
HEAD, TILE = WORDS * WIDTH, 8192 * WIDTH
MIXED = {"matmul_dtype": torch.bfloat16}
HALF = {"weight_dtype": torch.bfloat16}


@pytest.mark.parametrize(
    ("changes", "values", "weight"),
    [
        # All in float32: a chunk, p of a block beside log p, and the weight's gradient.
        ({}, CHUNK * 4 + BLOCK, HEAD * 4),
        ({"on_cpu": False}, CHUNK * 4 + 8 * WORDS * 4, HEAD * 4),
        # Gradients in bfloat16 and logits in float32, from the weight in both; a tile of its gradient.
        (MIXED, CHUNK * 6 + BLOCK, HEAD * (4 + 2 + 4) + TILE * 2),
        # On a GPU products of bfloat16 are float32, those of a tile too; a block is as large as a chunk.
        (MIXED | {"on_cpu": False}, CHUNK * 2 + 2 * (8 * WORDS) * 4, HEAD * (4 + 2) + TILE * 4),
        # A block has no more tokens than a chunk.
        (MIXED | {"chunk_tokens": 1}, (WORDS + WIDTH) * 6 + WORDS * 4, HEAD * (4 + 2 + 4) + TILE * 2),
        # A weight in bfloat16 is not cast to it.
        (MIXED | HALF, CHUNK * 6 + BLOCK, HEAD * (4 + 4) + TILE * 2),
        (HALF, CHUNK * 4 + BLOCK, HEAD * (4 + 4)),
        # A frozen weight has no gradient.
        ({"weight_grad": False}, CHUNK * 4 + BLOCK, 0),
        (MIXED | {"weight_grad": False}, CHUNK * 6 + BLOCK, HEAD * (2 + 4)),
        # All 10 tokens fit into one chunk.
        ({"chunk_tokens": 512}, 10 * (WORDS + WIDTH) * 4 + BLOCK, HEAD * 4),
    ],
)
def test_working_memory_by_hand(changes: dict[str, object], values: int, weight: int) -> None:
    settings = {"matmul_dtype": torch.float32, "weight_dtype": torch.float32, "on_cpu": True, "chunk_tokens": 8}
    hidden_gradient = 10 * WIDTH * 4
    assert working_bytes(10, WIDTH, WORDS, **(settings | changes)) == values + weight + hidden_gradient


def test_working_memory_of_a_large_vocabulary_and_of_the_default_chunk() -> None:
    for words in (2**20, 3 * 2**17):  # more than half of 2^19, so one token makes a block
        mixed = working_bytes(3, 1, words, **MIXED, **HALF, on_cpu=True, weight_grad=False)
        assert mixed == 3 * (words + 1) * 6 + words * 4 + words * 4 + 3 * 4
    plain = working_bytes(600, 2, 5, matmul_dtype=torch.float64, weight_dtype=torch.float64, on_cpu=True)
    assert plain == 512 * (5 + 2) * 8 + 512 * 5 * 8 + 5 * 2 * 8 + 600 * 2 * 8


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"temperature": 0.0}, "temperature must be > 0, got 0.0"),
        ({"temperature": 1.0, "chunk_tokens": 0}, "chunk_tokens must be >= 1, got 0"),
    ],
)
def test_settings_outside_their_range_are_refused(settings: dict[str, float], message: str) -> None:
    hidden, weight, _, targets = head(2, 3, 6, torch.float32)
    with pytest.raises(ValueError, match=message):
        completion_logprobs(hidden, weight, None, targets, **settings)
