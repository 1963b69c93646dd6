"""Methods of a sampler server's workers, which vLLM adds to its own worker class."""

import os
from collections.abc import Iterator
from pathlib import Path

from safetensors import safe_open
from torch import Tensor

from asymgrpo_app.rollout.vllm_weights import read_digest, reload_weights

WEIGHTS_VARIABLE = "ASYMGRPO_WEIGHTS_FOLDER"


class SamplerWorker:
    """Methods for `/collective_rpc`. Names begin with `asymgrpo_`, so they meet none of vLLM's."""

    def asymgrpo_load(self, name: str) -> dict[str, str]:
        """Replace all weights with those of a file in the server's weights folder.

        Returns:
            `{"error": reason}` if there is no such file, else an empty dict.
        """
        folder = os.environ.get(WEIGHTS_VARIABLE)
        if not folder or Path(name).name != name or not name.endswith(".safetensors"):
            return {"error": f"this server has no weights folder, or {name!r} is no file name of weights"}
        path = Path(folder) / name
        if not path.is_file():
            return {"error": f"there is no file {path} on the server's machine: both sides must share the folder"}
        reload_weights(self, _tensors(path))
        return {}

    def asymgrpo_digest(self, version: int) -> dict[str, str]:
        """The digest of this worker's weights (see `rollout.digest`)."""
        digest = read_digest(self, version)
        return {"linear": str(digest.linear), "other": str(digest.other)}


def _tensors(path: Path) -> Iterator[tuple[str, Tensor]]:
    """The tensors of a file, one at a time."""
    with safe_open(path, framework="pt") as file:
        for name in file.keys():  # noqa: SIM118 (not a dictionary)
            yield name, file.get_tensor(name)
