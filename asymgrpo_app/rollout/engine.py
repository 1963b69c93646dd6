"""The one interface that every sampler has."""

from abc import ABC, abstractmethod
from collections.abc import Iterable, Sequence
from typing import Protocol

from torch import Tensor

from asymgrpo_app.rollout.digest import WeightDigest
from asymgrpo_app.rollout.types import Completion, SampleRequest, SamplingSettings


class RolloutEngine(Protocol):
    """Draws completions from a copy of the policy's weights. Knows tokens, never rewards.

    Attributes:
        keeps_weights: Whether the weights are still there after a generation; if not, they are pushed before each one.
    """

    keeps_weights: bool

    def load_weights(self, weights: Iterable[tuple[str, Tensor]]) -> None:
        """Replace all weights (Hugging Face names) and forget everything calculated from the old ones."""

    def digest(self, version: int) -> WeightDigest | None:
        """The digest of the weights that the next token will be sampled with, for a version of the policy's weights.

        None where the engine cannot read its weights back.
        """

    def generate(self, requests: Sequence[SampleRequest], settings: SamplingSettings) -> list[Completion]:
        """One completion per request, in the order of the requests."""

    def close(self) -> None:
        """Free the engine's memory and processes. Safe to call twice."""


class Sampler(ABC):
    """A sampler of your own, which a config names by `class_path` as `rollout.sampler`.

    Attributes:
        dtype: The type that it computes in: `float32`, `bfloat16`, `float16`, or `auto`, which follows
            `trainer.precision`.
    """

    dtype: str = "auto"

    @abstractmethod
    def start(self, policy_path: str, dtype: str, max_model_len: int) -> RolloutEngine:
        """An engine for a policy; its weights are pushed before it samples.

        Args:
            policy_path: Folder or hub id of the policy, for its architecture and tokenizer.
            dtype: The type to compute in.
            max_model_len: Tokens of the longest prompt and completion that will be asked for.
        """
