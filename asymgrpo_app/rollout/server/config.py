"""Config of sampler servers: addresses, weight transfer, limits and timeouts."""

from dataclasses import dataclass
from math import isfinite
from typing import Literal
from urllib.parse import urlsplit

from asymgrpo_app.errors import UserError


@dataclass(frozen=True)
class ServerConfig:
    """Sampler servers, each started by `asymgrpo serve`.

    Args:
        urls: Their addresses, e.g. `http://10.0.0.5:8000`. Prompts are spread over them.
        token_file: File with the servers' token; null: the environment variable ASYMGRPO_TOKEN.
        transfer: Transfer of weights: through a folder that both sides see (`folder`), or over NCCL between GPUs
            (`nccl`, not tested).
        weights_folder: The shared folder as this machine sees it, for `folder`.
        nccl_address: This machine's address for the servers' GPUs, for `nccl`.
        max_in_flight: Most completions that are requested of one server at the same time.
        request_timeout_s: Timeout of a completion in seconds, after which it is requested again.
        max_attempts: Attempts to get a completion before the run stops.
        max_outage_s: Seconds without an answer from any server before the run stops.
    """

    urls: list[str]
    token_file: str | None = None
    transfer: Literal["folder", "nccl"] = "folder"
    weights_folder: str | None = None
    nccl_address: str | None = None
    max_in_flight: int = 256
    request_timeout_s: float = 600.0
    max_attempts: int = 3
    max_outage_s: float = 300.0

    def __post_init__(self) -> None:
        if not self.urls:
            raise UserError("rollout.server.urls is empty: name at least one server.")
        for url in self.urls:
            check_url(url)
        if len(set(self.urls)) < len(self.urls):
            raise UserError(f"rollout.server.urls names a server twice: {', '.join(self.urls)}.")
        if self.transfer == "folder" and not self.weights_folder:
            raise UserError("rollout.server.weights_folder is not set: transfer through a folder needs one.")
        if self.transfer == "nccl" and not self.nccl_address:
            raise UserError("rollout.server.nccl_address is not set: transfer over NCCL needs this machine's address.")
        for name in ("max_in_flight", "max_attempts"):
            if (count := getattr(self, name)) < 1:
                raise UserError(f"rollout.server.{name} must be at least 1, got {count}.")
        for name in ("request_timeout_s", "max_outage_s"):
            if not (isfinite(seconds := getattr(self, name)) and seconds > 0):
                raise UserError(f"rollout.server.{name} must be a finite number > 0, got {seconds}.")


def check_url(url: str) -> None:
    """Refuse a text that is no address of a server.

    Raises:
        UserError: It is none; the message has the text.
    """
    try:
        parts = urlsplit(url)
        complete = parts.scheme in ("http", "https") and parts.hostname and parts.port != 0
    except ValueError:
        complete = None
    if not complete or parts.query or parts.fragment or parts.username:
        raise UserError(f"rollout.server.urls: {url} is no address like http://10.0.0.5:8000.")
