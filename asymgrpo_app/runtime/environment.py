"""Settings that libraries read from the environment when they are imported. Imports nothing heavy itself."""

import os
import socket
import tempfile
from pathlib import Path

SOCKETS_VARIABLE = "VLLM_RPC_BASE_PATH"  # vLLM's folder of the sockets between its processes

SAFE_PATH = "PYTHONSAFEPATH", "asymgrpo"
"""Keeps the processes that libraries start from importing what lies in the working directory. Any value does; this one
tells it from a user's own."""

_LONGEST_BASE = 46  # a socket's path has at most 107 bytes: this, our folder's name, and vLLM's 36 characters


def cache_folder() -> Path:
    """The folder of what is kept between runs: `$ASYMGRPO_CACHE`, or `~/.cache/asymgrpo`."""
    return Path(os.environ.get("ASYMGRPO_CACHE") or "~/.cache/asymgrpo").expanduser().absolute()


def private_folder() -> str:
    """A new folder for temporary files and sockets, for its owner alone; its path is short enough for sockets."""
    base = tempfile.gettempdir()
    return tempfile.mkdtemp(prefix="asymgrpo-vllm-", dir=base if len(os.fsencode(base)) <= _LONGEST_BASE else "/tmp")


def stay_on_loopback(nodes: int = 1) -> None:
    """Have Gloo and vLLM's processes listen on the loopback alone if all of them are on one machine.

    They choose the address that the machine's name stands for, and take whoever connects. What the user set is kept.

    Args:
        nodes: Number of machines by the config.
    """
    counted = [nodes, *(int(os.environ.get(name) or 1) for name in ("GROUP_WORLD_SIZE", "SLURM_JOB_NUM_NODES"))]
    if max(counted) > 1 or "lo" not in (name for _, name in socket.if_nameindex()):
        return
    os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo")
    os.environ.setdefault("VLLM_HOST_IP", "127.0.0.1")


def quiet_environment() -> None:
    """Set defaults that reduce the messages and memory of libraries; the user's own settings are kept."""
    for name, value in {
        "TORCH_CPP_LOG_LEVEL": "ERROR",  # vLLM's notes on memory binding
        "TOKENIZERS_PARALLELISM": "false",  # or the tokenizers warn about every fork
        "VLLM_NO_USAGE_STATS": "1",
        "VLLM_LOGGING_LEVEL": "ERROR",
        "HF_HUB_DISABLE_TELEMETRY": "1",
        "HF_HUB_DISABLE_PROGRESS_BARS": "1",  # transformers' as well: "Loading weights" for every model file
        "TRANSFORMERS_VERBOSITY": "error",
        "JSONARGPARSE_DEPRECATION_WARNINGS": "off",  # Lightning's calls, not ours
        # oneDNN caches the code of each matrix product, 0.7 MiB each, and each micro-batch has a shape of its own: the
        # default of 1,024 takes more memory than many a policy. A micro-batch has 20 kinds, used in every layer.
        "ONEDNN_PRIMITIVE_CACHE_CAPACITY": "128",
    }.items():
        os.environ.setdefault(name, value)
