"""The callback that owns the sampler: it samples the rollouts of each step and keeps the sampler's weights current."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from time import perf_counter
from typing import Literal

from lightning.pytorch import Callback, Trainer

from asymgrpo_app.callbacks.progress import RunProgress
from asymgrpo_app.datamodule import data_of
from asymgrpo_app.errors import UserError, at_least_1
from asymgrpo_app.metrics import Stopwatch
from asymgrpo_app.module import AsymGRPOModule
from asymgrpo_app.parallel.ranks import gather_objects
from asymgrpo_app.parallel.sharding import is_sharded
from asymgrpo_app.policy.loading import stop_token_ids
from asymgrpo_app.prompts.base import EncodedPrompt
from asymgrpo_app.rollout.canary import CanaryConfig
from asymgrpo_app.rollout.collect import SeedOf, answer_classes, judge
from asymgrpo_app.rollout.dynamic import DynamicSampling, refill
from asymgrpo_app.rollout.engine import RolloutEngine, Sampler
from asymgrpo_app.rollout.failures import FailureCount
from asymgrpo_app.rollout.policy_sampler import PolicySampler
from asymgrpo_app.rollout.samplers import SamplerName, installed_sampler
from asymgrpo_app.rollout.server.auth import read_token
from asymgrpo_app.rollout.server.config import ServerConfig
from asymgrpo_app.rollout.server.engine import Ranks, ServerEngine
from asymgrpo_app.rollout.transformers_engine import TransformersEngine, TransformersEngineConfig
from asymgrpo_app.rollout.types import JudgedCompletion, PromptBatch, RolloutBatch, SamplingSettings
from asymgrpo_app.rollout.vllm_engine import VLLMEngine, VLLMEngineConfig, resolve_dtype
from asymgrpo_app.rollout.warnings import DegenerateWarnings
from asymgrpo_app.runtime.console import say
from asymgrpo_app.runtime.stopping import switch
from asymgrpo_app.seeds import evaluation_seed, training_seed

Treatment = Literal["wrong", "exclude"]


class VLLMRolloutCallback(Callback):
    """Samples a group of completions per prompt, has the verifiers judge them, and attaches them to the batch.

    The seed of a completion is a function of the run's seed, the step, the prompt and the sample's number, so any
    number of ranks samples the same completions. Outdated weights of the sampler are renewed before it generates.

    Args:
        group_size: Completions per training prompt, the method's G; at least 2.
        max_completion_tokens: Longest completion in tokens, the end token included.
        temperature: Sampling temperature of training, > 0.
        top_p: Nucleus size of training, in (0, 1]. Below 1 the sampler's distribution differs from the policy's, as
            with `top_k` and `min_p`: allowed only with a correction (`model.loss.correction`).
        top_k: Number of likeliest tokens to sample from in training; 0: all.
        min_p: Least probability of a token in training, relative to the likeliest token's, in [0, 1); 0: any.
        truncated: Treatment of a completion cut at the limit: `wrong` judges it wrong, `exclude` leaves it out of its
            group.
        verifier_failure: The same for a completion whose verifier timed out or failed.
        max_verifier_failures: Largest share of verifier failures among the verdicts of a step or of an evaluation;
            beyond it the run stops with an example.
        dynamic_sampling: Replace zero-advantage groups (all right or all wrong) by groups of fresh prompts; null: keep
            them.
        sampler: The sampler: `vllm` in this process, vLLM on a `server`, `transformers` (slow), `auto` (vllm if it is
            installed, else transformers), or a class of your own by `class_path`.
        engine: Options of vLLM, in this process or of `asymgrpo serve`.
        server: Addresses and options of sampler servers.
        transformers: Options of sampling with transformers.
        max_engine_restarts: How many times in a row vLLM in this process is restarted when it fails.
        canary: The check after each push of weights to the sampler.
        seed: Seed of sampling; follows `seed_everything`.
    """

    def __init__(
        self,
        group_size: int = 8,
        max_completion_tokens: int = 1024,
        temperature: float = 1.0,
        top_p: float = 1.0,
        top_k: int = 0,
        min_p: float = 0.0,
        truncated: Treatment = "wrong",
        verifier_failure: Treatment = "wrong",
        max_verifier_failures: float = 0.2,
        dynamic_sampling: DynamicSampling | None = None,
        sampler: SamplerName | Sampler = "vllm",
        engine: VLLMEngineConfig = VLLMEngineConfig(),  # noqa: B008 (frozen)
        server: ServerConfig | None = None,
        transformers: TransformersEngineConfig = TransformersEngineConfig(),  # noqa: B008 (frozen)
        max_engine_restarts: int = 1,
        canary: CanaryConfig = CanaryConfig(),  # noqa: B008 (frozen)
        seed: int = 0,
    ) -> None:
        if group_size < 2:
            raise UserError(
                f"rollout.group_size must be at least 2, got {group_size}: advantages compare a group's completions."
            )
        at_least_1("rollout.max_completion_tokens", max_completion_tokens)
        _check_sampling(temperature, top_p, top_k, min_p)
        if dynamic_sampling is not None and engine.tensor_parallel_size > 1 and sampler != "server":
            raise UserError(
                f"rollout.engine.tensor_parallel_size is {engine.tensor_parallel_size}, but with "
                "rollout.dynamic_sampling each process samples as often as its prompts need: turn one of the two off, "
                "or sample on a server."
            )
        if max_engine_restarts < 0:
            raise UserError(f"rollout.max_engine_restarts must be 0 or more, got {max_engine_restarts}.")
        if sampler == "server":
            if server is None:
                raise UserError("rollout.sampler is server, but rollout.server is not set: name the servers there.")
            read_token(server.token_file, "rollout.server.token_file")
        self.group_size = group_size
        self.max_completion_tokens = max_completion_tokens
        self.temperature = temperature
        self.top_p = top_p
        self.top_k = top_k
        self.min_p = min_p
        self.truncated = truncated
        if not 0 <= max_verifier_failures <= 1:
            raise UserError(f"rollout.max_verifier_failures must be in [0, 1], got {max_verifier_failures}.")
        self.verifier_failure = verifier_failure
        self.max_verifier_failures = max_verifier_failures
        self.dynamic_sampling = dynamic_sampling
        self.sampler = installed_sampler(sampler)
        self.own_sampler = sampler if isinstance(sampler, Sampler) else None
        self.engine_config = engine
        self.server = server
        self.transformers = transformers
        self.max_engine_restarts = max_engine_restarts
        self.canary = canary
        self.seed = seed
        self._sampler: PolicySampler | None = None
        self._stop_token_ids: tuple[int, ...] = ()
        self._failures = FailureCount()
        self._warnings = DegenerateWarnings()

    # ---- hooks ----

    def on_train_batch_start(
        self, trainer: Trainer, pl_module: AsymGRPOModule, batch: PromptBatch, batch_idx: int
    ) -> None:
        settings = SamplingSettings(
            self.temperature,
            self.max_completion_tokens,
            self._stops(trainer, pl_module),
            self.top_p,
            self.top_k,
            self.min_p,
        )

        def draw(prompts: Sequence[EncodedPrompt], round_number: int = 0) -> list[list[JudgedCompletion]]:
            def seed_of(prompt_index: int, number: int) -> int:
                return training_seed(self.seed, batch.step, prompt_index, number, round_number)

            return self._judged(trainer, pl_module, batch, prompts, self.group_size, settings, seed_of)

        def replace(
            round_number: int, prompts: Sequence[EncodedPrompt]
        ) -> tuple[list[EncodedPrompt], list[list[JudgedCompletion]]]:
            fresh = data_of(trainer).replacements(batch, round_number, prompts)
            return fresh, draw(fresh, round_number)

        batch.started = perf_counter()
        self._failures = FailureCount()
        with self._alone(trainer, pl_module, batch):
            batch.rollouts = self._rollouts(batch.prompts, draw(batch.prompts), settings)
            if self.dynamic_sampling is not None:
                batch.metrics.add_all(refill(batch.rollouts, replace, self.dynamic_sampling.max_rounds))
        self._prove(trainer, pl_module, batch)
        self._stop_if_failing(pl_module)
        self._warnings.look_at(batch.rollouts, batch.step + 1, gather_objects)

    def on_validation_epoch_start(self, trainer: Trainer, pl_module: AsymGRPOModule) -> None:
        self._failures = FailureCount()

    def on_validation_batch_start(
        self,
        trainer: Trainer,
        pl_module: AsymGRPOModule,
        batch: PromptBatch,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        def seed_of(prompt_index: int, number: int) -> int:
            return evaluation_seed(self.seed, batch.set_name, prompt_index, number)

        with self._alone(trainer, pl_module, batch):
            # An evaluation slice may leave a rank without problems.
            if batch.prompts:
                self._evaluate(trainer, pl_module, batch, seed_of)
            elif self._shares_engine:
                settings = self._evaluation_settings(trainer, pl_module, batch)
                sampler = self._policy_sampler(trainer, pl_module)
                sampler.sample(pl_module, [], 1, settings, seed_of, Stopwatch(batch.metrics))
        self._prove(trainer, pl_module, batch)

    def _evaluate(self, trainer: Trainer, pl_module: AsymGRPOModule, batch: PromptBatch, seed_of: SeedOf) -> None:
        chosen = data_of(trainer).evaluation_sets[batch.set_name]
        settings = self._evaluation_settings(trainer, pl_module, batch)
        groups = self._judged(trainer, pl_module, batch, batch.prompts, chosen.samples, settings, seed_of)
        batch.rollouts = self._rollouts(batch.prompts, groups, settings)
        if chosen.majority_ks:
            batch.rollouts.answers = answer_classes(batch.prompts, groups, data_of(trainer).pool)

    def _evaluation_settings(self, trainer: Trainer, pl_module: AsymGRPOModule, batch: PromptBatch) -> SamplingSettings:
        chosen = data_of(trainer).evaluation_sets[batch.set_name]
        limit = chosen.max_completion_tokens or self.max_completion_tokens
        return SamplingSettings(chosen.temperature, limit, self._stops(trainer, pl_module), chosen.top_p)

    def on_validation_epoch_end(self, trainer: Trainer, pl_module: AsymGRPOModule) -> None:
        self._stop_if_failing(pl_module)

    on_test_epoch_start = on_predict_epoch_start = on_validation_epoch_start  # type: ignore[assignment]
    on_test_batch_start = on_predict_batch_start = on_validation_batch_start  # type: ignore[assignment]
    on_test_epoch_end = on_predict_epoch_end = on_validation_epoch_end  # type: ignore[assignment]

    def on_exception(self, trainer: Trainer, pl_module: AsymGRPOModule, exception: BaseException) -> None:
        self.close()  # Lightning calls no teardown after an exception

    def teardown(self, trainer: Trainer, pl_module: AsymGRPOModule, stage: str) -> None:
        self.close()

    # ---- work ----

    def close(self) -> None:
        """Shut the sampler down. Safe to call twice."""
        if self._sampler is not None:
            self._sampler.close()
            self._sampler = None

    @contextmanager
    def _alone(self, trainer: Trainer, pl_module: AsymGRPOModule, batch: PromptBatch) -> Iterator[None]:
        """Rank-local work; a stop on any rank aborts it on all.

        With a single process `SafeStop` handles stops. The ranks meet before the work, since new weights may take an
        exchange, and after it.
        """
        if trainer.world_size == 1:
            yield
            return
        self._policy_sampler(trainer, pl_module).synchronize(pl_module, Stopwatch(batch.metrics))
        if not self._shares_engine:
            with switch.own_work(gather_objects):
                yield
        else:  # ranks that share a model exchange something for every token
            yield
            switch.check_together(gather_objects)

    def _prove(self, trainer: Trainer, pl_module: AsymGRPOModule, batch: PromptBatch) -> None:
        self._policy_sampler(trainer, pl_module).prove(pl_module, Stopwatch(batch.metrics))

    def _judged(
        self,
        trainer: Trainer,
        pl_module: AsymGRPOModule,
        batch: PromptBatch,
        prompts: Sequence[EncodedPrompt],
        group_size: int,
        settings: SamplingSettings,
        seed_of: SeedOf,
    ) -> list[list[JudgedCompletion]]:
        """Sample and judge one group per prompt; the seconds it took are added to the batch's metrics."""
        clock = Stopwatch(batch.metrics)
        sampler = self._policy_sampler(trainer, pl_module)
        completions = sampler.sample(pl_module, prompts, group_size, settings, seed_of, clock)
        groups = judge(prompts, completions, data_of(trainer).tokenizer, data_of(trainer).pool)
        clock.lap("reward")
        self._failures.add(prompts, groups)
        return groups

    def _stop_if_failing(self, pl_module: AsymGRPOModule) -> None:
        self._failures.stop_above(self.max_verifier_failures, gather_objects)

    def _rollouts(
        self, prompts: Sequence[EncodedPrompt], groups: list[list[JudgedCompletion]], settings: SamplingSettings
    ) -> RolloutBatch:
        return RolloutBatch(
            list(prompts), groups, settings, self.truncated == "wrong", self.verifier_failure == "wrong"
        )

    def _dtype(self, trainer: Trainer) -> str:
        """The type that the sampler computes in."""
        config = self.transformers if self.sampler == "transformers" else self.own_sampler or self.engine_config
        return resolve_dtype(config.dtype, str(trainer.precision))

    @property
    def _shares_engine(self) -> bool:
        """Whether ranks share one copy of the model in vLLM, and hence make every call together."""
        return self.sampler == "vllm" and self.engine_config.tensor_parallel_size > 1

    def _policy_sampler(self, trainer: Trainer, pl_module: AsymGRPOModule) -> PolicySampler:
        if self._sampler is None:
            self._sampler = PolicySampler(
                lambda: self._start(trainer, pl_module),
                self._dtype(trainer),
                self.canary,
                # A new engine needs the weights, which ranks that share an engine or shard the policy push together.
                0 if self._shares_engine or is_sharded(pl_module.policy) else self.max_engine_restarts,
                lambda text: _announce(trainer, text),
            )
        return self._sampler

    def _start(self, trainer: Trainer, pl_module: AsymGRPOModule) -> RolloutEngine:
        """Start an engine with room for the longest prompt and completion of training and evaluation."""
        sets = data_of(trainer).evaluation_sets.values()
        limits = [self.max_completion_tokens, *(chosen.max_completion_tokens or 0 for chosen in sets)]
        max_model_len = data_of(trainer).max_prompt_tokens + max(limits)
        dtype = self._dtype(trainer)
        if self.own_sampler is not None:
            return self.own_sampler.start(pl_module.policy_path, dtype, max_model_len)
        if self.sampler == "transformers":
            return TransformersEngine(pl_module.policy_path, self.transformers, dtype, max_model_len)
        if self.sampler == "server":
            assert self.server is not None
            say(f"Sampling on {', '.join(self.server.urls)} ...")
            ranks = Ranks(trainer.global_rank, gather_objects)
            return ServerEngine(self.server, dtype, max_model_len, str(trainer.default_root_dir), ranks)
        say("Starting vLLM ...")
        return VLLMEngine(pl_module.policy_path, self.engine_config, dtype, max_model_len)

    def _stops(self, trainer: Trainer, pl_module: AsymGRPOModule) -> tuple[int, ...]:
        if not self._stop_token_ids:
            self._stop_token_ids = stop_token_ids(pl_module.policy_path, data_of(trainer).tokenizer)
        return self._stop_token_ids


def _check_sampling(temperature: float, top_p: float, top_k: int, min_p: float) -> None:
    """Refuse sampling settings outside their ranges.

    Raises:
        UserError: With the key and the value.
    """
    if not 0 < temperature < float("inf"):
        raise UserError(f"rollout.temperature must be a finite number > 0, got {temperature}.")
    if not 0 < top_p <= 1:
        raise UserError(f"rollout.top_p must be in (0, 1], got {top_p}.")
    if top_k < 0:
        raise UserError(f"rollout.top_k must be 0 or more, got {top_k}.")
    if not 0 <= min_p < 1:
        raise UserError(f"rollout.min_p must be in [0, 1), got {min_p}.")


def _announce(trainer: Trainer, text: str) -> None:
    """Show on the progress bar what a run waits for; an empty text clears it."""
    if isinstance(bar := trainer.progress_bar_callback, RunProgress):
        bar.announce(text)
