"""The passes over logits in place, as pure functions, and compiled."""

import pytest
import torch

from asymgrpo_app.policy import head_passes
from asymgrpo_app.policy.head_passes import FusedPasses, Gradients, InPlacePasses, missing_compiler

TEMPERATURE = 0.7


@pytest.fixture(autouse=True)
def fresh(monkeypatch):
    monkeypatch.setattr(FusedPasses, "usable", None)
    head_passes.fused.cache_clear()
    torch.compiler.reset()


def logits_of(num_tokens: int, words: int) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(num_tokens)
    logits = 5 * torch.randn(num_tokens, words, generator=generator)
    return logits, torch.randint(0, words, (num_tokens,), generator=generator)


def agree(fused: FusedPasses, num_tokens: int, dtype: torch.dtype, *, entropy: bool, exact: bool) -> None:
    """Both forms on the same logits; `exact`: to the last bit."""
    near = {"rtol": 0.0, "atol": 0.0} if exact else {"rtol": 1e-5, "atol": 1e-5}
    plain = InPlacePasses(TEMPERATURE, None, block=3)
    logits, targets = logits_of(num_tokens, 501)
    expected = plain.statistics(logits.clone(), targets)
    for actual, wanted in zip(fused.statistics(logits.clone(), targets), expected, strict=True):
        torch.testing.assert_close(actual, wanted, **near)
    by_entropy = torch.linspace(-1, 1, num_tokens) if entropy else None
    given = Gradients(targets, expected[1], expected[2], torch.linspace(-2, 3, num_tokens), by_entropy)
    outs = torch.empty(2, num_tokens, 501, dtype=dtype)
    plain.gradient(logits.clone(), given, outs[0], None)
    fused.gradient(logits, given, outs[1], None)
    rounded = 0.0 if dtype == torch.float32 else 2**-8
    torch.testing.assert_close(outs[1], outs[0], rtol=max(near["rtol"], rounded), atol=near["atol"])


def of(backend: str) -> FusedPasses:
    return FusedPasses(torch.full((1,), TEMPERATURE), InPlacePasses(TEMPERATURE, None, block=3), backend)


@pytest.mark.parametrize("entropy", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_functions_that_are_compiled_say_the_same(entropy, dtype, monkeypatch):
    monkeypatch.setattr(head_passes, "fused", lambda function, backend: function)
    for num_tokens in (1, 5, 7):
        agree(of("none"), num_tokens, dtype, entropy=entropy, exact=False)
    assert FusedPasses.usable is None


@pytest.mark.long
@pytest.mark.parametrize("backend", ["aot_eager", "inductor"])
@pytest.mark.parametrize("entropy", [False, True])
def test_compiled_for_all_numbers_of_tokens_they_say_the_same(backend, entropy):
    fused = of(backend)
    for num_tokens in (64, 7, 33):
        agree(fused, num_tokens, torch.bfloat16, entropy=entropy, exact=False)
    assert FusedPasses.usable is None  # nothing was left to the fallback


def test_a_kernel_that_cannot_be_made_is_said_once_and_replaced(monkeypatch, capsys):
    def broken(*arguments):
        raise RuntimeError("no Python.h")

    monkeypatch.setattr(head_passes, "fused", lambda function, backend: broken)
    fused = of("none")
    for dtype in (torch.float32, torch.bfloat16):
        agree(fused, 5, dtype, entropy=True, exact=True)
    said = "not fused, and the update takes longer: RuntimeError: no Python.h"
    assert capsys.readouterr().out.count(said) == 1
    assert not FusedPasses.are_usable()


def test_too_little_memory_is_no_missing_compiler(monkeypatch):
    def full(*arguments):
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(head_passes, "fused", lambda function, backend: full)
    with pytest.raises(torch.OutOfMemoryError):
        of("none").statistics(*logits_of(2, 5))
    assert FusedPasses.usable is None


def test_what_is_missing_is_said_once(monkeypatch, capsys):
    monkeypatch.setattr(head_passes, "has_triton", lambda: True)
    monkeypatch.setenv("CC", "no-such-compiler")
    assert missing_compiler() == "there is no C compiler (no-such-compiler)"
    assert not FusedPasses.are_usable()
    assert not FusedPasses.are_usable()
    assert capsys.readouterr().out.count("there is no C compiler") == 1
    monkeypatch.setattr(head_passes, "has_triton", lambda: False)
    assert missing_compiler() == "Triton does not work here"
