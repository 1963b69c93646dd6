"""The in-process vLLM engine: seeds, limits, and weights that really arrive."""

import os
import sys
from functools import partial
from types import SimpleNamespace

import pytest
import torch

from asymgrpo_app.errors import UserError
from asymgrpo_app.policy.loading import named_weights
from asymgrpo_app.rollout import vllm_engine
from asymgrpo_app.rollout.server.launch import server_arguments
from asymgrpo_app.rollout.types import SampleRequest
from asymgrpo_app.rollout.vllm_engine import VLLMEngineConfig, engine_arguments
from tests.support.engine_contract import BASE, SETTINGS, EngineContract, gaps, load_policy
from tests.support.shared_engine import ROOM, SHARED


class TestVLLMEngine(EngineContract):
    room = ROOM

    @pytest.fixture(scope="class")
    @classmethod
    def engine(cls, policy):
        engine = SHARED.get()
        engine.load_weights(named_weights(policy))
        return engine


def test_a_group_computes_the_whole_blocks_of_its_prompt_once(engine, monkeypatch):
    """By vLLM's own count, and each completion still has the log-probabilities that transformers gives."""
    from vllm import LLM

    policy = load_policy()
    engine.load_weights(named_weights(policy))
    generate, cached = LLM.generate, []

    def counted(*arguments, **named):
        outputs = generate(*arguments, **named)
        cached.extend(output.num_cached_tokens for output in outputs)
        return outputs

    monkeypatch.setattr(LLM, "generate", counted)
    prompts = [[2 + (3 * place + first) % 14 for place in range(40)] for first in (0, 1)]
    requests = [SampleRequest(prompt, seed) for prompt in prompts for seed in range(4)]
    completions = engine.generate(requests, SETTINGS)
    assert sorted(cached) == [0, 0] + [32] * 6
    assert gaps(policy, requests, completions) < 1e-4
    assert engine.generate(requests[::-1], SETTINGS)[::-1] == completions
    engine.load_weights(named_weights(policy))
    cached.clear()
    engine.generate(requests[:4], SETTINGS)
    assert sorted(cached) == [0, 32, 32, 32]  # nothing is left of the time before the push


def test_the_block_of_the_cache_is_small_on_cpu_and_the_users_word_stands(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert engine_arguments(BASE, VLLMEngineConfig(), "float32", 32)["block_size"] == 32
    own = VLLMEngineConfig(extra={"block_size": 64})
    assert engine_arguments(BASE, own, "float32", 32)["block_size"] == 64


@pytest.mark.parametrize("gpu", [True, False])
def test_graphs_and_the_share_of_a_gpu_are_as_said_or_those_of_the_place(gpu, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: gpu)
    made = partial(engine_arguments, BASE, dtype="bfloat16", max_model_len=32)
    assert made(VLLMEngineConfig())["enforce_eager"] is not gpu
    assert made(VLLMEngineConfig(enforce_eager=True))["enforce_eager"] is True
    assert made(VLLMEngineConfig(enforce_eager=False))["enforce_eager"] is not gpu  # a CPU has no graphs
    served = server_arguments(BASE, VLLMEngineConfig(), "bfloat16", 32)
    chosen = server_arguments(BASE, VLLMEngineConfig(gpu_memory_utilization=0.7), "bfloat16", 32)
    shares = [given.get("gpu_memory_utilization") for given in (made(VLLMEngineConfig()), served, chosen)]
    assert shares == ([0.4, 0.9, 0.7] if gpu else [None] * 3)


def test_a_sampler_of_16_bits_has_logits_of_32():
    def head(dtype, **extra):
        return engine_arguments(BASE, VLLMEngineConfig(extra=extra), dtype, 32).get("hf_overrides")

    assert head("bfloat16") == {"head_dtype": "float32"}
    assert head("float32") is None
    assert head("float16", hf_overrides={"rope_theta": 1.0}) == {"head_dtype": "float32", "rope_theta": 1.0}
    assert head("bfloat16", hf_overrides={"head_dtype": "model"}) == {"head_dtype": "model"}


def test_kernels_that_do_not_mind_the_batch_are_asked_for_before_vllm_is_imported(monkeypatch):
    monkeypatch.setattr(vllm_engine.os, "environ", {**os.environ})
    vllm_engine.os.environ.pop("VLLM_BATCH_INVARIANT", None)
    wanted = VLLMEngineConfig(batch_invariant=True)
    assert vllm_engine.invariance_environment(wanted) == {"VLLM_BATCH_INVARIANT": "1"}
    assert vllm_engine.invariance_environment(VLLMEngineConfig()) == {}
    monkeypatch.setitem(sys.modules, "vllm", SimpleNamespace(LLM=None))
    with pytest.raises(UserError, match="batch_invariant is true, but this process has imported vLLM without it"):
        vllm_engine.choose_kernels(wanted)
    vllm_engine.os.environ["VLLM_BATCH_INVARIANT"] = "1"
    vllm_engine.choose_kernels(wanted)
    monkeypatch.delitem(sys.modules, "vllm")
    vllm_engine.os.environ.pop("VLLM_BATCH_INVARIANT")
    vllm_engine.choose_kernels(wanted)
    assert vllm_engine.os.environ["VLLM_BATCH_INVARIANT"] == "1"
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda: (7, 5))
    with pytest.raises(UserError, match=r"from compute capability 8.0 on, and this GPU has 7.5: leave it out"):
        vllm_engine.check_in_process(wanted, 1, on_gpu=True)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda: (8, 0))
    vllm_engine.check_in_process(wanted, 1, on_gpu=True)
    vllm_engine.check_in_process(VLLMEngineConfig(), 1, on_gpu=False)


def test_weights_are_reloaded_under_vllms_configuration(engine, monkeypatch):
    """As its own worker does it, whose layers may ask for it."""
    from vllm.config import get_current_vllm_config_or_none
    from vllm.v1.worker.gpu_model_runner import GPUModelRunner

    reload, known = GPUModelRunner.reload_weights, []

    def noted(runner, **named):
        known.append(get_current_vllm_config_or_none() is not None)
        reload(runner, **named)

    monkeypatch.setattr(GPUModelRunner, "reload_weights", noted)
    engine.load_weights(named_weights(load_policy()))
    assert known == [True]


@pytest.mark.parametrize("gpu", [None, 0, 3])
def test_the_worker_is_on_the_gpu_of_its_own_rank(gpu, monkeypatch):
    from vllm.v1.executor.uniproc_executor import UniProcExecutor

    monkeypatch.setattr(UniProcExecutor, "_distributed_args", UniProcExecutor._distributed_args)
    vllm_engine._work_in_this_process()
    monkeypatch.setattr(torch.cuda, "is_available", lambda: gpu is not None)
    monkeypatch.setattr(torch.cuda, "current_device", lambda: gpu)
    _, rank, device = UniProcExecutor._distributed_args(None)
    assert (rank, device) == (0, gpu or 0)
