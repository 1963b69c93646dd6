"""What is asleep and what is awake when weights are pushed and completions are sampled.

vLLM's own executor, GPU worker and allocator, with the CPU's memory in place of a GPU's: what is put to sleep is filled
with NaN.
"""

import ctypes
import gc
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from asymgrpo_app.rollout import vllm_engine
from asymgrpo_app.rollout.vllm_engine import VLLMEngine, VLLMEngineConfig
from tests.support.engine_contract import SETTINGS

SIZE = 64


class Memory:
    """A GPU's memory under vLLM's allocator: a tensor for each tag, and what happens to it, in order."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        from vllm.device_allocator import AllocationData, cumem, sleep_mode_backend

        self.events: list[str] = []
        self.tensors = {
            tag: torch.full((SIZE,), 1.0 + place)
            for place, tag in enumerate(("weights", "kv_cache", "workspace", "runtime", "cudagraph"))
        }
        self.allocator = cumem.CuMemAllocator()
        for tag, tensor in self.tensors.items():
            handle = (0, tensor.nbytes, tensor.data_ptr(), 0)
            self.allocator.pointer_to_data[tensor.data_ptr()] = AllocationData(handle, tag)
        monkeypatch.setattr(cumem, "unmap_and_release", lambda handle: self._filled(handle, "sleep"))
        monkeypatch.setattr(cumem, "create_and_map", lambda handle: self._filled(handle, "wake"))
        monkeypatch.setattr(cumem, "libcudart", SimpleNamespace(cudaMemcpy=ctypes.memmove))
        monkeypatch.setattr(cumem, "PIN_MEMORY", False)
        monkeypatch.setattr("vllm.device_allocator.get_mem_allocator_instance", lambda: self.allocator)
        assert sleep_mode_backend.CuMemBackend.preserves_communicators()

    def _filled(self, handle: tuple[int, int, int, int], event: str) -> None:
        ctypes.memset(handle[2], 0xFF, handle[1])  # NaN, until somebody writes to it
        (tag,) = [tag for tag, tensor in self.tensors.items() if tensor.data_ptr() == handle[2]]
        self.events.append(f"{event} {tag}")

    def asleep(self) -> set[str]:
        return {data.tag for data in self.allocator.pointer_to_data.values() if data.is_asleep}


class Model(nn.Module):
    """A model whose weights lie in vLLM's pool for them, and a buffer beside them, like a rotary embedding's."""

    def __init__(self, memory: Memory) -> None:
        super().__init__()
        pool = memory.tensors["weights"]
        self.weight = nn.Parameter(pool[: SIZE // 2], requires_grad=False)
        self.register_buffer("rotary", pool[SIZE // 2 :])


def worker_of(memory: Memory, monkeypatch: pytest.MonkeyPatch) -> Any:
    """vLLM's GPU worker, whose model runner notes when it gets weights."""
    from vllm.v1.worker.gpu_worker import Worker

    model = Model(memory)

    def reload_weights(weights_iterator: Any) -> None:
        assert memory.asleep() <= {"kv_cache"}
        for _, weight in weights_iterator:
            model.weight.copy_(weight)
        memory.events.append("push")

    options = SimpleNamespace(
        sleep_mode_backend="cumem", enable_nccl_comm_suspend=False, sleep_preserve_parameter_names=[]
    )
    worker = object.__new__(Worker)
    worker.__dict__.update(
        vllm_config=SimpleNamespace(model_config=options),
        model_config=options,
        model_runner=SimpleNamespace(model=model, get_model=lambda: model, reload_weights=reload_weights),
        get_draft_model=lambda: None,
        synchronize_device=lambda: None,
        _sleep_mode_backend=None,
        _sleep_saved_buffers={},
        _sleep_saved_parameters={},
        _sleep_saved_draft_buffers={},
    )
    monkeypatch.setattr("vllm.v1.worker.gpu_worker.set_current_vllm_config", lambda config: torch.no_grad())
    monkeypatch.setattr(torch.accelerator, "synchronize", lambda: None)
    monkeypatch.setattr(torch.accelerator, "empty_cache", lambda: None)
    monkeypatch.setattr(torch.accelerator, "get_memory_info", lambda: (0, 0))
    monkeypatch.setattr(torch.cuda, "empty_cache", lambda: None)
    return worker


@pytest.fixture
def started(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Starts our engine at a level of sleep, above vLLM's executor and worker; returns it and its memory."""
    from vllm.v1.executor.uniproc_executor import UniProcExecutor

    monkeypatch.setattr(gc, "collect", lambda *_: 0)  # which takes most of the time
    memory = Memory(monkeypatch)
    executor = object.__new__(UniProcExecutor)
    executor.driver_worker, executor.sleeping_tags = worker_of(memory, monkeypatch), set()

    def sample(*_: Any, **__: Any) -> list:
        assert memory.asleep() == set()
        assert not executor.is_sleeping
        memory.events.append("sample")
        return []

    llm = SimpleNamespace(
        sleep=executor.sleep,
        wake_up=executor.wake_up,
        collective_rpc=executor.collective_rpc,
        reset_prefix_cache=lambda: True,
        generate=sample,
    )
    monkeypatch.setattr(vllm_engine, "import_vllm", lambda: SimpleNamespace(LLM=lambda **_: llm))

    def start(level: int) -> tuple[VLLMEngine, Memory]:
        return VLLMEngine("", VLLMEngineConfig(sleep_level=level), "bfloat16", 32), memory

    return start


def push(engine: VLLMEngine, value: float) -> None:
    engine.load_weights([("weight", torch.full((SIZE // 2,), value))])


def state(memory: Memory) -> tuple[float, float]:
    """The weight and the buffer as they are now."""
    values: Tensor = memory.tensors["weights"]
    return float(values[0]), float(values[-1])


def test_at_level_2_weights_wake_and_are_pushed_before_the_cache_wakes(started):
    engine, memory = started(2)
    assert not engine.keeps_weights
    for value in (5.0, 6.0):
        memory.events.clear()
        push(engine, value)
        pushed = list(memory.events)
        assert state(memory) == (value, 1.0)  # the buffer is as it was, too
        engine.generate([], SETTINGS)
        assert memory.asleep() == set(memory.tensors)
        assert memory.tensors["weights"].isnan().all()
        assert memory.tensors["kv_cache"].isnan().all()
        if value == 6.0:  # it slept before
            assert pushed == ["wake weights", "wake workspace", "wake runtime", "wake cudagraph", "push"]
            assert memory.events[len(pushed) :][:2] == ["wake kv_cache", "sample"]
    push(engine, 7.0)
    assert float(memory.tensors["runtime"][0]) == 4.0  # kept on the CPU at every level
    assert float(memory.tensors["cudagraph"][0]) == 5.0


def test_at_level_1_weights_come_back_from_the_cpu_and_the_cache_does_not(started):
    engine, memory = started(1)
    assert engine.keeps_weights
    push(engine, 5.0)
    engine.generate([], SETTINGS)
    assert memory.tensors["weights"].isnan().all()
    memory.events.clear()
    engine.generate([], SETTINGS)  # without a push, as in an evaluation
    assert [event for event in memory.events if event.split()[0] in ("wake", "sample", "push")] == [
        *["wake weights", "wake kv_cache", "wake workspace", "wake runtime", "wake cudagraph", "sample"]
    ]
    engine._wake("weights")
    assert state(memory) == (5.0, 1.0)


def test_at_level_0_nothing_sleeps(started):
    engine, memory = started(0)
    push(engine, 5.0)
    engine.generate([], SETTINGS)
    assert memory.events == ["push", "sample"]
