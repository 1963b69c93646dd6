"""Resolution of the config's `rollout.sampler`."""

from importlib.util import find_spec
from typing import Any, Literal

SamplerName = Literal["vllm", "server", "transformers", "auto"]


def installed_sampler(name: Any) -> str:
    """The kind of a sampler: `vllm`, `server`, `transformers`, or `own` for a class of the user's.

    `auto` is vllm where it is installed, and transformers where not.
    """
    if not isinstance(name, str):
        return "own"
    if name != "auto":
        return name
    return "vllm" if find_spec("vllm") is not None else "transformers"
