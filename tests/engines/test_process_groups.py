"""vLLM's process groups within those of a run: which ones are made, and that none of the run's is destroyed.

vLLM's own functions make and destroy them; in place of an engine is what its worker does with groups.
"""

import gc
import os
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import distributed
from torch.testing._internal.distributed.fake_pg import FakeStore

from asymgrpo_app.rollout import vllm_engine
from asymgrpo_app.rollout.vllm_engine import VLLMEngine, VLLMEngineConfig
from asymgrpo_app.rollout.vllm_groups import making_groups

NEW_GROUP = distributed.new_group
GPU = torch.device("cuda", 0)


@contextmanager
def world(rank: int, size: int, bound: torch.device | None = None) -> Iterator[None]:
    """The default group of a run of `size` processes, as one of them has it; its exchanges give nothing."""
    distributed.init_process_group("fake", rank=rank, world_size=size, store=FakeStore())
    distributed.group.WORLD.bound_device_id = bound
    try:
        yield
    finally:
        distributed.destroy_process_group()


@pytest.fixture
def made(monkeypatch: pytest.MonkeyPatch) -> list[tuple[tuple[int, ...], str]]:
    """The groups that are made: their ranks and their backend, in order. Each is one of the world's own kind."""
    from vllm.distributed import parallel_state
    from vllm.distributed.device_communicators.shm_broadcast import MessageQueue

    groups: list[tuple[tuple[int, ...], str]] = []

    def new_group(ranks, backend=None, timeout=None):
        groups.append((tuple(ranks), str(backend)))
        return NEW_GROUP(ranks, backend="fake")

    monkeypatch.setattr(distributed, "new_group", new_group)
    # What exchanges something as soon as a group is there.
    monkeypatch.setattr(parallel_state, "_node_count", lambda group: 1)
    monkeypatch.setattr(MessageQueue, "create_from_process_group", lambda *_: None)
    monkeypatch.setattr(
        parallel_state, "resolve_obj_by_qualname", lambda name: lambda **_: SimpleNamespace(destroy=int)
    )
    return groups


@pytest.fixture
def splits(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Communicators that are split, each an exchange between all ranks of the run."""
    found: list[int] = []

    def split_source(group):
        found.append(group.rank())

    monkeypatch.setattr(distributed.distributed_c10d, "_get_split_source", split_source)
    return found


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without the search for garbage at the end of each engine: nothing here has any."""
    monkeypatch.setattr(gc, "collect", lambda *_: 0)


@cache
def configured(tensor_parallel_size: int) -> Any:
    """vLLM's configuration of an engine without a model."""
    from vllm.config import ParallelConfig, VllmConfig

    return VllmConfig(parallel_config=ParallelConfig(tensor_parallel_size=tensor_parallel_size))


def start(rank: int, tensor_parallel_size: int, model: str = "policy", address: str = "env://") -> None:
    """What the worker of an engine does with process groups, within what ours does around it."""
    from vllm.config import set_current_vllm_config
    from vllm.distributed.parallel_state import ensure_model_parallel_initialized, init_distributed_environment

    with making_groups(model, tensor_parallel_size), set_current_vllm_config(configured(tensor_parallel_size)):
        init_distributed_environment(tensor_parallel_size, rank, address, 0, _backend())
        ensure_model_parallel_initialized(tensor_parallel_size, 1)


def _backend() -> str:
    """A GPU's backend where groups are made up, else the one that is there."""
    return "nccl" if distributed.new_group is not NEW_GROUP else "gloo"


def close() -> None:
    """End an engine, whose core does with groups what vLLM's does."""
    from vllm.distributed import cleanup_dist_env_and_memory

    core = SimpleNamespace(shutdown=cleanup_dist_env_and_memory)
    engine = object.__new__(VLLMEngine)
    engine._llm = SimpleNamespace(llm_engine=SimpleNamespace(engine_core=core))
    engine.close()
    engine.close()  # a second time does no harm


@pytest.mark.parametrize(("size", "together"), [(s, t) for s in (2, 4, 8, 16) for t in (1, 2, 4) if t <= s])
def test_all_ranks_make_the_same_groups_in_the_same_order_without_a_split(size, together, made, splits):
    from vllm.distributed.parallel_state import get_dp_group, get_tp_group

    sequences = []
    for rank in range(size):
        made.clear()
        with world(rank, size, bound=GPU):
            start(rank, together)
            sequences.append(list(made))
            first = rank // together * together
            assert get_tp_group().ranks == list(range(first, first + together))
            assert get_dp_group().ranks == [rank]  # groups know nothing of each other
            assert distributed.group.WORLD.bound_device_id == GPU
            close()
            start(rank, together)  # as after a failure, on this rank alone
            assert made == sequences[-1]
            close()
    assert all(sequence == sequences[0] for sequence in sequences)
    assert set(sequences[0]) >= {(tuple(range(size)), "nccl"), (tuple(range(size)), "gloo")}
    assert splits == []


def test_groups_are_made_again_for_another_kind_of_engine_and_for_another_run(made):
    from vllm.distributed.parallel_state import get_tp_group

    with world(1, 4):
        start(1, 1)
        close()
        alone, (run, _) = len(made), made[:2]
        start(1, 2)
        assert get_tp_group().ranks == [0, 1]
        close()
        again = made[alone:]
        assert run not in again  # the group of all ranks is still there
        assert ((0, 1), "gloo") in again
        start(1, 2, model="another")
        assert made[alone:] == again * 2
        close()
    made.clear()
    with world(2, 4):
        start(2, 2)
        assert get_tp_group().ranks == [2, 3]
        assert made[0] == ((0, 1, 2, 3), "nccl")
        close()


def test_the_end_of_an_engine_leaves_the_exchanges_of_the_run():
    distributed.init_process_group("gloo", rank=0, world_size=1, store=distributed.HashStore())
    try:
        start(0, 1)
        close()
        said: list = [None]
        distributed.all_gather_object(said, "there")
        assert said == ["there"]
    finally:
        distributed.destroy_process_group()


def test_without_a_group_of_a_run_vllm_destroys_its_own():
    start(0, 1, address="file:///proc/self/fd/" + str(os.memfd_create("meeting")))
    assert distributed.is_initialized()
    start(0, 1)
    close()
    assert not distributed.is_initialized()


@pytest.mark.parametrize("gpu", [None, 3])
def test_ranks_that_share_a_model_need_no_variable_of_a_launcher(gpu, made, monkeypatch):
    from vllm.v1.executor.uniproc_executor import ExecutorWithExternalLauncher, UniProcExecutor

    for executor in (UniProcExecutor, ExecutorWithExternalLauncher):
        monkeypatch.setattr(executor, "_distributed_args", executor._distributed_args)
    for name in ("RANK", "LOCAL_RANK", "WORLD_SIZE"):
        monkeypatch.delenv(name, raising=False)
    vllm_engine._work_in_this_process()
    monkeypatch.setattr(torch.cuda, "is_available", lambda: gpu is not None)
    monkeypatch.setattr(torch.cuda, "current_device", lambda: gpu)
    with world(5, 8):
        assert ExecutorWithExternalLauncher._distributed_args(None) == ("env://", 5, gpu or 0)
        options = vllm_engine._in_process(VLLMEngineConfig(tensor_parallel_size=2))
    assert options == {"tensor_parallel_size": 2, "distributed_executor_backend": "external_launcher"}
