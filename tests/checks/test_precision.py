"""bfloat16 on a CPU that has no kernels for it is said before the run starts, with the keys to set."""

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
    ("trainer", "sampler", "keys"),
    [
        ("bf16-mixed", {"rollout.engine.dtype": "auto"}, "trainer.precision: 32-true"),
        (
            "bf16-mixed",
            {"rollout.engine.dtype": "bfloat16"},
            "trainer.precision: 32-true and rollout.engine.dtype: auto",
        ),
        ("bf16-mixed", {}, "trainer.precision: 32-true"),
        ("32-true", {"rollout.engine.dtype": "bfloat16"}, "rollout.engine.dtype: auto"),
        ("32-true", {"rollout.transformers.dtype": "bfloat16"}, "rollout.transformers.dtype: auto"),
        ("32-true", {"rollout.engine.dtype": "auto"}, None),
    ],
)
def test_the_keys_that_ask_for_it_are_named(trainer, sampler, keys, monkeypatch):
    monkeypatch.setattr(precision, "calculates_bfloat16", lambda: False)
    expected = [] if keys is None else [f"{WARNING}{keys}."]
    assert bfloat16_lines(precision=trainer, sampler=sampler, device="cpu") == expected
    assert bfloat16_lines(precision=trainer, sampler=sampler, device="cuda") == []
    monkeypatch.setattr(precision, "calculates_bfloat16", lambda: True)
    assert bfloat16_lines(precision=trainer, sampler=sampler, device="cpu") == []


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
