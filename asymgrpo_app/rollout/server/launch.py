"""The command line and the environment of a sampler server."""

import json
import os
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from asymgrpo_app.policy.loading import vocabulary_size
from asymgrpo_app.rollout.server.auth import TOKEN_VARIABLE
from asymgrpo_app.rollout.server.gate import INFO_VARIABLE, TOKEN_FILE_VARIABLE, ServerInfo
from asymgrpo_app.rollout.server.worker import WEIGHTS_VARIABLE
from asymgrpo_app.rollout.vllm_engine import SERVER_SHARE, VLLMEngineConfig, engine_arguments


def server_arguments(
    model: str,
    config: VLLMEngineConfig,
    dtype: str,
    max_model_len: int,
    *,
    nccl: bool = False,
    tls: tuple[str, str] | None = None,
) -> dict[str, Any]:
    """Options of vLLM's server for training.

    Args:
        model: Folder or hub id whose architecture is served; weights come from the run.
        config: Engine options.
        dtype: The resolved compute type.
        max_model_len: Longest prompt plus completion in tokens.
        nccl: Whether weights come over NCCL and not through a folder.
        tls: Files of the certificate and of its key; None: http.
    """
    arguments = engine_arguments(model, config, dtype, max_model_len, SERVER_SHARE)
    if nccl:
        arguments["weight_transfer_config"] = {"backend": "nccl"}
    if tls is not None:
        arguments["ssl_certfile"], arguments["ssl_keyfile"] = tls
    return arguments | {
        "tensor_parallel_size": config.tensor_parallel_size,
        "worker_extension_cls": "asymgrpo_app.rollout.server.worker.SamplerWorker",
        "middleware": "asymgrpo_app.rollout.server.gate.Gate",
        "enable_scale_out": True,  # the route that takes and gives tokens
        "disable_uvicorn_access_log": True,
        "h11_max_incomplete_event_size": 64 * 1024,  # of headers that have not ended
    }


def server_command(arguments: Mapping[str, Any], host: str, port: int) -> list[str]:
    """Command line of the server's program with its options. The last of two equal ones counts: the address."""
    command = [sys.executable, "-m", "asymgrpo_app.rollout.server.process"]
    for name, value in {**arguments, "host": host, "port": port}.items():
        option = name.replace("_", "-")
        if isinstance(value, bool):
            command.append(f"--{option}" if value else f"--no-{option}")
        else:
            # In one word, so that no value can be another option.
            command.append(f"--{option}={json.dumps(value) if isinstance(value, dict | list) else value}")
    return command


def server_environment(
    arguments: Mapping[str, Any],
    token: str,
    token_file: str | None,
    weights_folder: Path | None,
    nccl_address: str | None,
) -> dict[str, str]:
    """Environment variables of the server, added to those of this process.

    Args:
        arguments: Its options.
        token: The token, for a server without a file of it.
        token_file: File with the token, which the server reads again when it changes.
        weights_folder: Folder that weights come through.
        nccl_address: Address of the run that weights come from over NCCL.
    """
    info = ServerInfo(
        max_model_len=arguments["max_model_len"],
        dtype=arguments["dtype"],
        vocabulary=vocabulary_size(arguments["model"]),
        nccl_address=nccl_address,
    )
    added = {
        TOKEN_VARIABLE: "" if token_file else token,
        TOKEN_FILE_VARIABLE: str(Path(token_file).absolute()) if token_file else "",
        INFO_VARIABLE: info.model_dump_json(),
        WEIGHTS_VARIABLE: str(weights_folder.absolute()) if weights_folder else "",
        "VLLM_SERVER_DEV_MODE": "1",  # the routes that load weights
        "VLLM_ENABLE_V1_MULTIPROCESSING": "1",  # an engine in this process would have turned it off
        "VLLM_NO_USAGE_STATS": "1",
        "VLLM_LOGGING_LEVEL": os.environ.get("VLLM_LOGGING_LEVEL", "WARNING"),
    }
    if not torch.cuda.is_available():
        added["TORCH_COMPILE_DISABLE"] = "1"  # the little that vLLM compiles on CPU needs a C++ compiler
    return added
