"""Options of vLLM that `rollout.engine.extra` may not set.

As options of a server some would open it to the network past `asymgrpo serve`'s own checks, have it load code, or write
what is sampled to its log.
"""

import re
from collections.abc import Iterable
from fnmatch import fnmatchcase

from asymgrpo_app.errors import UserError

# What has a key here, what right training numbers need, and what decides where vLLM's workers are.
_DECIDED = """
    model dtype max_model_len max_num_seqs tensor_parallel_size kv_cache_memory_bytes enable_sleep_mode load_format
    skip_tokenizer_init logprobs_mode generation_config distributed_executor_backend weight_transfer_config
"""
_NETWORK = """
    host port uds grpc* api_key api_server_count root_path ssl_* enable_ssl_refresh allow_credentials allowed_* h11_*
    headless middleware data_parallel_* dp_* master_* nnodes node_rank *elastic_ep* *fault_tolerance* kv_transfer_config
    kv_events_config ec_transfer_config ec_manager_config kv_offloading_backend otlp_* collect_detailed_traces
    tool_server tokens_only enable_scale_out *offline_docs disable_fastapi_docs *tokenizer_info_endpoint
"""
_CODE = """
    config model_tag trust_* *_plugin *_cls logits_processors model_class_overrides model_loader_extra_config
    lora_modules default_mm_loras chat_template additional_config profiler_config log_config_file logging_config
"""
_LOGGING = "enable_log_* *access_log* max_log_len log_error_stack uvicorn_log_level help"
_REFUSED = f"{_DECIDED} {_NETWORK} {_CODE} {_LOGGING}".split()


def check_extra(names: Iterable[str]) -> None:
    """Refuse options that training or `asymgrpo serve` decides.

    Args:
        names: Keys of `rollout.engine.extra`.

    Raises:
        UserError: With the key.
    """
    for name in names:
        if not re.fullmatch("[a-z][a-z0-9_]*", name):
            raise UserError(f"rollout.engine.extra.{name} is no name of a vLLM option, such as block_size.")
        plain = name.removeprefix("no_")
        if any(fnmatchcase(plain, pattern) for pattern in _REFUSED):
            raise UserError(f"rollout.engine.extra may not set {name}: training and serve decide that.")
