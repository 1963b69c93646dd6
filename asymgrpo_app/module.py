"""The policy, the optional reference model, and one RL step."""

import math
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from time import perf_counter
from typing import Any, TypeVar

import torch
from lightning.pytorch import LightningModule
from lightning.pytorch.cli import LRSchedulerCallable, OptimizerCallable
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from transformers import PreTrainedModel

from asymgrpo_app.algorithm.advantages import AdvantageEstimator, AsymGRPO, GroupRewards, checked_advantages
from asymgrpo_app.algorithm.aggregation import local_divisor, token_weights
from asymgrpo_app.algorithm.clipped import ClippedObjective
from asymgrpo_app.algorithm.entropy import entropy_advantage
from asymgrpo_app.algorithm.loss_config import LossConfig
from asymgrpo_app.algorithm.metrics import mean_of
from asymgrpo_app.algorithm.objective import Objective, ObjectiveOutput, TokenBatch, checked_losses, regularized
from asymgrpo_app.algorithm.overlong import overlong_penalty, shaped_advantages
from asymgrpo_app.errors import RunError, UserError
from asymgrpo_app.evaluation.metrics import SetMetrics
from asymgrpo_app.evaluation.outcomes import ACCURACIES, outcomes_of
from asymgrpo_app.microbatch.in_step import in_step
from asymgrpo_app.microbatch.microbatch import MicroBatch, TokenSequence, build, cut_by_tokens
from asymgrpo_app.microbatch.packing import cut_packed, pack
from asymgrpo_app.parallel.sharding import is_sharded, reduce_gradients, score, shard, whole
from asymgrpo_app.policy.compilation import compile_blocks
from asymgrpo_app.policy.loading import AttentionImplementation, check_model_path, load_policy, packs
from asymgrpo_app.policy.lora import LoRAConfig, adapters_off, add_adapters, first_values, hold_in_bfloat16
from asymgrpo_app.policy.lora_files import check_settings, check_weights, checkpoint_label, fingerprint, keep_adapters
from asymgrpo_app.rewards.shaping import ShapingTerm
from asymgrpo_app.rollout.collect import Stopwatch
from asymgrpo_app.rollout.types import PromptBatch, RolloutBatch, SamplingSettings
from asymgrpo_app.runtime.allocator import return_freed_memory, reuse_freed_memory
from asymgrpo_app.update.metrics import StepMetrics
from asymgrpo_app.update.non_finite import SkippedUpdates, UpdateHealth, describe, stop_because, write_report
from asymgrpo_app.update.perf import PassedTokens, performance
from asymgrpo_app.update.samples import (
    Sample,
    advantage_tokens,
    flatten,
    sampler_tokens,
    sequence_ids,
    start_entropy_tokens,
    start_tokens,
    update_tokens,
)
from asymgrpo_app.update.step_metrics import (
    record_by_accuracy,
    record_entropy,
    record_groups,
    record_lengths,
    record_ratios,
    record_sampler_gap,
)
from asymgrpo_app.version import __version__

T = TypeVar("T")


@dataclass(frozen=True)
class StepRecord:
    """What the last step worked on (this rank's part), for callbacks that look closer.

    Attributes:
        groups: Verdicts of P groups.
        advantages: [P, G], with the overlong penalty where there is one.
        samples: P * G completions, group after group.
        temperature: Sampling temperature.
    """

    groups: GroupRewards
    advantages: Tensor
    samples: list[Sample]
    temperature: float


@dataclass(frozen=True)
class MicroBatchLoss:
    """What a micro-batch of T completion tokens adds to its update.

    Attributes:
        total: Sum of the weighted token losses, not yet divided.
        logprobs: [T], what it is a function of.
        entropy: [T], likewise where it carries a gradient.
    """

    total: Tensor
    logprobs: Tensor
    entropy: Tensor

    def has_gradient(self) -> bool:
        """Whether a backward pass would give the weights anything but zeros: not where all advantages are 0, say."""
        outputs = [tensor for tensor in (self.logprobs, self.entropy) if tensor.requires_grad]
        gradients = torch.autograd.grad(self.total, outputs, retain_graph=True, materialize_grads=True)
        return any(bool(gradient.any()) for gradient in gradients)


class AsymGRPOModule(LightningModule):
    """A causal language model that is trained by AsymGRPO (arXiv 2604.04894); one training batch is one RL step.

    A step turns the verdicts of its rollouts into advantages, and then makes `passes_per_step` times
    `updates_per_step` optimizer updates, each over an equal share of the step's prompts. Optimization is manual because
    the number of micro-batches follows from the rollouts' lengths.

    Args:
        policy: Folder or hub id of the model to train, in Hugging Face format.
        total_steps: Length of the run in RL steps; follows `steps`.
        advantage: Estimator of advantages, by `class_path`; AsymGRPO with the paper's exponents if left out.
        objective: Policy loss per token, by `class_path`; PPO's clipped surrogate if left out.
        loss: Aggregation, and the terms around the objective.
        shaping: Terms by form, added to the advantages after p and the sign were taken from correctness; none if null.
        updates_per_step: Optimizer updates per pass over the rollouts, each on its own share of the prompts.
        passes_per_step: Passes over the rollouts of a step.
        micro_batch_tokens: Most tokens (prompts, completions and padding) in one forward and backward pass; a prompt
            that completions share counts once where the architecture is one that can be packed.
        score_idle: Whether completions that teach nothing (all advantages of their prompt are 0, and the loss has no
            other term) get a forward pass for metrics such as entropy. Without it these are means over the other
            prompts, and the update is the same. No effect on sharded weights, or with an objective that takes
            statistics over tokens; one of your own must have no loss where the advantage is 0.
        max_grad_norm: Largest gradient norm, longer gradients are scaled down to it; null: no limit.
        max_skipped_updates: An update whose loss or gradient is not finite is left out; so many in a row stop the run.
        attention: Attention implementation of transformers.
        gradient_checkpointing: Recompute activations in the backward pass: less memory, about a third more time.
        compile: torch.compile for the transformer blocks: a longer first step and faster later ones, the same results
            up to rounding.
        lora: Train low-rank adapters and leave the policy's own weights as they are; null: train all weights.
        optimizer: Optimizer, by `class_path`.
        lr_scheduler: Learning-rate schedule, by `class_path`; it advances once per RL step. Null: constant.
    """

    def __init__(
        self,
        policy: str,
        total_steps: int = 100,
        advantage: AdvantageEstimator | None = None,
        objective: Objective | None = None,
        loss: LossConfig = LossConfig(),  # noqa: B008 (frozen)
        shaping: list[ShapingTerm] | None = None,
        updates_per_step: int = 1,
        passes_per_step: int = 1,
        micro_batch_tokens: int = 16384,
        score_idle: bool = True,
        max_grad_norm: float | None = 1.0,
        max_skipped_updates: int = 3,
        attention: AttentionImplementation = "sdpa",
        gradient_checkpointing: bool = False,
        compile: bool = False,  # noqa: A002 (the key of the config)
        lora: LoRAConfig | None = None,
        optimizer: OptimizerCallable = torch.optim.AdamW,
        lr_scheduler: LRSchedulerCallable | None = None,
    ) -> None:
        super().__init__()
        check_model_path("model.policy", policy)
        for name, value in {
            "updates_per_step": updates_per_step,
            "passes_per_step": passes_per_step,
            "micro_batch_tokens": micro_batch_tokens,
            "max_skipped_updates": max_skipped_updates,
        }.items():
            if value < 1:
                raise UserError(f"model.{name} must be at least 1, got {value}.")
        if max_grad_norm is not None and not max_grad_norm > 0:
            raise UserError(f"model.max_grad_norm must be > 0 or null, got {max_grad_norm}.")
        self.automatic_optimization = False
        self.policy_path = policy
        self.total_steps = total_steps
        self.advantage = advantage or AsymGRPO()
        self.objective = objective or ClippedObjective()
        self.loss = loss
        self.shaping = shaping or []
        self.updates_per_step = updates_per_step
        self.passes_per_step = passes_per_step
        self.micro_batch_tokens = micro_batch_tokens
        self.score_idle = score_idle
        self.max_grad_norm = max_grad_norm
        self.attention = attention
        self.gradient_checkpointing = gradient_checkpointing
        self.compile_blocks = compile
        self.lora = lora
        self.strict_loading = lora is None  # a checkpoint of adapters holds no other weights; see `on_load_checkpoint`
        self.make_optimizer = optimizer
        self.make_lr_scheduler = lr_scheduler
        if loss.entropy_advantage is not None and self.objective.needs_old_logprobs:
            raise UserError(
                f"model.loss.entropy_advantage changes advantages token by token, which the statistics of "
                f"{type(self.objective).__name__} do not see: choose one of the two."
            )
        self._adaptive_entropy = loss.adaptive_entropy.controller() if loss.adaptive_entropy else None
        self.completed_steps = 0
        self.validation_pending = True  # after the last whole step, or before the first
        self._skipped = SkippedUpdates(max_skipped_updates)
        self.weight_version = 0  # changes whenever the policy's weights do; the sampler compares it with its own
        self.config_text = ""  # the resolved config in YAML, for checkpoints; empty without the command line
        self.last_step: StepRecord | None = None
        self._passed = PassedTokens()
        self.evaluations: dict[str, SetMetrics] = {}
        self._evaluation_started = 0.0
        # In a list: out of the module tree, hence out of checkpoints. With adapters it is the policy itself.
        self._reference: list[PreTrainedModel] = []
        self._base = ""  # what the policy's frozen weights are recognized by

    # ---- model, optimizer, checkpoint ----

    def configure_model(self) -> None:
        """Load the policy. Lightning may call this twice."""
        if hasattr(self, "policy"):
            return
        policy = load_policy(self.policy_path, self.attention)
        if self.lora is not None:
            self._adapt(policy, self.lora)
        self.policy = policy
        if self.gradient_checkpointing:
            self.policy.gradient_checkpointing_enable({"use_reentrant": False})
        self.policy.train()
        if self.compile_blocks:
            compile_blocks(self.policy)
        if self.device_mesh is not None:  # of a strategy that shards
            shard(self.policy, self.device_mesh["data_parallel"])

    def _adapt(self, policy: PreTrainedModel, lora: LoRAConfig) -> None:
        data: Any = self.trainer.datamodule  # type: ignore[attr-defined]
        self._base = fingerprint(policy)
        add_adapters(policy, lora, self.policy_path)
        first_values(policy, data.seed)
        if self._computes_in_bfloat16:
            hold_in_bfloat16(policy)

    def configure_optimizers(self) -> Any:
        optimizer = self.make_optimizer([own for own in self.policy.parameters() if own.requires_grad])
        if self.make_lr_scheduler is None:
            return optimizer
        return {"optimizer": optimizer, "lr_scheduler": self.make_lr_scheduler(optimizer)}

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        checkpoint["asymgrpo"] = {
            "version": __version__,
            "config": self.config_text,
            "completed_steps": self.completed_steps,
            "validation_pending": self.validation_pending,
            "skipped_updates": self._skipped.in_a_row,
            "adaptive_entropy": self._adaptive_entropy.state_dict() if self._adaptive_entropy else None,
        }
        if self.lora is not None:
            label = checkpoint_label(self.lora, self.policy_path, self._base, rounded=self._computes_in_bfloat16)
            checkpoint["asymgrpo"]["lora"] = label
            keep_adapters(checkpoint["state_dict"])

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        state = checkpoint["asymgrpo"]
        check_settings(state, self.lora, str(self.trainer.ckpt_path))
        if self.lora is not None:
            saved = {name.removeprefix("policy."): own for name, own in checkpoint["state_dict"].items()}
            check_weights(state["lora"], saved, self.policy, self._base)
        self.completed_steps = int(state["completed_steps"])
        self.validation_pending = bool(state.get("validation_pending", False))
        self._skipped.in_a_row = int(state.get("skipped_updates", 0))
        if self._adaptive_entropy is not None and state["adaptive_entropy"] is not None:
            self._adaptive_entropy.load_state_dict(state["adaptive_entropy"])
        self.weight_version += 1

    @property
    def _computes_in_bfloat16(self) -> bool:
        return "bf16" in str(self.trainer.precision)

    def validation_due(self, step: int) -> bool:
        """Whether Lightning validates after this many completed RL steps."""
        if not any(self.trainer.num_val_batches):
            return False
        return step % int(self.trainer.val_check_interval) == 0 or step >= self.total_steps

    @property
    def progress(self) -> float:
        """Share of the run that is done, in [0, 1]: 0 in the first step and 1 in the last."""
        return min(self.completed_steps / max(self.total_steps - 1, 1), 1.0)

    # ---- training: one RL step ----

    def on_fit_start(self) -> None:
        """Load the reference model where a KL coefficient needs it; an evaluation never does."""
        if self.device.type == "cpu":
            reuse_freed_memory()
        if self.loss.kl_coef == 0 or self._reference:
            return
        if self.lora is not None:
            self._reference.append(self.policy)
        else:
            reference = load_policy(self.policy_path, self.attention).eval().requires_grad_(False)
            if self.device_mesh is not None:
                shard(reference, self.device_mesh["data_parallel"])
            self._reference.append(nn.Module.to(reference, self.device))

    def on_train_start(self) -> None:
        """Validate before the first update, so that a run shows where it started, or where one was stopped before."""
        self.trainer.should_stop = self.completed_steps >= self.total_steps  # a finished run that is resumed
        if self.validation_pending:
            self.trainer.validating = True
            self.trainer.fit_loop.epoch_loop.val_loop.run()
            self.trainer.training = True

    def training_step(self, batch: PromptBatch, batch_idx: int) -> None:
        """Rollouts to advantages, advantages to updates."""
        rollouts = _attached(batch)
        metrics, clock = StepMetrics(), Stopwatch()
        self._return_freed_memory()
        groups = GroupRewards(rollouts.rewards(), rollouts.valid(), self.progress)
        advantages = checked_advantages(self.advantage, groups)
        record_groups(metrics, rollouts, groups, advantages)
        advantages = self._shape(rollouts, advantages, groups.valid, metrics)
        samples = flatten(rollouts, groups.rewards, groups.valid, advantages)
        record_lengths(metrics, samples, [j.completion.truncated for group in rollouts.groups for j in group])
        metrics.means(batch.means)

        self._score_ahead(samples, rollouts.settings.temperature)
        clock.lap("old_log_prob")
        self._passed = PassedTokens()
        for number in range(self.passes_per_step * self.updates_per_step):
            members = [sample for sample in samples if sample.update == number % self.updates_per_step]
            self._update(members, batch, metrics, on_policy=number == 0)
        self._return_freed_memory()
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)  # the optimizer's kernels belong to the update
        clock.lap("update_actor")
        record_sampler_gap(metrics, samples)
        record_by_accuracy(metrics, groups, advantages, samples)
        self.last_step = StepRecord(groups, advantages, samples, rollouts.settings.temperature)
        self._finish_step(batch, metrics, clock)

    def _return_freed_memory(self) -> None:
        """Between sampling and update, which ask for blocks of other sizes."""
        if self.device.type == "cpu":
            return_freed_memory()

    def _finish_step(self, batch: PromptBatch, metrics: StepMetrics, clock: Stopwatch) -> None:
        values = self.combined(metrics)
        # Settings as they were in this step, before schedule and controller move on.
        values |= {f"advantages/{name}": value for name, value in self.advantage.scalars(self.progress).items()}
        values |= {"actor/lr": self.trainer.optimizers[0].param_groups[0]["lr"]}
        if self._adaptive_entropy is not None:
            values |= {"actor/entropy_coef": self._adaptive_entropy.coefficient}
            # Not where every completion was left out, or where an update was because it was not finite.
            if math.isfinite(values.get("actor/entropy", math.nan)):
                self._adaptive_entropy.observe(values["actor/entropy"])
        scheduler: Any = self.lr_schedulers()
        if scheduler is not None:
            scheduler.step()
        self.completed_steps += 1
        self.validation_pending = self.validation_due(self.completed_steps)
        values |= {"actor/skipped_updates": float(self._skipped.count_of_step())}
        # Lightning counts optimizer updates; the run ends by RL steps, and Lightning validates once more when it stops.
        self.trainer.should_stop = self.completed_steps >= self.total_steps
        seconds = perf_counter() - batch.started
        values |= batch.metrics | clock.seconds | {"timing_s/step": seconds}
        values |= self._performance(batch, seconds, clock.seconds["timing_s/update_actor"])
        trainer: Any = self.trainer
        self.publish(values, write=self.completed_steps % trainer.log_every_n_steps == 0)

    def _performance(self, batch: PromptBatch, step_seconds: float, update_seconds: float) -> dict[str, float]:
        rollouts = _attached(batch)
        sizes = (
            len(prompt.token_ids) + len(judged.completion.token_ids)
            for prompt, group in zip(rollouts.prompts, rollouts.groups, strict=True)
            for judged in group
        )
        return performance(
            tokens=sum(sizes),
            passed=self._passed,
            step_seconds=step_seconds,
            update_seconds=update_seconds,
            parameters=sum(parameter.numel() for parameter in self.policy.parameters()),
            trained=sum(parameter.numel() for parameter in self.policy.parameters() if parameter.requires_grad),
            device=self.device,
            dtype=torch.bfloat16 if self._computes_in_bfloat16 else torch.float32,
        )

    def _shape(self, rollouts: RolloutBatch, advantages: Tensor, valid: Tensor, metrics: StepMetrics) -> Tensor:
        """Add what length and form add, if anything: after p and the sign were taken from correctness."""
        total = torch.zeros_like(advantages)
        if self.loss.overlong_buffer is not None:
            lengths = torch.tensor([[len(c.completion.token_ids) for c in group] for group in rollouts.groups])
            penalties = overlong_penalty(lengths, rollouts.settings.max_tokens, self.loss.overlong_buffer)
            metrics.mean("advantages/overlong_penalty", *mean_of(penalties, valid))
            total += penalties
        if self.shaping:
            terms = [[sum(term.value(c.text) for term in self.shaping) for c in group] for group in rollouts.groups]
            values = torch.tensor(terms, dtype=total.dtype)
            if not values.isfinite().all():
                raise RunError("A term of model.shaping gave a value that is not finite.")
            metrics.mean("advantages/shaping", *mean_of(values, valid))
            total += values
        return shaped_advantages(advantages, total, valid)

    def _score_ahead(self, samples: Sequence[Sample], temperature: float) -> None:
        """A forward pass for samples whose log-probabilities at the start of the step no training pass gives.

        The first update is exactly on policy, so its samples need none, unless the objective asks for statistics.
        """
        counted = self._scored([sample for sample in samples if sample.counts])
        waiting = [sample for sample in counted if sample.update > 0 or self.objective.needs_old_logprobs]
        with torch.no_grad():
            for micro_batch in self._passes([sample.tokens for sample in waiting]):
                _remember(waiting, micro_batch, *score(self.policy, micro_batch, temperature=temperature))

    def score(self, samples: Sequence[Sample], temperature: float) -> list[Tensor]:
        """Log-probabilities of each sample's tokens under the policy as it is now, on the CPU."""
        return self.score_sequences([sample.tokens for sample in samples], temperature)

    @torch.no_grad()
    def score_sequences(self, sequences: Sequence[TokenSequence], temperature: float) -> list[Tensor]:
        """Log-probabilities of each completion's tokens under the policy as it is now, on the CPU."""
        scored: list[Tensor] = [torch.zeros(0)] * len(sequences)
        with self.trainer.precision_plugin.forward_context():
            for micro_batch in self._passes(sequences):
                logprobs, _ = score(self.policy, micro_batch, temperature=temperature)
                lengths = [len(sequences[member].completion) for member in micro_batch.members]
                for member, part in zip(micro_batch.members, logprobs.float().cpu().split(lengths), strict=True):
                    scored[member] = part
        return scored

    def _update(self, members: Sequence[Sample], batch: PromptBatch, metrics: StepMetrics, *, on_policy: bool) -> None:
        """One optimizer update over the samples of one share of the prompts (this rank's part).

        In the first update of a step (`on_policy`) the old log-probabilities are the current ones, to the last bit.
        """
        counted = [sample for sample in members if sample.counts]
        settings = _attached(batch).settings
        divisor = self._reduce(self._divisor(counted, settings))
        if divisor == 0:  # every completion was left out, on every rank
            self._skip_update()
            return
        metrics.mean("actor/loss_divisor", divisor, 1)
        selection = self._selection(counted, batch.step)
        samples = self._scored(counted)
        scale, recorded = self.trainer.world_size / divisor, metrics
        if not samples:  # this rank still takes part in the exchange of gradients, with weight 0
            scale, samples, recorded = 0.0, members[:1], StepMetrics()
            selection = {name: values.new_zeros(samples[0].length) for name, values in selection.items()}
        passes = self._passes([sample.tokens for sample in samples], self._idle(samples))
        losses = []
        for number, micro_batch in enumerate(passes):
            last = number == len(passes) - 1
            with self._gradient_sync(last=last):
                if not micro_batch.members:  # for the sake of ranks that have more
                    self.manual_backward(self._nothing(micro_batch, settings.temperature))
                    continue
                self._passed.forward += micro_batch.num_tokens
                loss = self._loss(micro_batch, samples, selection, settings, recorded, on_policy=on_policy)
                # A backward pass of zeros is left out, but for the last: it leaves a gradient on every weight, and
                # ranks exchange theirs in it. Sharded weights are put together by all ranks in step.
                if last or is_sharded(self.policy) or loss.has_gradient():
                    self.manual_backward(loss.total * scale)
                    self._passed.backward += micro_batch.num_tokens
            losses.append(loss.total.detach())
            del loss  # what a backward pass would have freed: the next micro-batch's activations need its place
        self._step_optimizer(samples, torch.stack(losses), metrics)

    def _loss(
        self,
        micro_batch: MicroBatch,
        samples: Sequence[Sample],
        selection: dict[str, Tensor],
        settings: SamplingSettings,
        metrics: StepMetrics,
        *,
        on_policy: bool,
    ) -> MicroBatchLoss:
        chosen = [samples[member] for member in micro_batch.members]
        entropy_coef = self._adaptive_entropy.coefficient if self._adaptive_entropy else self.loss.entropy_coef
        logprobs, entropy = score(
            self.policy, micro_batch, temperature=settings.temperature, entropy_grad=entropy_coef > 0
        )
        if on_policy or chosen[0].start_logprobs is None:
            _remember(samples, micro_batch, logprobs.detach(), entropy.detach())
        tokens = self._token_batch(micro_batch, chosen, logprobs, entropy, settings.temperature)
        tokens.selection = {name: _cut(values, samples, micro_batch) for name, values in selection.items()}
        policy_term = self._corrected(checked_losses(self.objective, tokens), tokens, chosen, metrics)
        weights = token_weights(tokens.sequence_ids, tokens.num_sequences, self.loss.aggregation)
        metrics.mean("actor/pg_loss", (weights * policy_term.losses).sum().detach(), self._divisor(chosen, settings))
        output = regularized(policy_term, tokens, kl_coef=self.loss.kl_coef, entropy_coef=entropy_coef)
        metrics.means(output.metrics)
        record_entropy(metrics, chosen, entropy, tokens.sequence_ids)
        record_ratios(metrics, tokens)
        return MicroBatchLoss((weights * output.losses).sum(), logprobs, entropy)

    def _nothing(self, micro_batch: MicroBatch, temperature: float) -> Tensor:
        """A loss of 0 that makes the same forward passes as `_loss`, in the same order."""
        logprobs, _ = score(self.policy, micro_batch, temperature=temperature)
        self._reference_logprobs(micro_batch, temperature)
        return logprobs.sum()

    def _token_batch(
        self, micro_batch: MicroBatch, chosen: Sequence[Sample], logprobs: Tensor, entropy: Tensor, temperature: float
    ) -> TokenBatch:
        device = logprobs.device
        advantages = advantage_tokens(chosen)
        if (shaping := self.loss.entropy_advantage) is not None:
            advantages = entropy_advantage(
                advantages, start_entropy_tokens(chosen), alpha=shaping.alpha, kappa=shaping.kappa
            )
        sampler = sampler_tokens(chosen).to(device)
        return TokenBatch(
            logprobs=logprobs,
            entropy=entropy,
            old_logprobs=sampler if self.loss.old_logprobs == "sampler" else start_tokens(chosen).to(device),
            advantages=advantages.to(device),
            sequence_ids=micro_batch.sequence_ids,
            num_sequences=len(chosen),
            sampler_logprobs=sampler,
            ref_logprobs=self._reference_logprobs(micro_batch, temperature),
        )

    def _corrected(
        self, output: ObjectiveOutput, tokens: TokenBatch, chosen: Sequence[Sample], metrics: StepMetrics
    ) -> ObjectiveOutput:
        """Weigh the policy term against the mismatch between sampler and trainer, where the config says so."""
        if self.loss.correction.mode == "off":
            return output
        start = start_tokens(chosen).to(tokens.logprobs.device)
        correction = self.loss.correction.weigh(
            start, tokens.sampler_logprobs, tokens.sequence_ids, tokens.num_sequences
        )
        metrics.means({name: mean for name, mean in correction.means.items() if name != "rollout_corr/kl"})
        for name, value in correction.maxima.items():
            metrics.largest(name, value)
        return ObjectiveOutput(output.losses * correction.weights, output.metrics)

    def _skip_update(self) -> None:
        """Count an update that has nothing to learn from: without gradients the optimizer leaves all as it is."""
        optimizer: Any = self.optimizers()
        optimizer.zero_grad()
        optimizer.step()

    def _step_optimizer(self, samples: Sequence[Sample], losses: Tensor, metrics: StepMetrics) -> None:
        """Make the update, unless a loss [M] or the gradient is not finite, on whatever rank."""
        parameters = list(self.policy.parameters())
        norm = whole(torch.nn.utils.get_total_norm([own.grad for own in parameters if own.grad is not None]))
        broken = self._reduce(float(not bool(losses.isfinite().all())))
        health = UpdateHealth(float(norm), losses, losses_finite=broken == 0)
        if not health.finite:
            self._leave_out(samples, health)
            return
        if self.max_grad_norm is not None:
            torch.nn.utils.clip_grads_with_norm_(parameters, self.max_grad_norm, norm)
        metrics.mean("actor/grad_norm", health.norm, 1)
        optimizer: Any = self.optimizers()
        optimizer.step()
        optimizer.zero_grad()
        self.weight_version += 1
        self._skipped.reset()

    def _leave_out(self, samples: Sequence[Sample], health: UpdateHealth) -> None:
        """Leave weights, optimizer state and sampler as they are; too many such updates in a row stop the run."""
        step = self.completed_steps + 1
        if self._skipped.add(step, health.norm):
            ranks = self.gather_objects(describe(self.policy, samples, health))
            run_dir = self.trainer.default_root_dir
            path = write_report(run_dir, step, health.norm, ranks if self.trainer.is_global_zero else [])
            raise stop_because(self._skipped.limit, step, health.norm, path)
        self._skip_update()

    # ---- parts of an update ----

    def _micro_batches(self, sequences: Sequence[TokenSequence], idle: Sequence[bool] = ()) -> list[MicroBatch]:
        """Those that teach nothing (`idle`) have micro-batches of their own, whose backward pass can be left out."""
        packed = packs(self.policy)
        form = pack if packed else build
        parts: list[Sequence[int]] = [range(len(sequences))]
        if idle:
            parts = [[i for i in parts[0] if idle[i]], [i for i in parts[0] if not idle[i]]]
        groups: list[list[int]] = []
        for part in parts:
            own = [sequences[place] for place in part]
            if packed:
                cut = cut_packed(own, self.micro_batch_tokens)
            else:
                cut = cut_by_tokens([len(sequence) for sequence in own], self.micro_batch_tokens)
            groups += [[part[place] for place in members] for members in cut]
        return [form(sequences, members).to(self.device) for members in groups]

    def _passes(self, sequences: Sequence[TokenSequence], idle: Sequence[bool] = ()) -> list[MicroBatch]:
        """The micro-batches; where weights are sharded as many on every rank, some of them without members."""
        micro_batches = self._micro_batches(sequences, idle)
        if not is_sharded(self.policy):
            return micro_batches
        passes = in_step(micro_batches, packed=packs(self.policy), gather=self.gather_objects)
        return [micro_batch.to(self.device) for micro_batch in passes]

    def _idle(self, samples: Sequence[Sample]) -> list[bool]:
        """Which belong to a prompt none of whose completions has an advantage, with no other term in the loss.

        A prompt is never cut in two for it, as its completions share a forward pass over it. Nobody asks where weights
        are sharded, as every backward pass is made there.
        """
        if (
            is_sharded(self.policy)
            or self.loss.kl_coef > 0
            or self.loss.entropy_coef > 0
            or self._adaptive_entropy is not None
        ):
            return []
        teaching = {tuple(sample.tokens.prompt) for sample in samples if sample.advantage != 0}
        return [tuple(sample.tokens.prompt) not in teaching for sample in samples]

    def _scored(self, samples: Sequence[Sample]) -> Sequence[Sample]:
        """Those that get a forward pass: all, unless the idle ones are left out."""
        if self.score_idle or self.objective.needs_old_logprobs or self._chooses_tokens:
            return samples
        idle = self._idle(samples) or [False] * len(samples)
        return [sample for sample, own in zip(samples, idle, strict=True) if not own]

    def _divisor(self, samples: Sequence[Sample], settings: SamplingSettings) -> float:
        """What these samples add to their update's divisor."""
        if not samples:
            return 0.0
        return local_divisor(sequence_ids(samples), len(samples), self.loss.aggregation, settings.max_tokens)

    @property
    def _chooses_tokens(self) -> bool:
        """Whether the objective takes statistics over the tokens of an update."""
        return type(self.objective).prepare is not Objective.prepare

    def _selection(self, samples: Sequence[Sample], step: int) -> dict[str, Tensor]:
        """What the objective chooses by statistics over the whole update; every rank takes part."""
        if not self._chooses_tokens:
            return {}
        if not self.objective.needs_old_logprobs:
            old = torch.full((sum(sample.length for sample in samples),), torch.nan)
        else:
            old = sampler_tokens(samples) if self.loss.old_logprobs == "sampler" else start_tokens(samples)
        data: Any = self.trainer.datamodule  # type: ignore[attr-defined]
        update = update_tokens(samples, old, run_seed=data.seed, step=step, all_gather=self._gather)
        return self.objective.prepare(update)

    def _reference_logprobs(self, micro_batch: MicroBatch, temperature: float) -> Tensor | None:
        if not self._reference:
            return None
        with torch.no_grad(), adapters_off(self._reference[0]):
            return score(self._reference[0], micro_batch, temperature=temperature)[0]

    # ---- ranks ----

    def _gradient_sync(self, *, last: bool) -> AbstractContextManager[None]:
        """Ranks exchange gradients in the last micro-batch of an update alone."""
        reduce_gradients(self.policy, now=last)
        wrapped = self.trainer.model
        if isinstance(wrapped, DistributedDataParallel) and not last:
            return wrapped.no_sync()
        return nullcontext()

    def combined(self, metrics: StepMetrics) -> dict[str, float]:
        """The values of all ranks as one; every rank takes part."""
        return metrics.combined(self.gather_objects)

    def gather_objects(self, value: T) -> list[T]:
        """The value of every rank, on every rank."""
        if self.trainer.world_size == 1:
            return [value]
        values: list[Any] = [None] * self.trainer.world_size
        torch.distributed.all_gather_object(values, value)
        return values

    def _reduce(self, value: float) -> float:
        """The sum over all ranks."""
        return sum(self.gather_objects(value))

    def _gather(self, values: Tensor) -> Tensor:
        """1-D tensors of all ranks, one after the other."""
        return torch.cat(self.gather_objects(values.cpu()))

    # ---- evaluation ----

    def on_validation_epoch_start(self) -> None:
        self._evaluation_started = perf_counter()
        data: Any = self.trainer.datamodule  # type: ignore[attr-defined]
        self.evaluations = {name: chosen.metrics().to(self.device) for name, chosen in data.evaluation_sets.items()}

    def validation_step(self, batch: PromptBatch, batch_idx: int, dataloader_idx: int = 0) -> None:
        """Take up what is known of each problem."""
        rollouts = _attached(batch) if batch.prompts else None
        self.evaluations[batch.set_name].update(outcomes_of(rollouts, rollouts.answers) if rollouts else [])

    def on_validation_epoch_end(self) -> None:
        self.validation_pending = False
        values: dict[str, float] = {}
        for name, metric in self.evaluations.items():
            for key, estimate in metric.compute().items():
                if key.partition("@")[0] in ACCURACIES:
                    values[f"val/{name}/{key}"] = estimate.value
        self.publish(values | {"timing_s/testing": perf_counter() - self._evaluation_started})

    def predict_step(self, batch: PromptBatch, batch_idx: int, dataloader_idx: int = 0) -> int:
        """The completions are attached to the batch; the number of problems that have some."""
        return len(batch.prompts)

    on_test_epoch_start = on_validation_epoch_start
    test_step = validation_step
    on_test_epoch_end = on_validation_epoch_end

    # ---- logging: the axis counts completed RL steps ----

    def publish(self, values: dict[str, float], *, write: bool = True) -> None:
        """Hand values to callbacks by their name, in `trainer.callback_metrics`, and to the loggers.

        Lightning's `log` would put them in the same place, but prepares each for a mean over batches and ranks first,
        which takes longer than all the rest of logging.
        """
        self.trainer.callback_metrics.update({name: torch.tensor(value) for name, value in values.items()})
        if write:
            self.write(values)

    def write(self, values: dict[str, float]) -> None:
        """Hand values to the loggers under the number of completed RL steps."""
        for logger in self.loggers:
            logger.log_metrics(values, step=self.completed_steps)


def _attached(batch: PromptBatch) -> RolloutBatch:
    if batch.rollouts is None:
        raise RunError("The batch has no rollouts: the trainer needs the VLLMRolloutCallback (section `rollout`).")
    return batch.rollouts


def _remember(samples: Sequence[Sample], micro_batch: MicroBatch, logprobs: Tensor, entropy: Tensor) -> None:
    lengths = [samples[member].length for member in micro_batch.members]
    parts = zip(logprobs.float().cpu().split(lengths), entropy.float().cpu().split(lengths), strict=True)
    for member, (own_logprobs, own_entropy) in zip(micro_batch.members, parts, strict=True):
        samples[member].start_logprobs, samples[member].start_entropy = own_logprobs, own_entropy


def _cut(values: Tensor, samples: Sequence[Sample], micro_batch: MicroBatch) -> Tensor:
    """The part of an update's token tensor that belongs to one micro-batch."""
    parts = values.split([sample.length for sample in samples])
    return torch.cat([parts[member] for member in micro_batch.members]).to(micro_batch.targets.device)
