"""Config of sampler servers: addresses, weight transfer, limits and timeouts."""

from dataclasses import dataclass
from math import inf
from typing import Literal
from urllib.parse import urlsplit

from asymgrpo_app.errors import UserError, at_least_1, require


@dataclass(frozen=True)
class ServerConfig:
    """Sampler servers, each started by `asymgrpo serve`.

    Args:
        urls: Their addresses, e.g. `http://10.0.0.5:8000`. Prompts are spread over them.
        token_file: File with the servers' token; null: the environment variable ASYMGRPO_TOKEN.
        certificate_file: The servers' certificate (PEM), if it is to be this very one; null: `https` takes any that
            this machine trusts.
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
    certificate_file: str | None = None
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
            if not _is_address(url):
                raise UserError(f"rollout.server.urls: {url} is no address like http://10.0.0.5:8000.")
        if len(set(self.urls)) < len(self.urls):
            raise UserError(f"rollout.server.urls names a server twice: {', '.join(self.urls)}.")
        if self.certificate_file and (plain := [url for url in self.urls if urlsplit(url).scheme != "https"]):
            raise UserError(f"rollout.server.certificate_file is set, but {plain[0]} has none: use https.")
        if self.transfer == "folder" and not self.weights_folder:
            raise UserError("rollout.server.weights_folder is not set: transfer through a folder needs one.")
        if self.transfer == "nccl" and not self.nccl_address:
            raise UserError("rollout.server.nccl_address is not set: transfer over NCCL needs this machine's address.")
        at_least_1("rollout.server.max_in_flight", self.max_in_flight)
        at_least_1("rollout.server.max_attempts", self.max_attempts)
        for name in ("request_timeout_s", "max_outage_s"):
            seconds = getattr(self, name)
            require(0 < seconds < inf, f"rollout.server.{name}", seconds, "a finite number > 0")


def _is_address(url: str) -> bool:
    try:
        parts = urlsplit(url)
        complete = parts.scheme in ("http", "https") and parts.hostname and parts.port != 0
    except ValueError:
        return False
    return bool(complete) and not (parts.query or parts.fragment or "@" in parts.netloc)
