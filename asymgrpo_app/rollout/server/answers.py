"""Answers of sampler servers, which are not believed: every field is checked."""

from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field

from asymgrpo_app.rollout.types import Completion, SamplingSettings
from asymgrpo_app.runtime.console import printable

_LARGEST_LOGPROB = 1e-3  # rounding may lift a log-probability of 0 by this much


class ServerDownError(Exception):
    """The server failed to answer, answered nonsense, or sampled from other weights; another try may succeed."""


class Answer(BaseModel):
    """Answer whose fields do not matter."""

    model_config = ConfigDict(strict=True, allow_inf_nan=False)


class Proof(Answer):
    """Answer of `/asymgrpo/proof`."""

    proof: Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]


class WeightInfo(Answer):
    """Answer of `/weight_info`."""

    weight_version: Annotated[str, Field(max_length=256)]


class WorldSize(Answer):
    """Answer of `/get_world_size`."""

    world_size: Annotated[int, Field(ge=1, le=1024)]


class Success(Answer):
    """Answer of `/reset_prefix_cache`."""

    success: bool


class _Loaded(Answer):
    error: str | None = None


class WorkersLoaded(Answer):
    """Answer of `/collective_rpc` to `asymgrpo_load`, with one result per worker."""

    results: Annotated[list[_Loaded], Field(min_length=1)]


class _Digest(Answer):
    linear: Annotated[str, Field(pattern=r"^-?[0-9]{1,40}$")]
    other: Annotated[str, Field(pattern=r"^-?[0-9]{1,40}$")]


class WorkersDigest(Answer):
    """Answer of `/collective_rpc` to `asymgrpo_digest`, with one result per worker."""

    results: Annotated[list[_Digest], Field(min_length=1)]


class _Token(Answer):
    token_id: int
    logprob: Annotated[float, Field(le=_LARGEST_LOGPROB)]


class _Logprobs(Answer):
    content: list[_Token]


class _Span(Answer):
    version: Annotated[str, Field(max_length=256)]


class _Choice(Answer):
    finish_reason: str
    token_ids: Annotated[list[int], Field(min_length=1)]
    logprobs: _Logprobs
    weight_versions: list[_Span]


class Generated(Answer):
    """Answer of `/inference/v1/generate`."""

    choices: Annotated[list[_Choice], Field(min_length=1, max_length=1)]

    def completion(self, settings: SamplingSettings, version: str, vocabulary: int) -> Completion:
        """The completion, if it can be one that was asked for.

        Args:
            settings: The settings that it was asked for with.
            version: Label of the weights that it must come from.
            vocabulary: Number of token ids that the policy knows.

        Raises:
            ServerDownError: It cannot.
        """
        choice = self.choices[0]
        token_ids, content, reason = choice.token_ids, choice.logprobs.content, choice.finish_reason
        if reason not in ("stop", "length"):
            raise ServerDownError(f"it ended a completion with '{printable(reason[:80])}'")
        if [span.version for span in choice.weight_versions] != [version]:
            held = printable(" and ".join(span.version for span in choice.weight_versions))
            raise ServerDownError(f"a completion was sampled from the weights {held[:160]} in place of {version}")
        if [entry.token_id for entry in content] != token_ids:
            raise ServerDownError("its log-probabilities do not belong to its tokens")
        if not 0 <= min(token_ids) <= max(token_ids) < vocabulary:
            raise ServerDownError(f"a token of a completion is not in 0 to {vocabulary - 1}")
        truncated, limit = reason == "length", settings.max_tokens
        if len(token_ids) > limit or (truncated and len(token_ids) < limit):
            raise ServerDownError(f"a completion of {len(token_ids)} tokens ended by '{reason}', the limit is {limit}")
        if not truncated and token_ids[-1] not in settings.stop_token_ids:
            raise ServerDownError("a completion stopped without a stop token")
        return Completion(token_ids, [entry.logprob for entry in content], truncated=truncated)
