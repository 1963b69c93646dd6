"""The estimate of a run's memory against what a process really takes."""

import json
import os
import subprocess
import sys
from dataclasses import asdict
from functools import partial

import pytest
import torch

from asymgrpo_app.checks.memory import (
    TOLERANCE,
    MemoryEstimate,
    MemorySettings,
    estimate_memory,
    largest_micro_batch,
    memory_lines,
    optimizer_copies,
    works_on_all,
)
from asymgrpo_app.policy.loading import load_config
from asymgrpo_app.policy.lora import LoRAConfig
from tests.support.small_models import small_config

GIB = 2**30


def settings(**changes) -> MemorySettings:
    options = {
        "precision": "32-true",
        "attention": "sdpa",
        "gradient_checkpointing": False,
        "micro_batch_tokens": 16384,
        "max_prompt_tokens": 64,
        "max_completion_tokens": 64,
        "group_size": 8,
        "completions_per_update": 1024,
        "optimizer_copies": 2,
        "reference": False,
        "sampler_dtype": None,
        "sampler_cache": 0,
    }
    return MemorySettings(**(options | changes))


# The largest micro-batch of the settings, forward and backward, twice; memory above what was there before.
MEASURE = """
import json, sys, psutil, torch
from dataclasses import replace
from asymgrpo_app.policy.lora import LoRAConfig, add_adapters, hold_in_bfloat16
from asymgrpo_app.checks.memory import MemorySettings, largest_micro_batch
from asymgrpo_app.policy.loading import load_config, load_policy, token_logprobs
torch.set_num_threads(1)
path, given = sys.argv[1], json.loads(sys.argv[2])
settings = MemorySettings(**(given | {"lora": given["lora"] and LoRAConfig(**given["lora"])}))
policy = load_policy(path, settings.attention).train()
if settings.lora:
    add_adapters(policy, settings.lora, path)
    if settings.precision == "bf16-mixed":
        hold_in_bfloat16(policy)
if settings.gradient_checkpointing:
    policy.gradient_checkpointing_enable({"use_reentrant": False})
def update(settings):
    batch = largest_micro_batch(load_config(path), settings)
    with torch.autocast("cpu", torch.bfloat16, enabled=settings.precision == "bf16-mixed"):
        token_logprobs(policy, batch, temperature=1.0)[0].sum().backward()
update(replace(settings, micro_batch_tokens=200))  # the libraries' own memory; gradients are there from here on
before = psutil.Process().memory_info().rss
for _ in range(2):
    update(settings)
# Not `ru_maxrss`, in which a process that was started by a larger one begins with that one's size.
(peak,) = [line for line in open("/proc/self/status") if line.startswith("VmHWM")]
print(int(peak.split()[1]) * 1024 - before)
"""


@pytest.fixture(scope="module")
def policy_path(request) -> str:
    return str(request.config.rootpath / "data/countdown_base")


@pytest.mark.parametrize(
    "changes",
    [
        {"micro_batch_tokens": 4096},
        pytest.param({"micro_batch_tokens": 8192}, marks=pytest.mark.long),
        pytest.param({"precision": "bf16-mixed", "micro_batch_tokens": 8192}, marks=pytest.mark.long),
        pytest.param({"attention": "eager", "micro_batch_tokens": 4096}, marks=pytest.mark.long),
        pytest.param(
            {"gradient_checkpointing": True, "micro_batch_tokens": 16384, "completions_per_update": 2048},
            marks=pytest.mark.long,
        ),
        pytest.param({"lora": LoRAConfig(rank=16), "micro_batch_tokens": 8192}, marks=pytest.mark.long),
        pytest.param(
            {"lora": LoRAConfig(rank=16), "precision": "bf16-mixed", "micro_batch_tokens": 8192}, marks=pytest.mark.long
        ),
    ],
)
def test_activations_are_as_estimated(policy_path, changes, request):
    chosen = settings(**changes)
    command = [sys.executable, "-c", MEASURE, policy_path, json.dumps(asdict(chosen))]
    # Every block for itself: what the C library loses between them in so small a model is no part of the estimate.
    environment = {**os.environ, "GLIBC_TUNABLES": "glibc.malloc.mmap_threshold=65536", "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        command, cwd=request.config.rootpath, env=environment, capture_output=True, text=True, check=True
    )
    measured = int(done.stdout)
    parts = estimate_memory(load_config(policy_path), chosen).parts
    estimated = parts["activations"] + parts["temporary buffers"]
    assert measured > 0.2 * GIB  # large enough to tell from what else a process does
    assert measured == pytest.approx(estimated, rel=TOLERANCE)


def test_parts_follow_the_settings():
    config = small_config("llama")
    weights = 4 * (97 * 48 * 2 + 48 + 3 * (48 * 48 * 2 + 48 * 24 * 2 + 3 * 48 * 64 + 2 * 48))
    plain = estimate_memory(config, settings()).parts
    assert plain["weights"] == plain["gradients"] == weights
    assert plain["optimizer"] == 2 * weights
    assert plain["reference"] == plain["sampler's weights"] == plain["sampler's cache"] == 0
    full = estimate_memory(
        config, settings(reference=True, sampler_dtype="bfloat16", sampler_cache=GIB, optimizer_copies=1)
    ).parts
    assert full["optimizer"] == full["reference"] == weights
    assert full["sampler's weights"] == weights / 2
    assert full["sampler's cache"] == GIB
    exchanged = estimate_memory(config, settings(ddp=True)).parts
    assert exchanged["DDP buckets"] == weights
    assert exchanged | {"DDP buckets": 0} == plain
    # Activations grow with the tokens of a micro-batch and hardly exist where they are computed again.
    small = estimate_memory(config, settings(micro_batch_tokens=4096)).parts["activations"]
    assert plain["activations"] / small == pytest.approx(4, rel=0.1)
    recomputed = estimate_memory(config, settings(gradient_checkpointing=True)).parts["activations"]
    assert recomputed < 0.2 * plain["activations"]


def test_adapters_leave_frozen_weights_without_gradients_and_optimizer_state():
    config = small_config("llama")
    layer = 48 * 48 * 2 + 48 * 24 * 2 + 3 * 48 * 64  # linear weights of a layer
    other = 97 * 48 * 2 + 48 + 3 * 2 * 48  # embedding, head and norms
    adapters = 3 * 4 * (4 * 48 * 2 + 2 * (24 - 48) + 3 * (48 + 64))  # in + out of each, times the rank
    lora = LoRAConfig(rank=4)
    full = estimate_memory(config, settings(lora=lora, sampler_dtype="float32")).parts
    assert full["weights"] == 4 * (3 * layer + other + adapters)
    assert full["gradients"] == 4 * adapters
    assert full["optimizer"] == 2 * 4 * adapters
    assert full["sampler's weights"] == 4 * (3 * layer + other)
    mixed = estimate_memory(config, settings(lora=lora, precision="bf16-mixed")).parts
    head = 97 * 48
    assert mixed["weights"] == 2 * (3 * layer + head) + 4 * (other - head + adapters)
    assert mixed["gradients"] == 4 * adapters


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
def test_the_largest_micro_batch_fills_the_budget(policy_path, attention):
    batch = largest_micro_batch(load_config(policy_path), settings(attention=attention, micro_batch_tokens=1000))
    assert 1000 - 128 < batch.input_ids.numel() <= 1000


def test_a_run_that_does_not_fit_gets_a_warning():
    parts = {"weights": 3 * GIB, "activations": GIB, "reference": 0}
    fits, too_much = MemoryEstimate(parts, 5 * GIB), MemoryEstimate(parts, 4 * GIB)
    assert fits.lines() == ["Memory, estimated: 4.0 of 5.0 GiB (weights 3.00, activations 1.00)."]
    assert too_much.lines()[0] == "Memory, estimated: 4.0 of 4.0 GiB (weights 3.00, activations 1.00)."
    assert too_much.lines()[1].startswith("WARNING: this run is likely to run out of memory: lower model.micro_batch_")


def test_an_architecture_that_cannot_be_looked_at_stops_nothing():
    config = small_config("llama")
    config.num_attention_heads = 5  # does not divide what it should
    del config.num_hidden_layers
    (line,) = memory_lines(config, settings())
    assert line.startswith("Memory is not estimated for architecture llama: ")


@pytest.mark.parametrize(
    ("optimizer", "copies"),
    [
        (torch.optim.AdamW, 2),
        (partial(torch.optim.AdamW, amsgrad=True), 3),
        (partial(torch.optim.SGD, lr=1.0), 0),
        (partial(torch.optim.SGD, lr=1.0, momentum=0.9), 1),
        (torch.optim.Adafactor, 0),
    ],
)
def test_copies_that_an_optimizer_keeps(optimizer, copies):
    assert optimizer_copies(optimizer) == copies


@pytest.mark.parametrize(
    ("optimizer", "on_cpu", "on_gpu"),
    [
        (torch.optim.AdamW, False, True),
        (partial(torch.optim.AdamW, fused=True), False, False),
        (partial(torch.optim.AdamW, foreach=False), False, False),
        (partial(torch.optim.AdamW, foreach=True), True, True),
        (torch.optim.NAdam, False, True),
        (partial(torch.optim.SGD, lr=1.0), False, False),
        (torch.optim.Adafactor, False, False),
    ],
)
def test_optimizers_that_hold_one_more_copy_in_their_step(optimizer, on_cpu, on_gpu):
    assert works_on_all(optimizer, on_gpu=False) == on_cpu
    assert works_on_all(optimizer, on_gpu=True) == on_gpu


def test_the_optimizers_step_counts_where_it_holds_more_than_a_pass():
    config = small_config("llama")
    few = {"max_prompt_tokens": 1, "max_completion_tokens": 1, "micro_batch_tokens": 2}
    plain = estimate_memory(config, settings(**few)).parts
    assert plain["activations"] + plain["temporary buffers"] < plain["weights"]
    more = estimate_memory(config, settings(**few, optimizer_works_on_all=True)).parts
    assert more["activations"] + more["temporary buffers"] == plain["weights"]


def test_transformers_as_the_sampler_has_weights_and_a_cache_of_its_own():
    config = small_config("llama")  # 3 layers, 2 key heads of 12
    for device in ("cpu", "cuda"):
        own = settings(sampler_dtype="bfloat16", sampler_tokens=5000, device=device)
        parts = estimate_memory(config, own, available=GIB).parts
        assert parts["sampler's weights"] == parts["weights"] / 2
        assert parts["sampler's cache"] == 0  # gone before the update begins, which takes more
        many = settings(sampler_dtype="bfloat16", sampler_tokens=10**6, device=device)
        parts = estimate_memory(config, many, available=GIB).parts
        assert parts["sampler's cache"] == 2 * 3 * 2 * 12 * 10**6 * 2
        assert parts["activations"] == parts["gradients"] == 0


def test_a_sampler_that_sleeps_does_not_add_to_the_update():
    config = small_config("llama")
    options = {"sampler_dtype": "bfloat16", "device": "cuda"}
    awake = estimate_memory(config, settings(sampler_cache=GIB, **options), available=GIB)
    state = sum(awake.parts[name] for name in ("weights", "optimizer"))
    sleeping = {"sampler_cache": GIB, "sampler_sleeps": True, "ddp": True}
    asleep = estimate_memory(config, settings(**sleeping, **options), available=GIB)
    assert asleep.total == GIB + state + awake.parts["gradients"]  # sampling takes the more; DDP's copy stays
    small = estimate_memory(config, settings(sampler_cache=10, sampler_sleeps=True, **options), available=GIB)
    assert small.total == awake.total - GIB
