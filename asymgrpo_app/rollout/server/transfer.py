"""Transfer of a run's weights to its sampler servers."""

import asyncio
import contextlib
import os
import tempfile
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from hashlib import blake2b
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import Tensor

from asymgrpo_app.errors import RunError, UserError
from asymgrpo_app.parallel.ranks import is_first_rank
from asymgrpo_app.rollout.server.answers import ServerDownError
from asymgrpo_app.rollout.server.client import SamplerServer
from asymgrpo_app.runtime.whole_files import permit


class FolderTransfer:
    """Transfer through a folder that the trainer's and the servers' machines share, each at a path of its own.

    Holds the newest weights and sends them to servers, also to one that was started anew. A file is complete as soon as
    it has its name, and the previous one is removed. The first rank alone writes.

    Args:
        folder: The folder as this machine sees it.
        label: Name of the run, by which the next run removes the files of one that died.
        dtype: Compute type of the servers; weights are sent in it.

    Raises:
        UserError: The folder cannot be written.
    """

    def __init__(self, folder: str, label: str, dtype: torch.dtype) -> None:
        self._folder = Path(folder)
        self._prefix = f"asymgrpo-{blake2b(label.encode(), digest_size=6).hexdigest()}-"
        self._dtype = dtype
        self._writes = is_first_rank()
        self._name = ""
        if self._writes:
            try:
                self._folder.mkdir(parents=True, exist_ok=True)
                tempfile.TemporaryFile(dir=self._folder).close()
            except OSError as error:
                reason = error.strerror
                raise UserError(f"rollout.server.weights_folder {folder} cannot be written ({reason}).") from error

    def publish(self, weights: Iterable[tuple[str, Tensor]], number: int) -> None:
        """Write new weights (Hugging Face names); ranks other than the first only iterate over them.

        Raises:
            RunError: The folder cannot be written.
        """
        tensors = {}
        for name, tensor in weights:  # on every rank: gathering a sharded weight is a collective call
            if self._writes:
                tensors[name] = tensor.detach().to("cpu", self._dtype).contiguous()
        self._name = f"{self._prefix}{number:08d}.safetensors"
        if not self._writes:
            return
        path = self._folder / self._name
        partial = path.with_suffix(".partial")
        try:
            save_file(tensors, partial)
            permit([partial])  # the servers may be another user's
            with partial.open("rb") as file:
                os.fsync(file.fileno())
            partial.rename(path)
        except (OSError, SafetensorError) as error:
            raise RunError(f"rollout.server.weights_folder {self._folder} cannot be written: {error}.") from error
        self._remove_all_but(path)

    async def send(self, server: SamplerServer) -> None:
        """Send the newest weights to one server. Raises `ServerDownError` if another try may succeed."""
        await server.load_file(self._name)

    def close(self) -> None:
        """Remove the files. Safe to call twice."""
        if self._writes:
            self._remove_all_but(None)

    def _remove_all_but(self, kept: Path | None) -> None:
        """Remove the files of this run, and those that a run of the same name left when it died."""
        with contextlib.suppress(OSError):
            for path in self._folder.glob(f"{self._prefix}*"):
                if path != kept:
                    path.unlink(missing_ok=True)


class NcclTransfer:
    """Transfer over NCCL with vLLM's engine for it: one group of the trainer and the workers per server.

    Written against vLLM 0.32's `vllm.distributed.weight_transfer`. It needs GPUs and has not been run on any.

    Args:
        address: This machine's address for the servers.
    """

    def __init__(self, address: str) -> None:
        self._address = address
        self._named: list[tuple[str, Tensor]] = []
        self._senders: dict[str, Any] = {}

    def publish(self, weights: Iterable[tuple[str, Tensor]], number: int) -> None:
        """Keep new weights (Hugging Face names)."""
        self._named[:] = [(name, tensor.detach()) for name, tensor in weights]

    async def send(self, server: SamplerServer) -> None:
        """Send the newest weights to one server. Raises `ServerDownError` if another try may succeed."""
        try:
            if server.url not in self._senders:
                self._senders[server.url] = await self._connect(server)
            self._senders[server.url].send_weights()
        except (OSError, RuntimeError, ServerDownError) as error:
            # The group is of no use once a side has failed: the next try makes a new one.
            if (sender := self._senders.pop(server.url, None)) is not None:
                sender.shutdown()
            raise ServerDownError(f"weights could not be sent over NCCL: {error}") from error

    def close(self) -> None:
        """Drop the connections. Safe to call twice."""
        for sender in self._senders.values():
            sender.shutdown()
        self._senders.clear()
        self._named.clear()

    async def _connect(self, server: SamplerServer) -> Any:
        from vllm.distributed.weight_transfer.factory import WeightTransferTrainerFactory
        from vllm.distributed.weight_transfer.nccl_engine import NCCLTrainerInitInfo
        from vllm.utils.network_utils import get_open_port

        info = NCCLTrainerInitInfo(
            rank=0,
            master_address=self._address,
            master_port=get_open_port(),
            world_size=1 + await server.workers(),
        )
        return WeightTransferTrainerFactory.trainer_init(info, client=_nccl_client(server), source=_source(self._named))


def _nccl_client(server: SamplerServer) -> Any:
    """vLLM's client for the weight routes, which asks as our own does: with token, proof and certificate."""
    from vllm.distributed.weight_transfer.clients import HTTPVLLMWeightSyncClient

    class Client(HTTPVLLMWeightSyncClient):  # type: ignore[misc]
        def _post(self, path: str, json: dict[str, Any] | None = None) -> None:
            with ThreadPoolExecutor(1) as thread:  # the event loop of this one may be waiting for the transfer
                thread.submit(asyncio.run, server.post_alone(f"/{path}", json)).result()

    return Client(server.url)


def _source(named: list[tuple[str, Tensor]]) -> Any:
    """vLLM's `WeightSource` of a list of weights, whose content may change between two transfers."""
    from vllm.distributed.weight_transfer.base import ParamMeta, WeightSource

    class Source(WeightSource):  # type: ignore[misc]
        def metadata(self) -> list[Any]:
            return [ParamMeta(name, tensor.dtype, tuple(tensor.shape)) for name, tensor in named]

        def __iter__(self) -> Any:
            return iter(named)

    return Source()
