"""The callback that owns the sampler: it samples the rollouts of each step and keeps the sampler's weights current."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from itertools import product
from math import inf
from time import perf_counter
from typing import Any, Literal

from lightning.pytorch import Callback, Trainer

from asymgrpo_app.callbacks.objects import check_objects
from asymgrpo_app.callbacks.progress import RunProgress
from asymgrpo_app.callbacks.second_opinion import SecondOpinionGuard
from asymgrpo_app.datamodule import data_of
from asymgrpo_app.errors import UserError, at_least_1, require
from asymgrpo_app.metrics import Stopwatch
from asymgrpo_app.module import AsymGRPOModule
from asymgrpo_app.parallel.ranks import gather_objects
from asymgrpo_app.policy.loading import vocabulary_size
from asymgrpo_app.prompts.base import EncodedPrompt
from asymgrpo_app.rollout.canary import CanaryConfig
from asymgrpo_app.rollout.collect import answer_classes, judge
from asymgrpo_app.rollout.dynamic import Drawn, DynamicSampling, refill
from asymgrpo_app.rollout.engine import RolloutEngine, Sampler
from asymgrpo_app.rollout.failures import FailureCount
from asymgrpo_app.rollout.policy_sampler import PolicySampler
from asymgrpo_app.rollout.samplers import SamplerName, installed_sampler
from asymgrpo_app.rollout.second_opinion import Opinions, SecondOpinion, second_opinions
from asymgrpo_app.rollout.server.auth import read_token
from asymgrpo_app.rollout.server.config import ServerConfig
from asymgrpo_app.rollout.server.engine import ServerEngine
from asymgrpo_app.rollout.server.tls import fingerprint
from asymgrpo_app.rollout.transformers_engine import TransformersEngine, TransformersEngineConfig
from asymgrpo_app.rollout.types import (
    AttachesRollouts,
    JudgedCompletion,
    PromptBatch,
    RolloutBatch,
    SampleRequest,
    SamplingSettings,
)
from asymgrpo_app.rollout.vllm_engine import VLLMEngine, VLLMEngineConfig, choose_kernels, import_vllm, resolve_dtype
from asymgrpo_app.rollout.warnings import DegenerateWarnings
from asymgrpo_app.runtime.console import say
from asymgrpo_app.runtime.stopping import switch
from asymgrpo_app.seeds import evaluation_seed, training_seed

Treatment = Literal["wrong", "exclude"]


class VLLMRolloutCallback(Callback, AttachesRollouts):
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
        second_opinion: A second verifier that judges a share of the accepted answers of training, and stops the run if
            it disagrees too often; null: none.
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
        second_opinion: SecondOpinion | None = None,
        dynamic_sampling: DynamicSampling | None = None,
        sampler: SamplerName | Sampler = "vllm",
        engine: VLLMEngineConfig = VLLMEngineConfig(),  # noqa: B008 (frozen)
        server: ServerConfig | None = None,
        transformers: TransformersEngineConfig = TransformersEngineConfig(),  # noqa: B008 (frozen)
        max_engine_restarts: int = 1,
        canary: CanaryConfig = CanaryConfig(),  # noqa: B008 (frozen)
        seed: int = 0,
    ) -> None:
        require(group_size >= 2, "rollout.group_size", group_size, "at least 2 (advantages compare completions)")
        at_least_1("rollout.max_completion_tokens", max_completion_tokens)
        require(0 < temperature < inf, "rollout.temperature", temperature, "a finite number > 0")
        require(0 < top_p <= 1, "rollout.top_p", top_p, "in (0, 1]")
        require(top_k >= 0, "rollout.top_k", top_k, "0 or more")
        require(0 <= min_p < 1, "rollout.min_p", min_p, "in [0, 1)")
        require(0 <= max_verifier_failures <= 1, "rollout.max_verifier_failures", max_verifier_failures, "in [0, 1]")
        require(max_engine_restarts >= 0, "rollout.max_engine_restarts", max_engine_restarts, "0 or more")
        self.sampler = installed_sampler(sampler)
        # Whether ranks share one copy of the model in vLLM, and hence make every call together.
        self._shares_engine = self.sampler == "vllm" and engine.tensor_parallel_size > 1
        if dynamic_sampling is not None and self._shares_engine:
            raise UserError(
                f"rollout.engine.tensor_parallel_size {engine.tensor_parallel_size} makes processes sample together, "
                "with rollout.dynamic_sampling each goes by its own prompts: turn one off, or sample on a server."
            )
        if self.sampler == "server":
            if server is None:
                raise UserError("rollout.sampler is server, but rollout.server is not set: name the servers there.")
            read_token(server.token_file, "rollout.server.token_file")
            if server.certificate_file:
                fingerprint(server.certificate_file, "rollout.server.certificate_file")
        self.group_size = group_size
        self.max_completion_tokens = max_completion_tokens
        self.settings = SamplingSettings(temperature, max_completion_tokens, (), top_p, top_k, min_p)
        self._treatments = truncated == "wrong", verifier_failure == "wrong"
        self.max_verifier_failures = max_verifier_failures
        self.dynamic_sampling = dynamic_sampling
        self.own_sampler = sampler if isinstance(sampler, Sampler) else None
        self.engine_config = engine
        self.server = server
        self.transformers = transformers
        self.seed = seed
        # A new engine needs the weights, which ranks that share an engine push together.
        self._sampler = PolicySampler(self._start, canary, 0 if self._shares_engine else max_engine_restarts)
        self._failures = FailureCount()
        self.second_opinion = second_opinion
        self._guard = None if second_opinion is None else SecondOpinionGuard(second_opinion)
        self._warnings = DegenerateWarnings()

    # ---- hooks ----

    def setup(self, trainer: Trainer, pl_module: AsymGRPOModule, stage: str) -> None:
        check_objects(trainer, pl_module, self.settings)
        if self.sampler == "vllm":
            choose_kernels(self.engine_config)
            import_vllm()  # it is needed anyway; now, a broken one costs no model that was loaded before
        self.settings = replace(self.settings, stop_token_ids=data_of(trainer).stop_token_ids)

    def on_train_batch_start(
        self, trainer: Trainer, pl_module: AsymGRPOModule, batch: PromptBatch, batch_idx: int
    ) -> None:
        def draw(prompts: Sequence[EncodedPrompt], round_number: int = 0) -> list[list[JudgedCompletion]]:
            seed_of = partial(training_seed, self.seed, batch.step, replacement=round_number)
            return self._judged(pl_module, batch, prompts, self.group_size, self.settings, seed_of)

        def redraw(round_number: int, prompts: Sequence[EncodedPrompt]) -> Drawn:
            fresh = data_of(trainer).replacements(batch, round_number, prompts)
            return fresh, draw(fresh, round_number)

        batch.started = perf_counter()
        self._failures = FailureCount()
        with self._alone(trainer, pl_module, batch):
            batch.rollouts = RolloutBatch(list(batch.prompts), draw(batch.prompts), self.settings, *self._treatments)
            if self.dynamic_sampling is not None:
                batch.metrics.add_all(refill(batch.rollouts, redraw, self.dynamic_sampling.max_rounds))
            opinions = self._second_opinions(trainer, batch)
        self._sampler.prove(pl_module, Stopwatch(batch.metrics))
        self._failures.stop_above(self.max_verifier_failures, gather_objects)
        if self._guard is not None:
            self._guard.look_at(opinions, batch.metrics, batch.step + 1, gather_objects)
        self._warnings.look_at(batch.rollouts, batch.step + 1, gather_objects)

    def on_train_batch_end(self, trainer: Trainer, pl_module: AsymGRPOModule, *_: Any) -> None:
        if self._guard is not None:
            self._guard.keep()

    def on_save_checkpoint(self, trainer: Trainer, pl_module: AsymGRPOModule, checkpoint: dict[str, Any]) -> None:
        """Save the second opinions; not as `state_dict`, for Lightning refuses two callbacks of a class with one."""
        if self._guard is not None:
            checkpoint["callbacks"][self.state_key] = self._guard.state_dict()

    def on_load_checkpoint(self, trainer: Trainer, pl_module: AsymGRPOModule, checkpoint: dict[str, Any]) -> None:
        if self._guard is not None and (state := checkpoint["callbacks"].get(self.state_key)):
            self._guard.load_state_dict(state)

    def on_validation_epoch_start(self, trainer: Trainer, pl_module: AsymGRPOModule) -> None:
        self._failures = FailureCount()

    def on_validation_batch_start(
        self, trainer: Trainer, pl_module: AsymGRPOModule, batch: PromptBatch, batch_idx: int, dataloader_idx: int = 0
    ) -> None:
        data = data_of(trainer)
        chosen = data.evaluation_sets[batch.set_name]
        limit = chosen.max_completion_tokens or self.max_completion_tokens
        settings = SamplingSettings(chosen.temperature, limit, self.settings.stop_token_ids, chosen.top_p)
        seed_of = partial(evaluation_seed, self.seed, batch.set_name)
        with self._alone(trainer, pl_module, batch):
            # An evaluation slice may leave a rank without problems.
            if batch.prompts or self._shares_engine:
                groups = self._judged(pl_module, batch, batch.prompts, chosen.samples, settings, seed_of)
                batch.rollouts = RolloutBatch(batch.prompts, groups, settings, *self._treatments)
                if chosen.majority_ks:
                    batch.rollouts.answers = answer_classes(batch.prompts, groups, data.pool)
        self._sampler.prove(pl_module, Stopwatch(batch.metrics))

    def on_validation_epoch_end(self, trainer: Trainer, pl_module: AsymGRPOModule) -> None:
        self._failures.stop_above(self.max_verifier_failures, gather_objects)

    on_test_epoch_start = on_predict_epoch_start = on_validation_epoch_start  # type: ignore[assignment]
    on_test_batch_start = on_predict_batch_start = on_validation_batch_start  # type: ignore[assignment]
    on_test_epoch_end = on_predict_epoch_end = on_validation_epoch_end  # type: ignore[assignment]

    def on_exception(self, trainer: Trainer, pl_module: AsymGRPOModule, exception: BaseException) -> None:
        self._sampler.close()  # Lightning calls no teardown after an exception

    def teardown(self, trainer: Trainer, pl_module: AsymGRPOModule, stage: str) -> None:
        self._sampler.close()

    # ---- work ----

    @contextmanager
    def _alone(self, trainer: Trainer, pl_module: AsymGRPOModule, batch: PromptBatch) -> Iterator[None]:
        """Rank-local work; a stop on any rank aborts it on all.

        With a single process `SafeStop` handles stops. The ranks meet before the work, since new weights may take an
        exchange, and after it.
        """
        if trainer.world_size == 1:
            yield
            return
        self._sampler.synchronize(pl_module, Stopwatch(batch.metrics))
        if not self._shares_engine:
            with switch.own_work(gather_objects):
                yield
        else:  # ranks that share a model exchange something for every token
            yield
            switch.check_together(gather_objects)

    def _judged(
        self,
        module: AsymGRPOModule,
        batch: PromptBatch,
        prompts: Sequence[EncodedPrompt],
        group_size: int,
        settings: SamplingSettings,
        seed_of: Callable[[int, int], int],
    ) -> list[list[JudgedCompletion]]:
        """Sample and judge one group per prompt; the seconds it took are added to the batch's metrics.

        The seed of a completion is `seed_of` the prompt's index and the completion's number in its group.
        """
        clock, data = Stopwatch(batch.metrics), data_of(module.trainer)
        places = product(prompts, range(group_size))
        requests = [SampleRequest(prompt.token_ids, seed_of(prompt.index, number)) for prompt, number in places]
        completions = self._sampler.sample(module, requests, settings, clock)
        _announce(module.trainer, "")
        groups = judge(prompts, completions, data.tokenizer, data.pool)
        clock.lap("reward")
        self._failures.add(prompts, groups)
        return groups

    def _second_opinions(self, trainer: Trainer, batch: PromptBatch) -> Opinions:
        """Second opinions on this rank's part of a step; none if the run has no second verifier."""
        if self.second_opinion is None:
            return Opinions()
        clock = Stopwatch(batch.metrics)
        found = second_opinions(
            self.second_opinion, batch.require_rollouts(), self.seed, batch.step, data_of(trainer).pool
        )
        clock.lap("second_opinion")
        return found

    def _start(self, module: AsymGRPOModule) -> tuple[RolloutEngine, str]:
        """Start an engine with room for the longest prompt and completion of training and evaluation; and its dtype."""
        trainer, data, path = module.trainer, data_of(module.trainer), module.policy_path
        limits = [chosen.max_completion_tokens or 0 for chosen in data.evaluation_sets.values()]
        max_model_len = data.max_prompt_tokens + max([self.max_completion_tokens, *limits])
        config = self.transformers if self.sampler == "transformers" else self.own_sampler or self.engine_config
        dtype = resolve_dtype(config.dtype, str(trainer.precision))
        _announce(trainer, "sampler starts")
        engine: RolloutEngine
        if self.own_sampler is not None:
            engine = self.own_sampler.start(path, dtype, max_model_len)
        elif self.sampler == "transformers":
            engine = TransformersEngine(path, self.transformers, dtype, max_model_len)
        elif self.server is not None and self.sampler == "server":
            say(f"Sampling on {', '.join(self.server.urls)} ...")
            label = str(trainer.default_root_dir)
            engine = ServerEngine(self.server, dtype, max_model_len, vocabulary_size(path), label)
        else:
            say("Starting vLLM ...")
            engine = VLLMEngine(path, self.engine_config, dtype, max_model_len)
        _announce(trainer, "sampler warms up")  # the first generation of an engine is slower than the others
        return engine, dtype


def _announce(trainer: Trainer, text: str) -> None:
    """Show on the progress bar what a run waits for; an empty text clears it."""
    if isinstance(bar := trainer.progress_bar_callback, RunProgress):
        bar.announce(text)
