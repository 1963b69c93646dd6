"""bfloat16 on a CPU that has no kernels for it is said before the run starts, with the keys to set."""

from types import SimpleNamespace

import pytest
import torch

from asymgrpo_app.checks import precision
from asymgrpo_app.checks.precision import bfloat16_lines, calculates_bfloat16
from asymgrpo_app.cli import main

WARNING = "WARNING: this CPU is without AVX-512, and bfloat16 takes some 80 times as long as float32 on it: set "


@pytest.fixture
def machine(monkeypatch):
    def has(**capabilities):
        monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: capabilities)

    return has


@pytest.mark.parametrize(
    ("capabilities", "calculates"),
    [
        ({"architecture": "x86_64", "avx2": True, "avx512_bw": False}, False),
        ({"architecture": "x86_64", "avx2": True, "avx512_bw": True}, True),
        ({"architecture": "x86_64"}, False),
        ({"architecture": "aarch64"}, True),
        ({}, True),
    ],
)
def test_what_is_known_of_a_cpu(capabilities, calculates, machine):
    machine(**capabilities)
    assert calculates_bfloat16() == calculates


@pytest.mark.parametrize(
    ("trainer", "sampler", "dtype", "keys"),
    [
        ("bf16-mixed", "vllm", "auto", "trainer.precision: 32-true"),
        ("bf16-mixed", "vllm", "bfloat16", "trainer.precision: 32-true and rollout.engine.dtype: auto"),
        ("bf16-mixed", "server", "bfloat16", "trainer.precision: 32-true"),
        ("32-true", "vllm", "bfloat16", "rollout.engine.dtype: auto"),
        ("32-true", "transformers", "auto", "rollout.transformers.dtype: auto"),
        ("32-true", "vllm", "auto", None),
    ],
)
def test_the_keys_that_ask_for_it_are_named(trainer, sampler, dtype, keys, monkeypatch):
    monkeypatch.setattr(precision, "calculates_bfloat16", lambda: False)
    expected = [] if keys is None else [f"{WARNING}{keys}."]
    on_cpu, on_gpu = (
        SimpleNamespace(precision=trainer, strategy=SimpleNamespace(root_device=torch.device(device)))
        for device in ("cpu", "cuda")
    )
    options = {"engine": SimpleNamespace(dtype="bfloat16"), "transformers": SimpleNamespace(dtype="bfloat16")}
    rollout = SimpleNamespace(sampler=sampler, **(options | {"engine": SimpleNamespace(dtype=dtype)}))
    assert bfloat16_lines(on_cpu, rollout) == expected
    assert bfloat16_lines(on_gpu, rollout) == []
    monkeypatch.setattr(precision, "calculates_bfloat16", lambda: True)
    assert bfloat16_lines(on_cpu, rollout) == []


def test_a_dry_run_says_it(quickstart, machine, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    machine(architecture="x86_64", avx512_bw=False)
    check = ["check", *quickstart[1:], "--trainer.accelerator=cpu"]
    assert main([*check, "--trainer.precision=bf16-mixed"]) == 0
    assert f"{WARNING}trainer.precision: 32-true.\n" in capsys.readouterr().out
    own = ["--rollout.sampler=transformers", "--rollout.transformers.dtype=bfloat16"]
    assert main([*check, *own]) == 0
    assert f"{WARNING}rollout.transformers.dtype: auto.\n" in capsys.readouterr().out
    assert main(check) == 0
    assert "AVX-512" not in capsys.readouterr().out
