"""Settings that libraries read from the environment when they are imported. Imports nothing heavy itself."""

import os


def quiet_environment() -> None:
    """Set defaults that reduce the messages, memory and trust of libraries; the user's own settings are kept."""
    for name, value in {
        "TORCH_CPP_LOG_LEVEL": "ERROR",  # vLLM's notes on memory binding
        "TOKENIZERS_PARALLELISM": "false",  # or the tokenizers warn about every fork
        "VLLM_NO_USAGE_STATS": "1",
        "VLLM_LOGGING_LEVEL": "ERROR",
        "HF_HUB_DISABLE_TELEMETRY": "1",
        "PYTHONSAFEPATH": "1",  # or the processes that libraries start look for modules in the working directory first
        "JSONARGPARSE_DEPRECATION_WARNINGS": "off",  # Lightning's calls, not ours
        # oneDNN caches the code of each matrix product, 0.7 MiB each, and each micro-batch has a shape of its own: the
        # default of 1,024 takes more memory than many a policy. A micro-batch has 20 kinds, used in every layer.
        "ONEDNN_PRIMITIVE_CACHE_CAPACITY": "128",
    }.items():
        os.environ.setdefault(name, value)
