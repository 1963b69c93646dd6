"""The LightningModule: the policy, and one RL step from rollouts to optimizer updates."""

import math
from time import perf_counter
from typing import Any

import torch
from lightning.pytorch.cli import LRSchedulerCallable, OptimizerCallable

from asymgrpo_app.algorithm.advantages import AdvantageEstimator, AsymGRPO, GroupRewards, checked_advantages
from asymgrpo_app.algorithm.clipped import ClippedObjective
from asymgrpo_app.algorithm.groups import of_all_ranks
from asymgrpo_app.algorithm.objective import Objective
from asymgrpo_app.errors import UserError, at_least_1
from asymgrpo_app.metrics import Stopwatch
from asymgrpo_app.parallel.ranks import gather_objects
from asymgrpo_app.policy.loading import AttentionImplementation, check_model_path
from asymgrpo_app.policy.lora import LoRAConfig
from asymgrpo_app.policy.lora_files import check_checkpoint, label_checkpoint
from asymgrpo_app.rewards.shaping import ShapingTerm
from asymgrpo_app.rollout.types import PromptBatch
from asymgrpo_app.runtime.allocator import return_freed_memory, reuse_freed_memory
from asymgrpo_app.update.experience import Experience, StepRecord
from asymgrpo_app.update.loss_config import LossConfig
from asymgrpo_app.update.non_finite import SkippedUpdates
from asymgrpo_app.update.perf import PassedTokens, performance
from asymgrpo_app.update.policy_module import PolicyModule
from asymgrpo_app.update.policy_update import PolicyUpdate
from asymgrpo_app.update.shaping import shape
from asymgrpo_app.update.step_metrics import record_by_accuracy, record_groups, record_lengths, record_sampler_gap
from asymgrpo_app.version import __version__


class AsymGRPOModule(PolicyModule):
    """A causal language model that is trained by AsymGRPO (arXiv 2604.04894); one training batch is one RL step.

    A step turns the verdicts of its rollouts into advantages. It then makes `passes_per_step` (PPO epochs) times
    `updates_per_step` (mini-batches) optimizer updates, each over an equal share of the step's prompts. Optimization is
    manual because the number of micro-batches follows from the rollouts' lengths.

    Args:
        policy: Folder or hub id of the model to train, in Hugging Face format.
        total_steps: Length of the run in RL steps; follows `steps`.
        advantage: Estimator of advantages, by `class_path`; AsymGRPO with the paper's exponents if left out.
        objective: Policy loss per token, by `class_path`; PPO's clipped surrogate if left out.
        loss: Aggregation, and the terms around the objective.
        shaping: Terms that score a completion's form, added to the advantages after p and the sign were taken from
            correctness; null: none.
        updates_per_step: Mini-batches of a PPO epoch: optimizer updates per pass, each on its share of the prompts.
        passes_per_step: PPO epochs: passes over the rollouts of a step.
        micro_batch_tokens: Most tokens (prompts, completions and padding) in one forward and backward pass; a prompt
            that completions share counts once if the architecture can be packed.
        score_idle: Whether zero-advantage completions (all advantages of their prompt are 0, and the loss has no other
            term) get a forward pass for metrics such as entropy. If false, these metrics are means over the other
            prompts, and the update is the same. No effect with sharded weights, or with an objective that takes
            statistics over tokens or does not say `zero_without_advantage`.
        max_grad_norm: Largest gradient norm, longer gradients are scaled down to it; null: no limit.
        max_skipped_updates: Number of updates in a row with a loss or gradient that is not finite that stops the run.
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
        check_model_path("model.policy", policy)
        super().__init__(total_steps)
        self.automatic_optimization = False
        self.strict_loading = lora is None  # a checkpoint of adapters holds no other weights; see `on_load_checkpoint`
        self.policy_path = policy
        self.micro_batch_tokens = at_least_1("model.micro_batch_tokens", micro_batch_tokens)
        self.attention = attention
        self.gradient_checkpointing = gradient_checkpointing
        self.compile_blocks = compile
        self.lora = lora
        self.make_optimizer = optimizer
        self.make_lr_scheduler = lr_scheduler
        self.advantage = advantage or AsymGRPO()
        self.objective = objective or ClippedObjective()
        self.loss = loss
        self.shaping = shaping or []
        self.updates_per_step = at_least_1("model.updates_per_step", updates_per_step)
        self.passes_per_step = at_least_1("model.passes_per_step", passes_per_step)
        self.score_idle = score_idle
        self.max_grad_norm = max_grad_norm
        if max_grad_norm is not None and not max_grad_norm > 0:
            raise UserError(f"model.max_grad_norm must be > 0 or null, got {max_grad_norm}.")
        if loss.entropy_advantage is not None and self.objective.needs_old_logprobs:
            raise UserError(
                f"model.loss.entropy_advantage changes advantages token by token, which the statistics of "
                f"{type(self.objective).__name__} do not see: choose one of the two."
            )
        self.config_text = ""  # the resolved config in YAML, for checkpoints; empty without the command line
        self.last_step: StepRecord | None = None
        self._entropy_control = loss.adaptive_entropy.controller() if loss.adaptive_entropy else None
        self._skipped = SkippedUpdates(at_least_1("model.max_skipped_updates", max_skipped_updates))

    # ---- checkpoint ----

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        checkpoint["asymgrpo"] = {
            "version": __version__,
            "config": self.config_text,
            "completed_steps": self.completed_steps,
            "validation_pending": self.validation_pending,
            "skipped_updates": self._skipped.in_a_row,
            "advantage": self.advantage.state_dict(),
            "adaptive_entropy": self._entropy_control.state_dict() if self._entropy_control else None,
        }
        if self.lora is not None:
            label_checkpoint(checkpoint, self.lora, self.policy_path, self.base, rounded=self.in_bfloat16)

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        check_checkpoint(checkpoint, self.lora, self.policy, self.base, str(self.trainer.ckpt_path))
        self.weight_version += 1
        state = checkpoint["asymgrpo"]
        self.completed_steps = int(state["completed_steps"])
        self.validation_pending = bool(state.get("validation_pending", False))
        self._skipped.in_a_row = int(state.get("skipped_updates", 0))
        self.advantage.load_state_dict(state.get("advantage", {}))
        if self._entropy_control is not None and state["adaptive_entropy"] is not None:
            self._entropy_control.load_state_dict(state["adaptive_entropy"])

    # ---- training: one RL step ----

    def on_fit_start(self) -> None:
        """Load the reference model where a KL coefficient needs it; an evaluation never does."""
        reuse_freed_memory(self.device.type)
        if self.loss.kl_coef > 0:
            self.load_reference()

    def on_train_start(self) -> None:
        """Run a pending validation first: that of the start, or one that was due when the run was stopped."""
        self.trainer.should_stop |= self.completed_steps >= self.total_steps  # a finished run that is resumed
        if self.validation_pending:
            self.trainer.validating = True
            self.trainer.fit_loop.epoch_loop.val_loop.run()
            self.trainer.training = True

    def training_step(self, batch: PromptBatch, batch_idx: int) -> None:
        """Run one RL step: advantages from rollouts, experience from advantages, optimizer updates from experience."""
        rollouts, metrics = batch.require_rollouts(), batch.metrics
        clock = Stopwatch(metrics)
        return_freed_memory(self.device.type)
        groups = GroupRewards(rollouts.rewards(), rollouts.valid(), self.progress)
        estimated = checked_advantages(self.advantage, groups)
        record_groups(metrics, rollouts, groups, estimated)
        record_lengths(metrics, rollouts, groups)
        advantages = shape(
            estimated, rollouts, groups, metrics, overlong_buffer=self.loss.overlong_buffer, terms=self.shaping
        )
        experience = Experience.of(rollouts, groups, advantages, self.device)
        update = self._policy_update(batch, experience)
        self.passes.count = PassedTokens()
        update.score_old()
        clock.lap("old_log_prob")
        for number in range(self.passes_per_step * self.updates_per_step):
            share, on_policy = number % self.updates_per_step, number == 0
            self.weight_version += update.update(share, on_policy=on_policy)
        return_freed_memory(self.device.type)
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)  # the optimizer's kernels belong to the update
        clock.lap("update_actor")
        record_sampler_gap(metrics, experience)
        record_by_accuracy(metrics, groups, advantages, experience)
        self.last_step = StepRecord(groups, advantages, experience, rollouts.settings.temperature)
        self._finish_step(batch, groups)

    def _finish_step(self, batch: PromptBatch, groups: GroupRewards) -> None:
        """Publish the step's metrics, and advance estimator, schedule, controller and counters."""
        values = batch.metrics.combined(gather_objects)
        values |= {f"advantages/{name}": value for name, value in self.advantage.scalars(self.progress).items()}
        self.advantage.observe(of_all_ranks(groups, gather_objects))
        values["actor/lr"] = self.trainer.optimizers[0].param_groups[0]["lr"]
        values["actor/skipped_updates"] = float(self._skipped.count_of_step())
        if self._entropy_control is not None:
            values["actor/entropy_coef"] = self._entropy_control.coefficient
            # Not if every completion was left out, or if an update was skipped because it was not finite.
            if math.isfinite(values.get("actor/entropy", math.nan)):
                self._entropy_control.observe(values["actor/entropy"])
        scheduler: Any = self.lr_schedulers()
        if scheduler is not None:
            scheduler.step()
        self.completed_steps += 1
        self.validation_pending = self.validation_due(self.completed_steps)
        # Lightning counts optimizer updates; the run ends by RL steps, and Lightning validates once more when it stops.
        self.trainer.should_stop |= self.completed_steps >= self.total_steps
        values["timing_s/step"] = perf_counter() - batch.started
        values |= performance(
            self.policy,
            batch.require_rollouts(),
            self.passes.count,
            step_seconds=values["timing_s/step"],
            update_seconds=values["timing_s/update_actor"],
            dtype=torch.bfloat16 if self.in_bfloat16 else torch.float32,
        )
        self.publish(values, write=self.completed_steps % self.trainer.log_every_n_steps == 0)  # type: ignore[attr-defined]

    # ---- parts of a step ----

    @property
    def progress(self) -> float:
        """Share of the run that is done, in [0, 1]: 0 in the first step and 1 in the last."""
        return min(self.completed_steps / max(self.total_steps - 1, 1), 1.0)

    def _policy_update(self, batch: PromptBatch, experience: Experience) -> PolicyUpdate:
        data: Any = self.trainer.datamodule  # type: ignore[attr-defined]
        settings = batch.require_rollouts().settings
        return PolicyUpdate(
            experience=experience,
            metrics=batch.metrics,
            passes=self.passes,
            objective=self.objective,
            loss=self.loss,
            wrapped=self.trainer.model,  # type: ignore[arg-type]
            optimizer=self.optimizers(),
            backward=self.manual_backward,
            skipped=self._skipped,
            max_grad_norm=self.max_grad_norm,
            score_zero_advantage=self.score_idle,
            run_seed=data.seed,
            run_dir=self.trainer.default_root_dir,
            step=batch.step,
            temperature=settings.temperature,
            max_tokens=settings.max_tokens,
            entropy_coef=self._entropy_control.coefficient if self._entropy_control else self.loss.entropy_coef,
        )
