"""Which sampler a config means."""

from importlib.util import find_spec
from typing import Literal

SamplerName = Literal["vllm", "server", "transformers", "auto"]


def installed_sampler(name: SamplerName) -> Literal["vllm", "server", "transformers"]:
    """The sampler by this name; `auto` is vllm where it is installed, and transformers where not."""
    if name != "auto":
        return name
    return "vllm" if find_spec("vllm") is not None else "transformers"
