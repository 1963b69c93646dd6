"""Settings that libraries read from the environment when they are imported. Imports nothing heavy itself."""

import os


def quiet_environment() -> None:
    """Less noise and memory from libraries; what the user's environment says stays."""
    for name, value in {
        "TORCH_CPP_LOG_LEVEL": "ERROR",  # vLLM's notes on memory binding
        "TOKENIZERS_PARALLELISM": "false",  # or the tokenizers warn about every fork
        "VLLM_NO_USAGE_STATS": "1",
        "VLLM_LOGGING_LEVEL": "ERROR",
        "HF_HUB_DISABLE_TELEMETRY": "1",
        "JSONARGPARSE_DEPRECATION_WARNINGS": "off",  # Lightning's calls, not ours
        # oneDNN keeps the code it made for a product of matrices, 0.7 MiB each, and each micro-batch has a shape of its
        # own: its 1,024 would be more than many a policy. A micro-batch uses each of its 20 kinds in every layer.
        "ONEDNN_PRIMITIVE_CACHE_CAPACITY": "128",
    }.items():
        os.environ.setdefault(name, value)
