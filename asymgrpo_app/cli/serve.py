"""`asymgrpo serve`: a vLLM server that a run can sample from."""

import ipaddress
import os
import secrets
import socket
from argparse import ArgumentParser, RawDescriptionHelpFormatter
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NoReturn

from asymgrpo_app.cli.commands import check_options_of_config, long_options
from asymgrpo_app.cli.paths import expand_config_names, expand_paths
from asymgrpo_app.errors import UserError, require
from asymgrpo_app.rollout.server.auth import read_token
from asymgrpo_app.rollout.server.tls import check_pair
from asymgrpo_app.runtime.console import quiet_libraries, say
from asymgrpo_app.runtime.cuda_toolkit import provide_cuda_home
from asymgrpo_app.runtime.environment import stay_on_loopback

_DESCRIPTION = """Start a vLLM server for a run whose config says `rollout.sampler: server`.

What decides the numbers (model, dtype, lengths, rollout.engine) is read from the run's own config, given like to `fit`:

  asymgrpo serve --token_file token --weights_folder /shared/weights --config configs/x.yaml

All options but those below are the run's. Every route asks for the token, and only those that a run uses are there. The
server holds no trained weights before the run sends them."""


class _Parser(ArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise UserError(message)


def run(arguments: Sequence[str]) -> int:
    """Check options, config and port, then replace this process by the server (`exec`)."""
    options, rest = _parser().parse_known_args(expand_config_names(long_options(arguments)))
    expand_paths(options, prefix="--")
    check_options_of_config(rest, more=vars(options))
    if not rest:
        raise UserError("serve needs the config of the run: asymgrpo serve --config configs/quickstart.yaml.")
    check_pair(options.certificate_file, options.key_file)
    tls = (options.certificate_file, options.key_file) if options.key_file else None
    _check_address(options.host, options.port, allow_public=options.allow_public, encrypted=tls is not None)
    # After the options are read: these import torch, which takes seconds.
    from torch import cuda

    from asymgrpo_app.rollout.server.launch import server_arguments, server_command, server_environment
    from asymgrpo_app.rollout.vllm_engine import (
        CACHE_VARIABLE,
        VLLMEngineConfig,
        check_invariance,
        invariance_environment,
        require_vllm,
        resolve_dtype,
    )

    quiet_libraries()
    require_vllm()
    settings = _settings(rest)
    rollout = settings.rollout
    server = rollout.get("server")
    nccl = server is not None and server.transfer == "nccl"
    folder = None if nccl else _weights_folder(options.weights_folder or (server.weights_folder if server else None))
    config = VLLMEngineConfig(**rollout.engine.as_dict())
    check_invariance(config, on_gpu=cuda.is_available())
    dtype = resolve_dtype(config.dtype, str(settings.trainer.precision))
    command = server_arguments(settings.model.policy, config, dtype, _longest(settings), nccl=nccl, tls=tls)
    token = _token(options.token_file)
    address = server.nccl_address if nccl else None
    _check_port(options.host, options.port)
    environment = server_environment(command, token, options.token_file, folder, address)
    os.environ.update(environment | invariance_environment(config))
    stay_on_loopback()
    provide_cuda_home()
    os.environ.pop(CACHE_VARIABLE, None)  # it would go before what the config says
    scheme = "https" if tls else "http"
    say(f"Starting vLLM on {scheme}://{options.host}:{options.port}; every route asks for the token.")
    words = server_command(command, options.host, options.port)
    os.execv(words[0], words)


def _parser() -> _Parser:
    layout = RawDescriptionHelpFormatter
    parser = _Parser("asymgrpo serve", description=_DESCRIPTION, allow_abbrev=False, formatter_class=layout)
    parser.add_argument("--host", default="127.0.0.1", help="Address to listen on (default: %(default)s).")
    parser.add_argument("--port", type=int, default=8000, help="Port to listen on (default: %(default)s).")
    parser.add_argument("--allow_public", action="store_true", help="Allow an address that other machines can reach.")
    parser.add_argument("--token_file", help="File with the token, made if it is not there. Default: $ASYMGRPO_TOKEN.")
    parser.add_argument("--weights_folder", help="The folder shared with the run, as this machine sees it.")
    parser.add_argument("--certificate_file", help="Certificate (PEM) for TLS. Default: no TLS.")
    parser.add_argument("--key_file", help="The certificate's key (PEM).")
    return parser


def _settings(arguments: Sequence[str]) -> Any:
    """The config of the run, parsed and checked as `fit` does, without building anything."""
    from asymgrpo_app.checks.options import check_options
    from asymgrpo_app.cli.build import refuse_nulls
    from asymgrpo_app.cli.parser import RunParser
    from asymgrpo_app.policy.loading import check_model_path

    parser = RunParser(["fit", *arguments])
    refuse_nulls(parser)
    check_options(parser.section)
    check_model_path("model.policy", parser.section.model.policy)
    return parser.section


def _longest(settings: Any) -> int:
    """Longest prompt plus completion of the run, in tokens."""
    sets = (settings.data.validation or {}).values()
    limits = [limit for chosen in sets if (limit := chosen.get("max_completion_tokens"))]
    return int(settings.data.max_prompt_tokens + max([settings.rollout.max_completion_tokens, *limits]))


def _check_address(host: str, port: int, *, allow_public: bool, encrypted: bool) -> None:
    require(0 < port < 65536, "--port", port, "in 1 to 65535")
    try:
        found = {entry[4][0] for entry in socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)}
    except OSError as error:
        raise UserError(f"--host {host} is no address of this machine ({error.strerror}).") from error
    public = [address for address in found if not ipaddress.ip_address(str(address).partition("%")[0]).is_loopback]
    if public and not allow_public:
        plain = " (the token travels unencrypted: use a private network, or TLS with --certificate_file)"
        raise UserError(
            f"--host {host} can be reached from other machines: add --allow_public if that is what you want"
            f"{'' if encrypted else plain}."
        )


def _check_port(host: str, port: int) -> None:
    try:
        socket.create_server((host, port)).close()
    except OSError as error:
        raise UserError(f"--port {port} of {host} cannot be used ({error.strerror}).") from error


def _weights_folder(path: str | None) -> Path:
    if path is None or not Path(path).is_dir():
        raise UserError(f"--weights_folder must be the folder that the run writes its weights to, got {path}.")
    return Path(path)


def _token(token_file: str | None) -> str:
    if token_file and not Path(token_file).exists():
        try:
            Path(token_file).touch(mode=0o600, exist_ok=False)  # before there is a secret in it
            Path(token_file).write_text(secrets.token_urlsafe(32) + "\n")
        except OSError as error:
            raise UserError(f"--token_file {token_file} cannot be written ({error.strerror}).") from error
        say(f"A fresh token is in {token_file}: give the run the same file (rollout.server.token_file).")
    return read_token(token_file, "--token_file")
