"""Sampler that runs transformers' `generate`, for machines without vLLM and for debugging."""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from math import inf
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from asymgrpo_app.errors import RunError, at_least_1
from asymgrpo_app.policy.loading import linear_weights, load_config, named_weights
from asymgrpo_app.rollout.digest import WeightDigest, policy_digest
from asymgrpo_app.rollout.types import Completion, SampleRequest, SamplingSettings
from asymgrpo_app.runtime.console import say

if TYPE_CHECKING:  # transformers takes seconds to import, which a wrong key should not wait for
    from transformers import PreTrainedModel


@dataclass(frozen=True)
class TransformersEngineConfig:
    """Options of the sampler that runs transformers' `generate`.

    Args:
        dtype: Compute type of the sampler; `auto` follows `trainer.precision` (bfloat16 or float32).
        batch_tokens: Most tokens of a batch (padded prompts and room for the longest completions); bounds the memory of
            keys and values.
    """

    dtype: Literal["auto", "float32", "bfloat16", "float16"] = "auto"
    batch_tokens: int = 32768

    def __post_init__(self) -> None:
        at_least_1("rollout.transformers.batch_tokens", self.batch_tokens)


class TransformersEngine:
    """Engine that samples with transformers from its own copy of the policy.

    Args:
        model: Folder or hub id whose architecture the engine takes; weights are pushed later.
        config: Engine options.
        dtype: The resolved compute type, `float32` or `bfloat16` or `float16`.
        max_model_len: Longest prompt plus completion in tokens.
    """

    keeps_weights = True

    def __init__(self, model: str, config: TransformersEngineConfig, dtype: str, max_model_len: int) -> None:
        self._path = model
        self._batch_tokens = config.batch_tokens
        self._dtype: torch.dtype = getattr(torch, dtype)
        self._max_model_len = max_model_len
        self._device = torch.device(torch.cuda.current_device() if torch.cuda.is_available() else "cpu")
        self._model: Any = _empty_model(model, self._dtype, self._device)
        say("Sampling with transformers' generate, which is slow: for real runs install vLLM.")

    def load_weights(self, weights: Iterable[tuple[str, Tensor]]) -> None:
        """Replace all weights (Hugging Face names); each is rounded to the engine's compute type.

        Raises:
            RunError: They are not the weights of the engine's architecture.
        """
        missing = dict(named_weights(self._model))
        for name, weight in weights:
            target = missing.pop(name, None)
            if target is None or target.shape != weight.shape:
                raise RunError(f"{self._path} has no weight {name} {list(weight.shape)}, which the policy sent.")
            target.copy_(weight)
        if missing:
            raise RunError(f"the policy sent no weight {next(iter(missing))}, which {self._path} has.")

    def digest(self, version: int) -> WeightDigest:
        """See `RolloutEngine`."""
        return policy_digest(named_weights(self._model), *linear_weights(self._model), self._dtype, version)

    def generate(self, requests: Sequence[SampleRequest], settings: SamplingSettings) -> list[Completion]:
        """One completion per request, in the order of the requests; log-probabilities include the temperature.

        Raises:
            RunError: The policy's probabilities are not finite, or a batch does not fit into memory.
        """
        completions: dict[int, Completion] = {}
        for indices in _batches(requests, settings.max_tokens, self._batch_tokens):
            try:
                drawn = self._draw([requests[index] for index in indices], settings)
            except torch.OutOfMemoryError as error:
                raise RunError(
                    f"the sampler has no memory for {len(indices)} completions at the same time: lower "
                    f"rollout.transformers.batch_tokens, {self._batch_tokens} now."
                ) from error
            completions.update(zip(indices, drawn, strict=True))
        return [completions[index] for index in range(len(requests))]

    def close(self) -> None:
        """Free the model. Safe to call twice."""
        self._model.to("meta")  # shapes without memory
        if self._device.type == "cuda":
            torch.cuda.empty_cache()

    def _draw(self, requests: Sequence[SampleRequest], settings: SamplingSettings) -> list[Completion]:
        """Sample the completions of one batch."""
        # Most tokens of each completion, so that prompt and completion together stay within the engine's length.
        limits = [min(settings.max_tokens, self._max_model_len - len(item.prompt_token_ids)) for item in requests]
        prompts = [torch.tensor(request.prompt_token_ids, device=self._device) for request in requests]
        input_ids, attention_mask = _left_padded(prompts), _left_padded([torch.ones_like(own) for own in prompts])
        choice = _Choice(settings, _uniforms([request.seed for request in requests], max(limits)).to(self._device))
        stops = list(settings.stop_token_ids)
        from transformers import GenerationConfig, LogitsProcessorList

        generation = GenerationConfig(
            max_new_tokens=max(limits),
            eos_token_id=stops or None,
            pad_token_id=stops[0] if stops else 0,  # follows the end of a completion, and is cut off
            do_sample=False,  # the likeliest token of `_Choice`'s result is the one that it chose
            use_cache=True,
        )
        sequences: Tensor = self._model.generate(
            input_ids,
            attention_mask=attention_mask,
            generation_config=generation,
            logits_processor=LogitsProcessorList([choice]),
        )
        tokens = sequences[:, input_ids.shape[1] :].tolist()
        logprobs = torch.stack(choice.logprobs, dim=1)
        if not logprobs.isfinite().all():
            raise RunError(
                "the policy gives probabilities that are not finite numbers: its weights have diverged, or "
                f"its activations are too large for {self._dtype} (rollout.transformers.dtype)."
            )
        return [_completion(*row, stops) for row in zip(tokens, logprobs.tolist(), limits, strict=True)]


class _Choice:
    """Chooses each row's next token with the row's own random numbers, so that other rows do not matter.

    A `LogitsProcessor` of transformers: `generate` takes the likeliest token of what it returns, the chosen one.

    Args:
        settings: Temperature, and cuts of the distribution (made in vLLM's order).
        uniforms: [B, T] float64 in [0, 1), one per row and token.
    """

    def __init__(self, settings: SamplingSettings, uniforms: Tensor) -> None:
        from transformers import LogitsProcessorList, MinPLogitsWarper, TopKLogitsWarper, TopPLogitsWarper
        from transformers import TemperatureLogitsWarper as Temperature

        self.logprobs: list[Tensor] = []  # of the chosen tokens, [B] per step
        self._greedy = settings.temperature == 0
        self._uniforms = uniforms
        self._warpers = LogitsProcessorList()
        if self._greedy:
            return
        self._warpers.append(Temperature(float(settings.temperature)))
        if settings.min_p > 0:
            self._warpers.append(MinPLogitsWarper(settings.min_p))
        if settings.top_k > 0:
            self._warpers.append(TopKLogitsWarper(settings.top_k))
        if settings.top_p < 1:
            self._warpers.append(TopPLogitsWarper(settings.top_p))

    def __call__(self, input_ids: Any, scores: Any) -> Any:
        """Scores as of a `LogitsProcessor`: 0 for the chosen token of each row, and minus infinity for the others."""
        logprobs = self._warpers(input_ids, scores).float().log_softmax(dim=-1)
        if self._greedy:
            chosen = logprobs.argmax(dim=-1, keepdim=True)
        else:
            chosen = _inverse(logprobs, self._uniforms[:, len(self.logprobs)])
        self.logprobs.append(logprobs.gather(1, chosen)[:, 0])
        return torch.full_like(scores, -inf).scatter_(1, chosen, 0.0)


def _inverse(logprobs: Tensor, uniforms: Tensor) -> Tensor:
    """Inverse transform sampling: tokens [B, 1] where the CDFs of `logprobs` [B, V] pass `uniforms` [B] in [0, 1)."""
    passed = logprobs.double().exp().cumsum(dim=-1)
    # Strictly above, so that a token without probability is never chosen. The bound is for sums that are NaN.
    chosen = torch.searchsorted(passed, (uniforms * passed[:, -1]).unsqueeze(-1), right=True)
    return chosen.clamp(max=logprobs.shape[-1] - 1)


def _uniforms(seeds: Sequence[int], length: int) -> Tensor:
    """[B, length] float64 in [0, 1): each row a function of its seed, a longer one beginning with the shorter one."""
    # Philox takes all bits of a seed; torch's generator on CPU would drop the upper half.
    rows = [np.random.Generator(np.random.Philox(key=seed)).random(length) for seed in seeds]
    return torch.from_numpy(np.stack(rows))


def _batches(requests: Sequence[SampleRequest], max_tokens: int, batch_tokens: int) -> Iterator[list[int]]:
    """Indices of requests, in batches of similar prompt length with at most `batch_tokens` tokens, padding included."""
    batch: list[int] = []
    for index in sorted(range(len(requests)), key=lambda index: len(requests[index].prompt_token_ids)):
        longest = len(requests[index].prompt_token_ids) + max_tokens
        if batch and (len(batch) + 1) * longest > batch_tokens:
            yield batch
            batch = []
        batch.append(index)
    if batch:
        yield batch


def _left_padded(rows: list[Tensor]) -> Tensor:
    """Rows as a tensor [B, longest], with zeros in front."""
    return pad_sequence(rows, batch_first=True, padding_side="left")


def _completion(tokens: Sequence[int], logprobs: Sequence[float], limit: int, stops: Sequence[int]) -> Completion:
    """The completion in a row of a batch, up to the first stop token or the limit."""
    end = next((index + 1 for index, token in enumerate(tokens[:limit]) if token in stops), None)
    length = end or limit
    return Completion(list(tokens[:length]), list(logprobs[:length]), truncated=end is None)


def _empty_model(path: str, dtype: torch.dtype, device: torch.device) -> "PreTrainedModel":
    """A model with random weights, on the device; no file of weights is opened."""
    from transformers import AutoModelForCausalLM, GenerationConfig

    cuda = [device] if device.type == "cuda" else []
    with torch.random.fork_rng(devices=cuda), device:  # the random weights take nothing from the run's own generators
        model: PreTrainedModel = AutoModelForCausalLM.from_config(load_config(path), dtype=dtype)
    model.generation_config = GenerationConfig()  # never the sampling defaults of the checkpoint
    model.eval().requires_grad_(False)
    return model
