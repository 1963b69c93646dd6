"""The estimate of a run's memory against what a process really takes."""

import json
import os
import subprocess
import sys
from functools import partial
from types import SimpleNamespace
from unittest.mock import Mock

import pytest
import torch
from lightning.pytorch.strategies import DDPStrategy, SingleDeviceStrategy

from asymgrpo_app.checks import memory
from asymgrpo_app.checks.activation_memory import optimizer_memory
from asymgrpo_app.checks.memory import TOLERANCE, Phases, check_share, largest_micro_batch, memory_lines, memory_phases
from asymgrpo_app.errors import UserError
from asymgrpo_app.parallel.strategy import FSDP2Strategy
from asymgrpo_app.policy.loading import load_config
from asymgrpo_app.policy.lora import LoRAConfig
from tests.support.small_models import small_config

GIB = 2**30
CPU = torch.device("cpu")
ENGINE = {
    "dtype": "bfloat16",
    "kv_cache_gib": 1,
    "gpu_memory_utilization": 0.5,
    "sleep_level": 0,
    "tensor_parallel_size": 1,
    "max_num_seqs": 256,
}


def estimate(
    config,
    *,
    strategy=SingleDeviceStrategy,
    device="cpu",
    processes=1,
    precision="32-true",
    prompts=128,
    lengths=(64, 64),
    sampler="server",
    engine=None,
    transformers=None,
    kl_coef=0.0,
    **model,
):
    """Parts of a run with these settings."""
    defaults = {"attention": "sdpa", "gradient_checkpointing": False, "micro_batch_tokens": 16384, "lora": None}
    module = SimpleNamespace(
        **(defaults | {"updates_per_step": 1, "make_optimizer": torch.optim.AdamW} | model),
        loss=SimpleNamespace(kl_coef=kl_coef),
    )
    trainer = SimpleNamespace(
        strategy=Mock(spec=strategy, root_device=torch.device(device)),
        precision=precision,
        world_size=processes,
        num_nodes=1,
    )
    data = SimpleNamespace(prompts_per_step=prompts, max_prompt_tokens=lengths[0])
    rollout = SimpleNamespace(
        group_size=8,
        max_completion_tokens=lengths[1],
        sampler=sampler,
        engine=SimpleNamespace(**(ENGINE | (engine or {}))),
        transformers=SimpleNamespace(**({"dtype": "bfloat16", "batch_tokens": 5000} | (transformers or {}))),
    )
    return memory_phases(config, module, data, trainer, rollout).largest()


# The largest micro-batch of the settings, forward and backward, twice; memory above what was there before.
MEASURE = """
import json, sys, psutil, torch
from dataclasses import replace
from asymgrpo_app.policy.lora import LoRAConfig, add_adapters, hold_in_bfloat16
from asymgrpo_app.checks.memory import largest_micro_batch
from asymgrpo_app.policy.loading import load_policy, packs, token_logprobs
torch.set_num_threads(1)
path, chosen = sys.argv[1], json.loads(sys.argv[2])
mixed = chosen.get("precision") == "bf16-mixed"
policy = load_policy(path, chosen.get("attention", "sdpa")).train()
if "rank" in chosen:
    add_adapters(policy, LoRAConfig(rank=chosen["rank"]), path)
    if mixed:
        hold_in_bfloat16(policy)
if chosen.get("gradient_checkpointing"):
    policy.gradient_checkpointing_enable({"use_reentrant": False})
def update(max_tokens):
    batch = largest_micro_batch((chosen.get("prompts", 128), 8), (64, 64), max_tokens, packed=packs(policy))
    batch = replace(batch, input_ids=torch.zeros_like(batch.input_ids))  # ids told prompts apart; the model lacks them
    with torch.autocast("cpu", torch.bfloat16, enabled=mixed):
        token_logprobs(policy, batch, temperature=1.0)[0].sum().backward()
update(200)  # the libraries' own memory; gradients are there from here on
before = psutil.Process().memory_info().rss
for _ in range(2):
    update(chosen["micro_batch_tokens"])
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
            {"gradient_checkpointing": True, "micro_batch_tokens": 16384, "prompts": 256}, marks=pytest.mark.long
        ),
        pytest.param({"rank": 16, "micro_batch_tokens": 8192}, marks=pytest.mark.long),
        pytest.param({"rank": 16, "precision": "bf16-mixed", "micro_batch_tokens": 8192}, marks=pytest.mark.long),
    ],
)
def test_activations_are_as_estimated(policy_path, changes, request):
    command = [sys.executable, "-c", MEASURE, policy_path, json.dumps(changes)]
    # Every block for itself: what the C library loses between them in so small a model is no part of the estimate.
    environment = {**os.environ, "GLIBC_TUNABLES": "glibc.malloc.mmap_threshold=65536", "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        command, cwd=request.config.rootpath, env=environment, capture_output=True, text=True, check=True
    )
    measured = int(done.stdout)
    settings = {key: value for key, value in changes.items() if key != "rank"}
    lora = LoRAConfig(rank=changes["rank"]) if "rank" in changes else None
    parts = estimate(load_config(policy_path), lora=lora, **settings)
    estimated = parts["activations"] + parts["temporary buffers"]
    assert measured > 0.2 * GIB  # large enough to tell from what else a process does
    assert measured == pytest.approx(estimated, rel=TOLERANCE)


def test_parts_follow_the_settings():
    config = small_config("llama")
    outside, layer = 97 * 48 * 2 + 48, 48 * 48 * 2 + 48 * 24 * 2 + 3 * 48 * 64 + 2 * 48
    weights = 4 * (outside + 3 * layer)
    plain = estimate(config)
    assert plain["weights"] == plain["gradients"] == weights
    assert plain["optimizer"] == 2 * weights
    assert plain["reference"] == plain["DDP buckets"] == plain["unsharded block"] == 0
    full = estimate(config, kl_coef=0.1, sampler="vllm", make_optimizer=partial(torch.optim.SGD, momentum=0.9))
    assert full["optimizer"] == full["reference"] == weights
    assert full["sampler's weights"] == weights / 2
    assert full["sampler's cache"] == GIB
    exchanged = estimate(config, strategy=DDPStrategy)
    assert exchanged["DDP buckets"] == weights
    assert exchanged | {"DDP buckets": 0} == plain
    sharded = estimate(config, strategy=FSDP2Strategy, processes=2, prompts=256)
    assert sharded["weights"] == sharded["optimizer"] / 2 == weights // 2
    assert sharded["gradients"] == weights + weights // 2
    assert sharded["unsharded block"] == 4 * (outside + layer)
    # Activations grow with the tokens of a micro-batch and hardly exist where they are computed again.
    small = estimate(config, micro_batch_tokens=4096)["activations"]
    assert plain["activations"] / small == pytest.approx(4, rel=0.1)
    assert estimate(config, gradient_checkpointing=True)["activations"] < 0.2 * plain["activations"]


def test_adapters_leave_frozen_weights_without_gradients_and_optimizer_state():
    config = small_config("llama")
    layer = 48 * 48 * 2 + 48 * 24 * 2 + 3 * 48 * 64  # linear weights of a layer
    other = 97 * 48 * 2 + 48 + 3 * 2 * 48  # embedding, head and norms
    adapters = 3 * 4 * (4 * 48 * 2 + 2 * (24 - 48) + 3 * (48 + 64))  # in + out of each, times the rank
    lora = LoRAConfig(rank=4)
    full = estimate(config, lora=lora, sampler="vllm", engine={"dtype": "float32"}, kl_coef=0.1)
    assert full["weights"] == 4 * (3 * layer + other + adapters)
    assert full["gradients"] == 4 * adapters
    assert full["optimizer"] == 2 * 4 * adapters
    assert full["sampler's weights"] == 4 * (3 * layer + other)
    assert full["reference"] == 0
    mixed = estimate(config, lora=lora, precision="bf16-mixed")
    head = 97 * 48
    assert mixed["weights"] == 2 * (3 * layer + head) + 4 * (other - head + adapters)
    assert mixed["gradients"] == 4 * adapters


@pytest.mark.parametrize("packed", [True, False])
def test_the_largest_micro_batch_fills_the_budget(packed):
    batch = largest_micro_batch((128, 8), (64, 64), 1000, packed=packed)
    assert 1000 - 128 < batch.input_ids.numel() <= 1000
    few = largest_micro_batch((1, 2), (64, 64), 1000, packed=packed)
    assert few.input_ids.numel() == (64 + 2 * 63 if packed else 2 * 128)


@pytest.mark.parametrize(("gib", "warned"), [(5, False), (4, True)])
def test_a_run_that_does_not_fit_gets_a_warning(gib, warned, monkeypatch, policy_path):
    parts = {"weights": 3 * GIB, "activations": GIB, "reference": 0}
    monkeypatch.setattr(memory, "memory_phases", lambda *given: Phases(parts, {}, {}, {}))
    monkeypatch.setattr(memory, "device_memory", lambda device: 2 * gib * GIB)
    trainer = SimpleNamespace(strategy=SimpleNamespace(root_device=CPU), world_size=4, num_nodes=2)
    line, *warning = memory_lines(SimpleNamespace(policy_path=policy_path), None, trainer, None)
    assert line == f"Memory, estimated: 4.0 of {gib}.0 GiB (weights 3.00, activations 1.00)."
    assert len(warning) == warned
    assert all(text.startswith("WARNING: this run is likely to run out of memory: lower model.") for text in warning)


def test_an_architecture_that_cannot_be_looked_at_stops_nothing(monkeypatch):
    config = small_config("llama")
    config.num_attention_heads = 5  # does not divide what it should
    del config.num_hidden_layers
    monkeypatch.setattr(memory, "load_config", lambda path: config)
    module = SimpleNamespace(policy_path="", attention="sdpa", lora=None)
    (line,) = memory_lines(module, None, SimpleNamespace(precision="32-true"), None)
    assert line.startswith("Memory is not estimated for architecture llama: ")


@pytest.mark.parametrize(
    ("optimizer", "kept", "in_step"),
    [
        (torch.optim.AdamW, 2, 0),
        (partial(torch.optim.AdamW, fused=True), 2, 0),
        (partial(torch.optim.AdamW, foreach=True), 2, 1),
        (partial(torch.optim.AdamW, amsgrad=True), 3, 0),
        (partial(torch.optim.SGD, lr=1.0), 0, 0),
        (partial(torch.optim.SGD, lr=1.0, momentum=0.9), 1, 0),
        (torch.optim.Adafactor, 0, 0),
    ],
)
def test_copies_that_an_optimizer_keeps_and_that_its_step_makes(optimizer, kept, in_step):
    assert optimizer_memory(optimizer, CPU) == (kept, in_step)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize(
    ("optimizer", "in_step"), [(torch.optim.AdamW, 1), (partial(torch.optim.AdamW, fused=True), 0)]
)
def test_an_optimizer_works_on_all_weights_at_once_on_a_gpu(optimizer, in_step):
    assert optimizer_memory(optimizer, torch.device("cuda")) == (2, in_step)


def test_the_optimizers_step_counts_where_it_holds_more_than_a_pass():
    config = small_config("llama")
    few = {"lengths": (1, 1), "micro_batch_tokens": 2}
    plain = estimate(config, **few)
    assert plain["activations"] + plain["temporary buffers"] < plain["weights"]
    more = estimate(config, **few, make_optimizer=partial(torch.optim.AdamW, foreach=True))
    assert more["activations"] + more["temporary buffers"] == plain["weights"]


def test_transformers_as_the_sampler_has_weights_and_a_cache_of_its_own():
    config = small_config("llama")  # 3 layers, 2 key heads of 12
    parts = estimate(config, sampler="transformers")
    assert parts["sampler's weights"] == parts["weights"] / 2
    assert "sampler's cache" not in parts  # gone before the update begins, which takes more
    parts = estimate(config, sampler="transformers", transformers={"batch_tokens": 10**6})
    assert parts["sampler's cache"] == 2 * 3 * 2 * 12 * 10**6 * 2
    assert not {"activations", "gradients"} & parts.keys()


def test_a_sampler_that_sleeps_does_not_add_to_the_update(monkeypatch):
    monkeypatch.setattr(memory, "device_memory", lambda device: 2 * GIB)
    monkeypatch.setattr(memory, "optimizer_memory", lambda make, device: (2, 0))
    run = partial(estimate, small_config("llama"), sampler="vllm", device="cuda")
    awake = run()
    assert awake["sampler's weights"] + awake["sampler's cache"] == GIB  # half of the GPU
    state = sum(awake[name] for name in ("weights", "optimizer"))
    asleep = run(engine={"sleep_level": 1}, strategy=DDPStrategy)
    assert sum(asleep.values()) == GIB + state + awake["gradients"]  # sampling takes the more; DDP's copy stays
    small = run(engine={"sleep_level": 1, "gpu_memory_utilization": 1e-9})
    assert sum(small.values()) == sum(awake.values()) - GIB


# 1.5 billion parameters on a GPU of 80 GB: 4 bytes of each at the start, 12 from the first update on.
HELD = {"weights": int(5.75 * GIB), "optimizer": int(11.5 * GIB), "DDP buckets": 0, "reference": 0}
WEIGHTS = int(2.9 * GIB)


def test_vllms_share_must_be_free_also_in_a_run_that_goes_on():
    check_share(HELD, WEIGHTS, 0.76, int(79.25 * GIB))
    with pytest.raises(UserError) as refused:
        check_share(HELD, WEIGHTS, 0.8, int(79.25 * GIB))
    assert str(refused.value) == (
        "rollout.engine.gpu_memory_utilization is 0.8, 63.4 of the GPU's 79.2 GiB, but while vLLM samples the policy "
        "holds 17.2 GiB from the first update on (5.8 before it), and CUDA about 1: set at most 0.76."
    )
    with pytest.raises(UserError, match=r"holds 23.0 GiB from the first update on \(11.5 before it\).*at most 0.69"):
        check_share(HELD | {"DDP buckets": HELD["weights"]}, WEIGHTS, 0.7, int(79.25 * GIB))
    with pytest.raises(UserError, match=r"CUDA about 1: spread it over GPUs \(trainer.strategy: fsdp2\), or sample on"):
        check_share(HELD, WEIGHTS, 0.3, 21 * GIB)
    with pytest.raises(UserError, match=r"is 0.03, 2.4 of the GPU's 79.2 GiB, but vLLM's weights alone take 2.9 GiB"):
        check_share(HELD, WEIGHTS, 0.03, int(79.25 * GIB))


def test_the_check_of_a_run_on_a_gpu_knows_its_share_and_its_cache(monkeypatch, policy_path):
    phases = Phases(HELD, {}, {"sampler's weights": WEIGHTS, "sampler's cache": 10 * GIB}, {"gradients": GIB})
    monkeypatch.setattr(memory, "memory_phases", lambda *given: phases)
    monkeypatch.setattr(memory, "device_memory", lambda device: 79 * GIB)
    trainer = SimpleNamespace(strategy=SimpleNamespace(root_device=torch.device("cuda")), precision="bf16-mixed")
    data = SimpleNamespace(max_prompt_tokens=512)
    module = SimpleNamespace(policy_path=policy_path)
    rollout = SimpleNamespace(sampler="vllm", engine=SimpleNamespace(**ENGINE), max_completion_tokens=4096)
    shape = load_config(policy_path)
    tokens = 10 * GIB // (2 * shape.num_hidden_layers * shape.num_key_value_heads * shape.head_dim * 2)
    lines = memory_lines(module, data, trainer, rollout)
    assert lines[1:] == [
        f"vLLM's cache holds at most {tokens:,} tokens, {tokens // 4608:,} sequences of full length at once "
        "(rollout.engine.max_num_seqs: 256)."
    ]
    rollout.engine.tensor_parallel_size = 2
    assert f"{2 * tokens:,} tokens" in memory_lines(module, data, trainer, rollout)[1]
    rollout.engine.gpu_memory_utilization = None
    memory_lines(module, data, trainer, rollout)  # 0.4
    rollout.engine.gpu_memory_utilization = 0.9
    with pytest.raises(UserError, match=r"gpu_memory_utilization is 0.9, 71.1 of the GPU's 79.0 GiB"):
        memory_lines(module, data, trainer, rollout)
