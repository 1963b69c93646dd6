"""The command line and the environment of a sampler server."""

import json
import os
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from asymgrpo_app.rollout.server.auth import INFO_VARIABLE, TOKEN_VARIABLE
from asymgrpo_app.rollout.server.worker import WEIGHTS_VARIABLE
from asymgrpo_app.rollout.vllm_engine import VLLMEngineConfig, engine_arguments


def server_arguments(
    model: str, config: VLLMEngineConfig, dtype: str, max_model_len: int, *, nccl: bool = False
) -> dict[str, Any]:
    """Options of vLLM's server for training.

    Args:
        model: Folder or hub id whose architecture is served; weights come from the run.
        config: Engine options.
        dtype: The resolved compute type.
        max_model_len: Longest prompt plus completion in tokens.
        nccl: Whether weights come over NCCL and not through a folder.
    """
    arguments = engine_arguments(model, config, dtype, max_model_len)
    if nccl:
        arguments["weight_transfer_config"] = {"backend": "nccl"}
    return arguments | {
        "tensor_parallel_size": config.tensor_parallel_size,
        "worker_extension_cls": "asymgrpo_app.rollout.server.worker.SamplerWorker",
        "middleware": "asymgrpo_app.rollout.server.auth.TokenMiddleware",
        "enable_scale_out": True,  # the route that takes and gives tokens
        "disable_uvicorn_access_log": True,
    }


def server_command(arguments: Mapping[str, Any], host: str, port: int) -> list[str]:
    """Command line of the server's program with its options."""
    command = [sys.executable, "-m", "asymgrpo_app.rollout.server.process", "--host", host, "--port", str(port)]
    for name, value in arguments.items():
        option = name.replace("_", "-")
        if isinstance(value, bool):
            command.append(f"--{option}" if value else f"--no-{option}")
        else:
            command += [f"--{option}", json.dumps(value) if isinstance(value, dict | list) else str(value)]
    return command


def server_environment(arguments: Mapping[str, Any], token: str, weights_folder: Path | None) -> dict[str, str]:
    """Environment variables of the server, added to those of this process."""
    added = {
        TOKEN_VARIABLE: token,
        INFO_VARIABLE: json.dumps({name: arguments[name] for name in ("max_model_len", "dtype")}),
        WEIGHTS_VARIABLE: str(weights_folder.absolute()) if weights_folder else "",
        "VLLM_SERVER_DEV_MODE": "1",  # the routes that load weights
        "VLLM_ENABLE_V1_MULTIPROCESSING": "1",  # an engine in this process would have turned it off
        "VLLM_NO_USAGE_STATS": "1",
        "VLLM_LOGGING_LEVEL": os.environ.get("VLLM_LOGGING_LEVEL", "WARNING"),
    }
    if not torch.cuda.is_available():
        added["TORCH_COMPILE_DISABLE"] = "1"  # the little that vLLM compiles on CPU needs a C++ compiler
    return added
