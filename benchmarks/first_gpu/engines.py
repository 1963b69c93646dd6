"""Checks of vLLM in the training process: weights, sleep, CUDA graphs, batch invariance."""

from importlib.util import find_spec
from pathlib import Path
from time import perf_counter
from typing import Any

import torch

from benchmarks.first_gpu.outcome import Check, Outcome

POLICY = Path(__file__).resolve().parents[2] / "data/countdown_base"


def _engine(device: str, **options: Any) -> tuple[Any, Any]:
    """An engine of the quick start's policy, and the policy."""
    from asymgrpo_app.policy.loading import load_policy
    from asymgrpo_app.rollout.vllm_engine import VLLMEngine, VLLMEngineConfig

    policy = load_policy(str(POLICY), "sdpa").to(device)
    config = VLLMEngineConfig(**{"max_num_seqs": 64, "kv_cache_gib": 0.25, "gpu_memory_utilization": 0.3} | options)
    return VLLMEngine(str(POLICY), config, "bfloat16" if device == "cuda" else "float32", 64), policy


def _push(engine: Any, policy: Any, version: int) -> bool:
    """Push the policy's weights; returns whether their digest is read back."""
    from asymgrpo_app.parallel.sharding import whole_weights
    from asymgrpo_app.policy.loading import linear_weights
    from asymgrpo_app.rollout.digest import RunningDigest

    dtype = torch.bfloat16 if next(policy.parameters()).is_cuda else torch.float32
    passed = RunningDigest(*linear_weights(policy), dtype, version)
    engine.load_weights(passed.of(whole_weights(policy)))
    return bool(engine.digest(version) == passed.digest)


def _sampled(engine: Any, number: int = 32) -> list[list[int]]:
    from asymgrpo_app.rollout.types import SampleRequest, SamplingSettings

    requests = [SampleRequest([3 + index % 7, 4, 5, 6 + index % 5], index) for index in range(number)]
    return [done.token_ids for done in engine.generate(requests, SamplingSettings(1.0, 24, ()))]


def sleep(device: str) -> Outcome:
    """At each sleep level: push, sample, push other weights, push the first again: the first tokens come back."""
    if find_spec("vllm") is None:
        return Outcome(None, "vLLM is not installed")
    rows = [
        "| sleep level | digests read back | first weights' tokens come back | seconds of a push |",
        "|---|---|---|---|",
    ]
    good = True
    for level in (0, 1, 2) if device == "cuda" else (0,):
        engine, policy = _engine(device, sleep_level=level)
        digests = [_push(engine, policy, 1)]
        first = _sampled(engine)
        if level == 2:
            digests.append(_push(engine, policy, 2))
        again = _sampled(engine)
        with torch.no_grad():
            kept = [weight.clone() for weight in policy.parameters()]
            for weight in policy.parameters():
                weight.add_(torch.randn_like(weight) * 0.05)
        digests.append(_push(engine, policy, 3))
        other = _sampled(engine)
        with torch.no_grad():
            for weight, old in zip(policy.parameters(), kept, strict=True):
                weight.copy_(old)
        begun = perf_counter()
        digests.append(_push(engine, policy, 4))
        seconds = perf_counter() - begun
        back = _sampled(engine)
        engine.close()
        same = first == again == back and other != first
        good &= same and all(digests)
        rows.append(f"| {level} | {sum(digests)} of {len(digests)} | {same} | {seconds:.2f} |")
    return Outcome(good, "see the table", rows)


def invariance(device: str) -> Outcome:
    """With `batch_invariant`, completions do not depend on what else is sampled."""
    if find_spec("vllm") is None:
        return Outcome(None, "vLLM is not installed")
    if device == "cpu" or torch.cuda.get_device_capability() < (9, 0):
        return Outcome(None, "vLLM offers it from compute capability 9.0 on")
    engine, policy = _engine(device, batch_invariant=True)
    _push(engine, policy, 1)
    many, few = _sampled(engine, 64), _sampled(engine, 3)
    engine.close()
    return Outcome(many[:3] == few, f"three completions sampled alone and among 64: {many[:3] == few}")


def graphs(device: str) -> Outcome:
    """Tokens a second with and without CUDA graphs, for the 0.5B shape."""
    if find_spec("vllm") is None:
        return Outcome(None, "vLLM is not installed")
    import tempfile

    from asymgrpo_app.policy.loading import load_policy
    from asymgrpo_app.rollout.types import SampleRequest, SamplingSettings
    from asymgrpo_app.rollout.vllm_engine import VLLMEngine, VLLMEngineConfig
    from benchmarks.step import write_random_model

    if device == "cpu":
        return Outcome(None, "a CPU has no CUDA graphs")
    speeds = {}
    with tempfile.TemporaryDirectory() as folder:
        write_random_model("0.5B", Path(folder))
        policy = load_policy(folder, "sdpa").to(device)
        for eager in (True, False):
            config = VLLMEngineConfig(enforce_eager=eager, gpu_memory_utilization=0.5)
            engine = VLLMEngine(folder, config, "bfloat16", 512)
            _push(engine, policy, 1)
            requests = [SampleRequest([5, 6, 7, 8], seed) for seed in range(256)]
            engine.generate(requests[:8], SamplingSettings(1.0, 16, ()))
            begun = perf_counter()
            done = engine.generate(requests, SamplingSettings(1.0, 256, ()))
            speeds[eager] = sum(len(one.token_ids) for one in done) / (perf_counter() - begun)
            engine.close()
    ratio = speeds[False] / speeds[True]
    return Outcome(
        ratio > 1,
        f"{speeds[False]:,.0f} tokens a second with CUDA graphs, {speeds[True]:,.0f} without: {ratio:.2f} times",
    )


CHECKS = {
    "sleep": Check("sampler weights, digests and sleep levels 0, 1, 2 make round trips", sleep, 180.0),
    "graphs": Check("CUDA graphs make sampling faster", graphs, 150.0),
    "invariance": Check("completions do not depend on their batch with batch_invariant", invariance),
}
