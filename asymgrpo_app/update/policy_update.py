"""Optimizer updates from a step's experience: cut, forward, loss, backward, step."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from asymgrpo_app.algorithm.aggregation import local_divisor, token_weights
from asymgrpo_app.algorithm.entropy import entropy_advantage
from asymgrpo_app.algorithm.metrics import ratio
from asymgrpo_app.algorithm.objective import Objective, ObjectiveOutput, TokenBatch, checked_losses, regularized
from asymgrpo_app.metrics import StepMetrics
from asymgrpo_app.microbatch.microbatch import MicroBatch
from asymgrpo_app.parallel.ranks import cat_over_ranks, sum_over_ranks, world_size
from asymgrpo_app.parallel.sharding import gradient_sync, whole
from asymgrpo_app.update.experience import Experience, update_tokens
from asymgrpo_app.update.loss_config import LossConfig
from asymgrpo_app.update.non_finite import SkippedUpdates, UpdateHealth
from asymgrpo_app.update.passes import ForwardPasses
from asymgrpo_app.update.step_metrics import record_entropy, record_ratios


@dataclass(frozen=True)
class StepContext:
    """Settings that all updates of one step share.

    Attributes:
        step: RL steps completed before this one.
        temperature: Sampling temperature; the policy's log-probabilities use the same.
        max_tokens: Length limit of completions, in tokens.
        entropy_coef: Weight of the entropy bonus in this step.
    """

    step: int
    temperature: float
    max_tokens: int
    entropy_coef: float


@dataclass
class PolicyUpdate:
    """Makes optimizer updates, each from one mini-batch (share of the prompts) of a step's experience.

    Attributes:
        passes: Forward passes of the policy and its reference.
        objective: Policy loss per token.
        loss: Aggregation, and the terms around the objective.
        wrapped: The policy as the strategy wraps it.
        optimizer: Lightning's wrapper of the optimizer.
        backward: Lightning's `manual_backward`.
        run_seed: Seed of the run.
        run_dir: Folder of the run, for a report of an update that is not finite.
        skipped: Counter of updates that were skipped because they were not finite.
        max_grad_norm: Largest gradient norm; None: no limit.
        score_zero_advantage: Whether zero-advantage prompts get a forward pass, for metrics alone.
    """

    passes: ForwardPasses
    objective: Objective
    loss: LossConfig
    wrapped: nn.Module
    optimizer: Any
    backward: Callable[[Tensor], None]
    run_seed: int
    run_dir: str | Path
    skipped: SkippedUpdates
    max_grad_norm: float | None
    score_zero_advantage: bool
    _chooses_tokens: bool = field(init=False)  # whether the objective takes statistics over the tokens of an update

    def __post_init__(self) -> None:
        self._chooses_tokens = type(self.objective).prepare is not Objective.prepare

    # ---- the updates of a step ----

    @torch.no_grad()
    def score_old(self, experience: Experience, context: StepContext) -> None:
        """Compute `old_logprobs` and `old_entropy` of the completions that need them before the first update.

        The first update is exactly on policy: its own forward pass gives them, unless the objective needs statistics.
        """
        ahead = experience.valid & ((experience.updates > 0) | self.objective.needs_old_logprobs)
        members = self._scored(experience, experience.where(experience.valid), context)
        waiting = [member for member in members if ahead[member]]
        for batch in self.passes.cut(experience.sequences, waiting):
            experience.remember(batch.members, *self.passes.logprobs(batch, context.temperature))

    def update(
        self, experience: Experience, number: int, context: StepContext, metrics: StepMetrics, *, on_policy: bool
    ) -> bool:
        """Make one optimizer update from mini-batch `number`; returns whether the policy has changed.

        In the first update of a step (`on_policy`) the old log-probabilities are the current ones, to the last bit.
        """
        share = experience.where(experience.updates == number)
        members = [member for member in share if experience.valid[member]]
        divisor = sum_over_ranks(self._divisor(experience, members, context))
        if divisor == 0:  # every completion was left out, on every rank
            self._step_without_gradient()
            return False
        metrics.add("actor/loss_divisor", ratio(divisor, 1))
        selection = self._selection(experience, members, context)
        members, scale, recorded = self._scored(experience, members, context), world_size() / divisor, metrics
        if not members:  # this rank still takes part in the exchange of gradients, with weight 0
            members, scale, recorded = share[:1], 0.0, StepMetrics()
        zero_loss = self._zero_loss(experience, members, context)
        batches = self.passes.cut(experience.sequences, members, apart=zero_loss)
        losses = []
        for index, batch in enumerate(batches):
            last = index == len(batches) - 1
            with gradient_sync(self.passes.policy, self.wrapped, now=last):
                if not batch.members:  # padding up to the rank with the most micro-batches
                    self.backward(self._zero(batch, context))
                    continue
                loss = self._loss(batch, experience, selection, context, recorded, on_policy=on_policy)
                self.passes.count.forward += batch.num_tokens
                # A backward pass of zeros is skipped, except the last one: it leaves a gradient on every weight, and
                # ranks exchange gradients in it.
                if last or batch.members[0] not in zero_loss:
                    self.backward(loss * scale)
                    self.passes.count.backward += batch.num_tokens
            losses.append(loss.detach())
            del loss  # frees the graph if the backward pass was skipped, before the next micro-batch needs the memory
        return self._step(experience, members, torch.stack(losses), context, metrics)

    def _step(
        self,
        experience: Experience,
        members: Sequence[int],
        losses: Tensor,
        context: StepContext,
        metrics: StepMetrics,
    ) -> bool:
        """Make the update, unless a loss [M] or the gradient is not finite on any rank."""
        policy = self.passes.policy
        parameters = list(policy.parameters())
        norm = whole(torch.nn.utils.get_total_norm([weight.grad for weight in parameters if weight.grad is not None]))
        broken = sum_over_ranks(float(not bool(losses.isfinite().all())))
        health = UpdateHealth(float(norm), losses, losses_finite=broken == 0)
        if not health.finite:
            self.skipped.leave_out(policy, experience, members, health, step=context.step + 1, run_dir=self.run_dir)
            self._step_without_gradient()
            return False
        if self.max_grad_norm is not None:
            torch.nn.utils.clip_grads_with_norm_(parameters, self.max_grad_norm, norm)
        metrics.add("actor/grad_norm", ratio(health.norm, 1))
        self.optimizer.step()
        self.optimizer.zero_grad()
        self.skipped.reset()
        return True

    def _step_without_gradient(self) -> None:
        """Count a skipped update in Lightning: without gradients the optimizer changes neither weights nor state."""
        self.optimizer.zero_grad()
        self.optimizer.step()

    # ---- the loss of a micro-batch ----

    def _loss(
        self,
        batch: MicroBatch,
        experience: Experience,
        selection: dict[str, Tensor],
        context: StepContext,
        metrics: StepMetrics,
        *,
        on_policy: bool,
    ) -> Tensor:
        """The sum of the weighted token losses of a micro-batch, not yet divided."""
        logprobs, entropy = self.passes.logprobs(batch, context.temperature, entropy_grad=context.entropy_coef > 0)
        if on_policy or not experience.scored[batch.members[0]]:
            experience.remember(batch.members, logprobs.detach(), entropy.detach())
        tokens = self._token_batch(batch, experience, logprobs, entropy, selection, context)
        policy_term = self._corrected(checked_losses(self.objective, tokens), tokens, experience, batch, metrics)
        weights = token_weights(tokens.sequence_ids, tokens.num_sequences, self.loss.aggregation)
        pg_loss = (weights * policy_term.losses).sum()
        metrics.add("actor/pg_loss", ratio(pg_loss, self._divisor(experience, batch.members, context)))
        output = regularized(policy_term, tokens, kl_coef=self.loss.kl_coef, entropy_coef=context.entropy_coef)
        metrics.add_all(output.metrics)
        record_entropy(metrics, entropy, experience.correct[batch.members].to(entropy.device)[tokens.sequence_ids])
        record_ratios(metrics, tokens)
        return (weights * output.losses).sum()

    def _token_batch(
        self,
        batch: MicroBatch,
        experience: Experience,
        logprobs: Tensor,
        entropy: Tensor,
        selection: dict[str, Tensor],
        context: StepContext,
    ) -> TokenBatch:
        tokens = experience.tokens(batch.members).to(logprobs.device)
        rollout_logprobs = experience.rollout_logprobs[tokens]
        advantages = experience.advantages[batch.members].to(logprobs.device)[batch.sequence_ids]
        if (shaping := self.loss.entropy_advantage) is not None:
            old_entropy = experience.old_entropy[tokens]
            advantages = entropy_advantage(advantages, old_entropy, alpha=shaping.alpha, kappa=shaping.kappa)
        by_sampler = self.loss.old_logprobs == "sampler"
        return TokenBatch(
            logprobs=logprobs,
            entropy=entropy,
            old_logprobs=rollout_logprobs if by_sampler else experience.old_logprobs[tokens],
            advantages=advantages,
            sequence_ids=batch.sequence_ids,
            num_sequences=len(batch.members),
            rollout_logprobs=rollout_logprobs,
            ref_logprobs=self.passes.reference_logprobs(batch, context.temperature),
            selection={name: values[tokens] for name, values in selection.items()},
        )

    def _corrected(
        self,
        output: ObjectiveOutput,
        tokens: TokenBatch,
        experience: Experience,
        batch: MicroBatch,
        metrics: StepMetrics,
    ) -> ObjectiveOutput:
        """Apply the sampler correction to the policy term, if the config has one."""
        if self.loss.correction.mode == "off":
            return output
        old = experience.old_logprobs[experience.tokens(batch.members).to(tokens.logprobs.device)]
        correction = self.loss.correction.weigh(old, tokens.rollout_logprobs, tokens.sequence_ids, tokens.num_sequences)
        metrics.add_all({name: mean for name, mean in correction.means.items() if name != "rollout_corr/kl"})
        for name, value in correction.maxima.items():
            metrics.largest(name, value)
        return ObjectiveOutput(output.losses * correction.weights, output.metrics)

    def _zero(self, batch: MicroBatch, context: StepContext) -> Tensor:
        """A loss of 0 that makes the same forward passes as `_loss`, in the same order."""
        logprobs, _ = self.passes.logprobs(batch, context.temperature)
        self.passes.reference_logprobs(batch, context.temperature)
        return logprobs.sum()

    # ---- parts of an update ----

    def _divisor(self, experience: Experience, members: Sequence[int], context: StepContext) -> float:
        """Contribution of `members` to their update's divisor."""
        if not members:
            return 0.0
        ids = experience.sequence_ids(members)
        return local_divisor(ids, len(members), self.loss.aggregation, context.max_tokens)

    def _selection(self, experience: Experience, members: Sequence[int], context: StepContext) -> dict[str, Tensor]:
        """Result of the objective's `prepare` for the update, as columns [T]; every rank takes part."""
        if not self._chooses_tokens:
            return {}
        tokens = experience.tokens(members).to(experience.old_logprobs.device)
        if not self.objective.needs_old_logprobs:
            old = torch.full_like(experience.old_logprobs[tokens], torch.nan)
        else:
            by_sampler = self.loss.old_logprobs == "sampler"
            old = (experience.rollout_logprobs if by_sampler else experience.old_logprobs)[tokens]
        update = update_tokens(
            experience, members, old, run_seed=self.run_seed, step=context.step, all_gather=cat_over_ranks
        )
        columns = {}
        for name, values in self.objective.prepare(update).items():
            columns[name] = values.new_zeros(len(experience.old_logprobs), device=tokens.device)
            columns[name][tokens] = values.to(tokens.device)
        return columns

    def _zero_loss(self, experience: Experience, members: Sequence[int], context: StepContext) -> set[int]:
        """The members whose loss is 0, as their prompt is zero-advantage.

        Empty if another term of the loss has a gradient without an advantage, and with sharded weights, where every
        rank takes part in every pass.
        """
        if (
            self.passes.sharded
            or not self.objective.zero_without_advantage
            or self.loss.kl_coef > 0
            or context.entropy_coef > 0
            or self.loss.adaptive_entropy is not None
        ):
            return set()
        return experience.zero_advantage(members)

    def _scored(self, experience: Experience, members: Sequence[int], context: StepContext) -> list[int]:
        """The members that get a forward pass: all, or all but those whose loss is 0."""
        if self.score_zero_advantage or self.objective.needs_old_logprobs or self._chooses_tokens:
            return list(members)
        zero_loss = self._zero_loss(experience, members, context)
        return [member for member in members if member not in zero_loss]
