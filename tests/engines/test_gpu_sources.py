"""What this package takes for granted of vLLM's code for GPUs, which is in the CPU's package, too.

Most is read from the sources; what needs them imported is among the long tests.
"""

import ast
import inspect
from functools import cache
from importlib.util import find_spec
from pathlib import Path

import pytest


@cache
def tree(path: str) -> ast.Module:
    """A source file of vLLM, which is not imported."""
    spec = find_spec("vllm")
    assert spec is not None
    assert spec.origin is not None
    return ast.parse((Path(spec.origin).parent / path).read_text())


def node(path: str, *names: str) -> ast.ClassDef | ast.FunctionDef:
    """A class, a function, or a method of a class."""
    found: ast.Module | ast.ClassDef | ast.FunctionDef = tree(path)
    for name in names:
        (found,) = [
            child for child in found.body if isinstance(child, ast.ClassDef | ast.FunctionDef) and child.name == name
        ]
    assert not isinstance(found, ast.Module)
    return found


def calls(path: str, *names: str) -> list[str]:
    """What a function calls, in order, by its last name."""
    walked = sorted(
        (child for child in ast.walk(node(path, *names)) if isinstance(child, ast.Call)),
        key=lambda call: (call.end_lineno, call.end_col_offset),
    )
    return [ast.unparse(call.func).rpartition(".")[2] for call in walked]


def parameters(path: str, *names: str) -> list[str]:
    function = node(path, *names)
    assert isinstance(function, ast.FunctionDef)
    return [argument.arg for argument in function.args.args]


def test_a_worker_reloads_under_its_own_configuration():
    assert calls("v1/worker/gpu_worker.py", "Worker", "reload_weights") == [
        "set_current_vllm_config",
        "reload_weights",
    ]
    assert "reload_weights" not in ast.unparse(node("v1/worker/cpu_worker.py", "CPUWorker"))  # it inherits that
    for path in ("v1/worker/gpu_model_runner.py", "v1/worker/gpu/model_runner.py"):
        assert parameters(path, "GPUModelRunner", "reload_weights")[:2] == ["self", "weights_iterator"]


def test_sleep_and_wake_up_take_a_level_and_tags():
    for name, argument in (("sleep", "level"), ("wake_up", "tags")):
        for path, kind in (("v1/worker/gpu_worker.py", "Worker"), ("v1/executor/abstract.py", "Executor")):
            assert parameters(path, kind, name) == ["self", argument]
        assert parameters("entrypoints/llm.py", "LLM", name)[:2] == ["self", argument]
    tags = [
        ast.literal_eval(child.value)
        for child in tree("device_allocator/__init__.py").body
        if isinstance(child, ast.AnnAssign) and ast.unparse(child.target) == "DEFERRABLE_TAGS"
    ]
    assert tags == [("weights", "kv_cache")]


def test_an_engine_that_ends_destroys_vllms_groups_and_the_default_group():
    assert "cleanup_dist_env_and_memory" in calls("v1/engine/core.py", "EngineCore", "shutdown")
    path = "distributed/parallel_state.py"
    ended = calls(path, "cleanup_dist_env_and_memory")
    assert {"destroy_model_parallel", "destroy_distributed_environment"} <= set(ended)
    assert "destroy_process_group" in calls(path, "destroy_distributed_environment")
    assert "destroy_process_group" not in calls(path, "destroy_model_parallel")


def test_vllms_groups_are_the_globals_that_are_forgotten():
    from asymgrpo_app.rollout.vllm_groups import _GROUPS

    path = "distributed/parallel_state.py"
    named = {
        name
        for function in ("destroy_model_parallel", "destroy_distributed_environment")
        for child in ast.walk(node(path, function))
        if isinstance(child, ast.Global)
        for name in child.names
    }
    assert named == set(_GROUPS)


def test_the_worker_of_an_executor_is_placed_by_one_method():
    path = "v1/executor/uniproc_executor.py"
    for kind in ("UniProcExecutor", "ExecutorWithExternalLauncher"):
        assert parameters(path, kind, "_distributed_args") == ["self"]
    assert "_distributed_args" in calls(path, "UniProcExecutor", "_init_executor")
    assert "os.environ['RANK']" in ast.unparse(node(path, "ExecutorWithExternalLauncher"))


def test_several_groups_that_share_a_model_are_no_job_of_vllms_unless_it_is_told():
    text = ast.unparse(node("distributed/parallel_state.py", "initialize_model_parallel"))
    assert "torch.arange(world_size).reshape(-1, data_parallel_size, pipeline_model_parallel_size" in text


def test_the_share_must_be_free_at_the_start_whatever_the_size_of_the_cache():
    checked = node("v1/worker/utils.py", "request_memory")
    assert "init_snapshot.free_memory < requested_memory" in ast.unparse(checked)
    assert "kv_cache_memory_bytes" not in ast.unparse(checked)
    started = node("v1/worker/gpu_worker.py", "Worker", "init_device")
    assert "request_memory" in calls("v1/worker/gpu_worker.py", "Worker", "init_device")
    assert "kv_cache_memory_bytes" not in ast.unparse(started)


def test_linear_layers_are_repacked_on_cpu_and_xpu_alone():
    method = node("model_executor/layers/linear.py", "UnquantizedLinearMethod", "process_weights_after_loading")
    (branch,) = [child for child in method.body if isinstance(child, ast.If)]
    assert ast.unparse(branch.test) == "current_platform.is_cpu()"
    (other,) = branch.orelse
    assert isinstance(other, ast.If)
    assert ast.unparse(other.test) == "current_platform.is_xpu()"
    assert other.orelse == []


def test_a_head_in_float32_multiplies_with_the_weight_that_the_digest_reads():
    text = ast.unparse(node("model_executor/layers/logits_processor.py", "LogitsProcessor", "_apply_head"))
    assert "torch.mm(flat, lm_head.weight.t(), out_dtype=self.head_dtype)" in text  # on CUDA, without a copy of it
    assert "lm_head.weight.to(self.head_dtype)" in text


@pytest.mark.long
def test_the_gpus_modules_import_without_a_gpu_and_have_what_is_used():
    from vllm.device_allocator.cumem import CuMemAllocator
    from vllm.device_allocator.sleep_mode_backend import CuMemBackend
    from vllm.distributed.weight_transfer.ipc_engine import IPCWeightTransferEngine
    from vllm.distributed.weight_transfer.nccl_common import NCCLWeightTransferInitInfo
    from vllm.distributed.weight_transfer.nccl_engine import NCCLTrainerInitInfo, NCCLWeightTransferEngine
    from vllm.v1.executor.uniproc_executor import UniProcExecutor
    from vllm.v1.worker.gpu.model_runner import GPUModelRunner as RunnerV2
    from vllm.v1.worker.gpu.sample.sampler import Sampler
    from vllm.v1.worker.gpu_model_runner import GPUModelRunner as RunnerV1
    from vllm.v1.worker.gpu_worker import Worker

    for runner in (RunnerV1, RunnerV2):
        assert "weights_iterator" in inspect.signature(runner.reload_weights).parameters
        assert inspect.signature(runner.get_model).parameters.keys() == {"self"}
    assert issubclass(Worker, object)
    assert {"level"} <= inspect.signature(Worker.sleep).parameters.keys()
    assert {"tags"} <= inspect.signature(Worker.wake_up).parameters.keys()
    assert "offload_tags" in inspect.signature(CuMemAllocator.sleep).parameters
    assert CuMemBackend.preserves_communicators()
    assert UniProcExecutor.supports_async_scheduling()
    transfer = inspect.signature(NCCLTrainerInitInfo).parameters
    assert {"master_address", "master_port", "world_size", "packed"} <= transfer.keys()
    meeting = inspect.signature(NCCLWeightTransferInitInfo).parameters
    assert {"master_address", "master_port", "rank_offset", "world_size"} <= meeting.keys()
    for engine in (NCCLWeightTransferEngine, IPCWeightTransferEngine):
        assert callable(engine.start_weight_update)
    assert "logprobs_mode" in inspect.signature(Sampler.__init__).parameters
