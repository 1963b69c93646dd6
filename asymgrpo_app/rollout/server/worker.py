"""Methods of a sampler server's workers, which vLLM adds to its own worker class."""

import os
from pathlib import Path

from safetensors import safe_open

from asymgrpo_app.rollout.vllm_weights import read_digest, reload_weights

WEIGHTS_VARIABLE = "ASYMGRPO_WEIGHTS_FOLDER"


class SamplerWorker:
    """Methods for `/collective_rpc`. Names begin with `asymgrpo_`, so they meet none of vLLM's."""

    def asymgrpo_load(self, name: str) -> dict[str, str]:
        """Replace all weights with those of a file in the server's weights folder.

        Returns:
            `{"error": reason}` if there is no such file, else an empty dict.
        """
        folder = os.environ.get(WEIGHTS_VARIABLE, "")
        path = Path(folder) / name
        if not folder or Path(name).name != name or path.suffix != ".safetensors" or not path.is_file():
            return {"error": f"the server finds no weights {name!r} in its folder {folder}: both sides must share one"}
        with safe_open(path, framework="pt") as file:
            names = file.keys()
            reload_weights(self, ((name, file.get_tensor(name)) for name in names))  # one at a time
        return {}

    def asymgrpo_digest(self, version: int) -> dict[str, str]:
        """The digest of this worker's weights (see `rollout.digest`)."""
        digest = read_digest(self, version)
        return {"linear": str(digest.linear), "other": str(digest.other)}
