"""The callback that owns the sampler: it refreshes rollouts each step and keeps the sampler's weights current."""

from collections.abc import Sequence
from time import perf_counter
from typing import Any, Literal

import torch
from lightning.pytorch import Callback, LightningModule, Trainer

from asymgrpo_app.console import say
from asymgrpo_app.errors import UserError
from asymgrpo_app.policy import linear_weights, named_weights, stop_token_ids
from asymgrpo_app.rollout.canary import CanaryConfig, check_digest, check_logprobs
from asymgrpo_app.rollout.collect import SeedOf, Stopwatch, answer_classes, judge, sample
from asymgrpo_app.rollout.digest import policy_digest
from asymgrpo_app.rollout.dynamic import DynamicSampling, refill
from asymgrpo_app.rollout.engine import RolloutEngine
from asymgrpo_app.rollout.failures import FailureCount
from asymgrpo_app.rollout.microbatch import TokenSequence
from asymgrpo_app.rollout.seeds import evaluation_seed, training_seed
from asymgrpo_app.rollout.types import (
    Completion,
    EncodedPrompt,
    JudgedCompletion,
    PromptBatch,
    RolloutBatch,
    SamplingSettings,
)
from asymgrpo_app.rollout.vllm_engine import VLLMEngine, VLLMEngineConfig, resolve_dtype

Treatment = Literal["wrong", "exclude"]


class VLLMRolloutCallback(Callback):
    """Samples a group of completions per prompt with vLLM, has them judged, and attaches them to the batch.

    The seed of a completion is a function of the run's seed, the step, the prompt and the sample's number, so any
    number of ranks samples the same completions. The sampler's weights are renewed before any generation that needs it.

    Args:
        group_size: Completions per training prompt, the method's G; at least 2.
        max_completion_tokens: Longest completion in tokens, the end token included.
        temperature: Sampling temperature of training, > 0.
        truncated: Whether a completion cut at the limit counts as `wrong` or is left out of its group (`exclude`).
        verifier_failure: The same for a completion whose verifier timed out or failed.
        max_verifier_failures: Largest share of verifier failures among the verdicts of a step or of an evaluation;
            beyond it the run stops with an example.
        dynamic_sampling: Replace degenerate groups by groups of fresh prompts; null: keep them.
        engine: Options of the vLLM engine.
        canary: What is checked after each push of weights to the sampler.
        seed: Seed of sampling; follows `seed_everything`.
    """

    def __init__(
        self,
        group_size: int = 8,
        max_completion_tokens: int = 1024,
        temperature: float = 1.0,
        truncated: Treatment = "wrong",
        verifier_failure: Treatment = "wrong",
        max_verifier_failures: float = 0.2,
        dynamic_sampling: DynamicSampling | None = None,
        engine: VLLMEngineConfig = VLLMEngineConfig(),  # noqa: B008 (frozen)
        canary: CanaryConfig = CanaryConfig(),  # noqa: B008 (frozen)
        seed: int = 0,
    ) -> None:
        if group_size < 2:
            raise UserError(
                f"rollout.group_size must be at least 2, got {group_size}: advantages compare a group's completions."
            )
        if max_completion_tokens < 1:
            raise UserError(f"rollout.max_completion_tokens must be at least 1, got {max_completion_tokens}.")
        if not 0 < temperature < float("inf"):
            raise UserError(f"rollout.temperature must be a finite number > 0, got {temperature}.")
        self.group_size = group_size
        self.max_completion_tokens = max_completion_tokens
        self.temperature = temperature
        self.truncated = truncated
        if not 0 <= max_verifier_failures <= 1:
            raise UserError(f"rollout.max_verifier_failures must be in [0, 1], got {max_verifier_failures}.")
        self.verifier_failure = verifier_failure
        self.max_verifier_failures = max_verifier_failures
        self.dynamic_sampling = dynamic_sampling
        self.engine_config = engine
        self.canary = canary
        self.seed = seed
        self._engine: RolloutEngine | None = None
        self._engine_version: int | None = None  # the module's weight version that the engine holds
        self._comparable = True  # whether the engine's digest and the policy's can be compared
        self._unproven = False  # whether weights were pushed since log-probabilities were compared
        self._stop_token_ids: tuple[int, ...] = ()
        self._failures = FailureCount()

    # ---- hooks ----

    def on_train_batch_start(
        self, trainer: Trainer, pl_module: LightningModule, batch: PromptBatch, batch_idx: int
    ) -> None:
        settings = SamplingSettings(self.temperature, self.max_completion_tokens, self._stops(trainer, pl_module))

        def draw(prompts: Sequence[EncodedPrompt], round_number: int = 0) -> list[list[JudgedCompletion]]:
            def seed_of(prompt_index: int, number: int) -> int:
                return training_seed(self.seed, batch.step, prompt_index, number, round_number)

            return self._judged(trainer, pl_module, batch, prompts, self.group_size, settings, seed_of)

        def replace(
            round_number: int, prompts: Sequence[EncodedPrompt]
        ) -> tuple[list[EncodedPrompt], list[list[JudgedCompletion]]]:
            fresh = _data(trainer).replacements(batch, round_number, prompts)
            return fresh, draw(fresh, round_number)

        batch.started = perf_counter()
        self._failures = FailureCount()
        batch.rollouts = self._rollouts(batch.prompts, draw(batch.prompts), settings)
        if self.dynamic_sampling is not None:
            batch.means |= refill(batch.rollouts, replace, self.dynamic_sampling.max_rounds)
        self._stop_if_failing(pl_module)

    def on_validation_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._failures = FailureCount()

    def on_validation_batch_start(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        batch: PromptBatch,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        def seed_of(prompt_index: int, number: int) -> int:
            return evaluation_seed(self.seed, batch.set_name, prompt_index, number)

        if not batch.prompts:  # an evaluation slice may leave a rank without problems
            return
        chosen = _data(trainer).evaluation_sets[batch.set_name]
        limit = chosen.max_completion_tokens or self.max_completion_tokens
        settings = SamplingSettings(chosen.temperature, limit, self._stops(trainer, pl_module), chosen.top_p)
        groups = self._judged(trainer, pl_module, batch, batch.prompts, chosen.samples, settings, seed_of)
        batch.rollouts = self._rollouts(batch.prompts, groups, settings)
        if chosen.majority_ks:
            batch.rollouts.answers = answer_classes(batch.prompts, groups, _data(trainer).pool)

    def on_validation_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._stop_if_failing(pl_module)

    on_test_epoch_start = on_predict_epoch_start = on_validation_epoch_start
    on_test_batch_start = on_predict_batch_start = on_validation_batch_start
    on_test_epoch_end = on_predict_epoch_end = on_validation_epoch_end

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        self.close()  # Lightning calls no teardown after an exception

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        self.close()

    # ---- work ----

    def close(self) -> None:
        """Shut the engine down. Safe to call twice."""
        if self._engine is not None:
            self._engine.close()
            self._engine = None
            self._engine_version = None

    def _judged(
        self,
        trainer: Trainer,
        pl_module: Any,
        batch: PromptBatch,
        prompts: Sequence[EncodedPrompt],
        group_size: int,
        settings: SamplingSettings,
        seed_of: SeedOf,
    ) -> list[list[JudgedCompletion]]:
        """Sample and judge groups for some prompts; the seconds it took are added to the batch's metrics."""
        engine = self._ready_engine(trainer, pl_module)
        clock = Stopwatch(batch.metrics)
        self._synchronize(engine, pl_module)
        clock.lap("update_weights")
        completions = sample(engine, prompts, group_size, settings, seed_of)
        clock.lap("gen")
        self._check_logprobs(trainer, pl_module, prompts, completions, settings)
        clock.lap("update_weights")  # checking a push is part of its price
        groups = judge(prompts, completions, _data(trainer).tokenizer, _data(trainer).pool)
        clock.lap("reward")
        self._failures.add(prompts, groups)
        return groups

    def _stop_if_failing(self, pl_module: Any) -> None:
        self._failures.stop_above(self.max_verifier_failures, pl_module.gather_objects)

    def _rollouts(
        self, prompts: Sequence[EncodedPrompt], groups: list[list[JudgedCompletion]], settings: SamplingSettings
    ) -> RolloutBatch:
        return RolloutBatch(
            list(prompts), groups, settings, self.truncated == "wrong", self.verifier_failure == "wrong"
        )

    def _synchronize(self, engine: RolloutEngine, pl_module: Any) -> None:
        """Push the policy's weights if the engine holds others."""
        if self._engine_version != pl_module.weight_version:
            engine.load_weights(named_weights(pl_module.policy))
            first, self._engine_version = self._engine_version is None, pl_module.weight_version
            self._unproven = True
            self._check_digest(engine, pl_module, first=first)

    def _check_digest(self, engine: RolloutEngine, pl_module: Any, *, first: bool) -> None:
        """Compare the weights the engine holds with the policy's, bit by bit."""
        if not (self.canary.digest and self._comparable):
            return
        version, policy = pl_module.weight_version, pl_module.policy
        found = engine.digest(version)
        if found is None:
            return
        dtype = getattr(torch, self._dtype(pl_module.trainer))
        expected = policy_digest(named_weights(policy), *linear_weights(policy), dtype, version)
        if first and found != expected:
            # Some architectures are stored in another form (merged experts, say). Only their log-probabilities tell.
            self._comparable = False
            say(
                "The weights of this architecture cannot be compared one to one with the sampler's: "
                "rollout.canary checks log-probabilities alone."
            )
            return
        check_digest(expected, found, pl_module.completed_steps)

    def _check_logprobs(
        self,
        trainer: Trainer,
        pl_module: Any,
        prompts: Sequence[EncodedPrompt],
        completions: Sequence[Completion],
        settings: SamplingSettings,
    ) -> None:
        """After a push of weights, score a few completions with the policy and compare."""
        number = min(self.canary.completions, len(completions))
        # Where the sampler cuts its distribution (greedy, top-p), its log-probabilities are others by design.
        if not (self._unproven and number and settings.temperature > 0 and settings.top_p == 1):
            return
        places = [index * len(completions) // number for index in range(number)]
        group_size = len(completions) // len(prompts)
        sequences = [TokenSequence(prompts[i // group_size].token_ids, completions[i].token_ids) for i in places]
        check_logprobs(
            pl_module.score_sequences(sequences, settings.temperature),
            [torch.tensor(completions[i].logprobs) for i in places],
            self.canary.limit(self._dtype(trainer)),
            pl_module.completed_steps,
        )
        self._unproven = False

    def _dtype(self, trainer: Trainer) -> str:
        """The type that the sampler computes in."""
        return resolve_dtype(self.engine_config.dtype, str(trainer.precision))

    def _ready_engine(self, trainer: Trainer, pl_module: Any) -> RolloutEngine:
        if self._engine is None:
            say("Starting vLLM ...")
            sets = _data(trainer).evaluation_sets.values()
            limits = [self.max_completion_tokens, *(own.max_completion_tokens or 0 for own in sets)]
            max_model_len = _data(trainer).max_prompt_tokens + max(limits)
            self._engine = VLLMEngine(
                pl_module.policy_path,
                self.engine_config,
                self._dtype(trainer),
                max_model_len,
            )
        return self._engine

    def _stops(self, trainer: Trainer, pl_module: Any) -> tuple[int, ...]:
        if not self._stop_token_ids:
            self._stop_token_ids = stop_token_ids(pl_module.policy_path, _data(trainer).tokenizer)
        return self._stop_token_ids


def _data(trainer: Trainer) -> Any:
    """The PromptDataModule; Lightning attaches it to the trainer without declaring it."""
    return trainer.datamodule  # type: ignore[attr-defined]
