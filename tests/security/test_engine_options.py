"""`rollout.engine.extra` takes no option by which a server would be opened, load code or log what is sampled."""

import pytest

from asymgrpo_app.errors import UserError
from asymgrpo_app.rollout.engine_options import check_extra

REFUSED = [
    *["host", "port", "uds", "api_key", "middleware", "root_path", "config", "headless", "grpc", "grpc_port"],
    *["ssl_keyfile", "ssl_certfile", "ssl_ca_certs", "ssl_cert_reqs", "ssl_ciphers", "enable_ssl_refresh"],
    *["allowed_origins", "allowed_methods", "allowed_headers", "allow_credentials", "allowed_local_media_path"],
    *["allowed_media_domains", "api_server_count", "data_parallel_address", "data_parallel_rpc_port", "master_addr"],
    *["master_port", "nnodes", "node_rank", "data_parallel_size", "enable_elastic_ep", "fault_tolerance_config"],
    *["kv_transfer_config", "kv_events_config", "ec_transfer_config", "weight_transfer_config", "tool_server"],
    *["otlp_traces_endpoint", "h11_max_header_count", "h11_max_incomplete_event_size", "enable_offline_docs"],
    *["worker_cls", "worker_extension_cls", "scheduler_cls", "tool_parser_plugin", "reasoning_parser_plugin"],
    *["io_processor_plugin", "logits_processors", "model_class_overrides", "trust_remote_code", "lora_modules"],
    *["trust_request_chat_template", "log_config_file", "logging_config", "profiler_config", "chat_template"],
    *["enable_log_requests", "enable_log_outputs", "enable_log_deltas", "max_log_len", "log_error_stack"],
    *["disable_uvicorn_access_log", "disable_access_log_for_endpoints", "uvicorn_log_level", "tokens_only"],
    *["model", "dtype", "max_model_len", "load_format", "skip_tokenizer_init", "logprobs_mode", "max_num_seqs"],
]
FINE = [
    *["block_size", "num_gpu_blocks_override", "max_num_batched_tokens", "enable_chunked_prefill", "quantization"],
    *["kv_cache_dtype", "compilation_config", "hf_overrides", "attention_backend", "seed", "revision", "tokenizer"],
    *["enable_expert_parallel", "swap_space", "speculative_config", "cpu_offload_gb", "async_scheduling", "log_level"],
    *["no_enable_prefix_caching", "disable_log_stats", "config_format", "enable_logging_iteration_details"],
]


@pytest.mark.parametrize("name", REFUSED)
def test_an_option_is_refused_also_negated(name):
    with pytest.raises(UserError) as caught:
        check_extra(["block_size", name])
    assert str(caught.value) == f"rollout.engine.extra may not set {name}: training and serve decide that."
    with pytest.raises(UserError):
        check_extra([f"no_{name}"])


@pytest.mark.parametrize(
    "name", ["", "-", "--host", "ho-st", "max-model-len", "Host", "a b", "host=1", "a.b", "no-x", "O3"]
)
def test_what_is_no_name_is_refused(name):
    with pytest.raises(UserError, match="is no name of a vLLM option, such as block_size"):
        check_extra([name])


def test_options_of_the_engine_are_taken():
    check_extra(FINE)


@pytest.mark.long
def test_every_option_of_the_installed_vllm_about_the_network_is_refused(vllm_options):
    words = ("host", "port", "ssl", "addr", "url", "endpoint", "domain", "key", "http", "socket", "plugin", "cors")
    taken = []
    for name in vllm_options:
        if any(word in name.split("_") for word in words):
            try:
                check_extra([name])
                taken.append(name)
            except UserError:
                pass
    assert taken == []


@pytest.fixture(scope="module")
def vllm_options():
    """Names of all options of vLLM's server."""
    pytest.importorskip("vllm")
    from vllm.entrypoints.launchers.cli_args import make_arg_parser
    from vllm.utils.argparse_utils import FlexibleArgumentParser

    names = {action.dest for action in make_arg_parser(FlexibleArgumentParser())._actions}
    assert len(names) > 200
    return sorted(names)
