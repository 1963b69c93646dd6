"""Settings that libraries read from the environment when they are imported. Imports nothing heavy itself."""

import os


def quiet_environment() -> None:
    """Settings that libraries read when they are imported; what the user's environment says stays."""
    for name, value in {
        "TORCH_CPP_LOG_LEVEL": "ERROR",  # vLLM's notes on memory binding
        "TOKENIZERS_PARALLELISM": "false",  # or the tokenizers warn about every fork
        "VLLM_NO_USAGE_STATS": "1",
        "VLLM_LOGGING_LEVEL": "ERROR",
        "HF_HUB_DISABLE_TELEMETRY": "1",
        "JSONARGPARSE_DEPRECATION_WARNINGS": "off",  # Lightning's calls, not ours
    }.items():
        os.environ.setdefault(name, value)
