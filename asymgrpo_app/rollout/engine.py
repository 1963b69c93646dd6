"""Interfaces of samplers: the engine, and a sampler of your own."""

from abc import ABC, abstractmethod
from collections.abc import Iterable, Sequence
from typing import Protocol

from torch import Tensor

from asymgrpo_app.errors import RunError
from asymgrpo_app.rollout.digest import WeightDigest
from asymgrpo_app.rollout.types import Completion, SampleRequest, SamplingSettings


class EngineError(RunError):
    """An engine failed while it sampled; a fresh one may succeed."""


class RolloutEngine(Protocol):
    """Engine that samples completions from a copy of the policy's weights. Knows tokens, never rewards.

    Attributes:
        keeps_weights: Whether the engine keeps its weights after a generation; if not, they are pushed before each one.
    """

    keeps_weights: bool

    def load_weights(self, weights: Iterable[tuple[str, Tensor]]) -> None:
        """Replace all weights (Hugging Face names) and drop everything computed from the old ones.

        Goes through all weights: with several processes each is gathered when it is asked for.
        """

    def digest(self, version: int) -> WeightDigest | None:
        """The digest of the weights that the next token will be sampled with, for a version of the policy's weights.

        None where the engine cannot read its weights back.
        """

    def generate(self, requests: Sequence[SampleRequest], settings: SamplingSettings) -> list[Completion]:
        """One completion per request, in the order of the requests.

        Raises:
            EngineError: The engine failed, and a fresh one may succeed.
        """

    def close(self) -> None:
        """Free the engine's memory and processes. Safe to call twice."""


class Sampler(ABC):
    """Base class of a sampler of your own, which a config names by `class_path` as `rollout.sampler`.

    Attributes:
        dtype: Compute type: `float32`, `bfloat16`, `float16`, or `auto`, which follows `trainer.precision`.
    """

    dtype: str = "auto"

    @abstractmethod
    def start(self, policy_path: str, dtype: str, max_model_len: int) -> RolloutEngine:
        """Start an engine for a policy; weights are pushed before it samples.

        Args:
            policy_path: Folder or hub id of the policy, for its architecture and tokenizer.
            dtype: The type to compute in.
            max_model_len: Longest prompt plus completion in tokens.
        """
