"""Optimizer updates from a step's experience: cut, forward, loss, backward, step."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from asymgrpo_app.algorithm.aggregation import local_divisor, token_weights
from asymgrpo_app.algorithm.entropy import entropy_advantage
from asymgrpo_app.algorithm.metrics import ratio
from asymgrpo_app.algorithm.objective import Objective, TokenBatch, UpdateTokens, checked_losses, regularized
from asymgrpo_app.metrics import StepMetrics
from asymgrpo_app.microbatch.microbatch import MicroBatch
from asymgrpo_app.parallel.ranks import cat_over_ranks, sum_over_ranks, world_size
from asymgrpo_app.parallel.sharding import gradient_sync, whole
from asymgrpo_app.update.experience import Experience, token_keys
from asymgrpo_app.update.loss_config import LossConfig
from asymgrpo_app.update.non_finite import SkippedUpdates, UpdateHealth
from asymgrpo_app.update.passes import ForwardPasses
from asymgrpo_app.update.step_metrics import record_correction, record_entropy, record_ratios


@dataclass
class PolicyUpdate:
    """Makes the optimizer updates of one RL step, each from one mini-batch (share of the prompts) of its experience.

    Attributes:
        experience: The step's completions.
        metrics: Receives what the updates log.
        passes: Forward passes of the policy and its reference.
        objective: Policy loss per token.
        loss: Aggregation, and the terms around the objective.
        wrapped: The policy as the strategy wraps it.
        optimizer: Lightning's wrapper of the optimizer.
        backward: Lightning's `manual_backward`.
        skipped: Counter of updates that were skipped because they were not finite.
        max_grad_norm: Largest gradient norm; None: no limit.
        score_zero_advantage: Whether zero-advantage prompts get a forward pass, for metrics alone.
        run_seed: Seed of the run.
        run_dir: Folder of the run, for a report of an update that is not finite.
        step: RL steps completed before this one.
        temperature: Sampling temperature; the policy's log-probabilities use the same.
        max_tokens: Length limit of completions, in tokens.
        entropy_coef: Weight of the entropy bonus in this step.
    """

    experience: Experience
    metrics: StepMetrics
    passes: ForwardPasses
    objective: Objective
    loss: LossConfig
    wrapped: nn.Module
    optimizer: Any
    backward: Callable[[Tensor], None]
    skipped: SkippedUpdates
    max_grad_norm: float | None
    score_zero_advantage: bool
    run_seed: int
    run_dir: str | Path
    step: int
    temperature: float
    max_tokens: int
    entropy_coef: float

    # ---- the updates of a step ----

    @torch.no_grad()
    def score_old(self) -> None:
        """Compute `old_logprobs` and `old_entropy` of the completions that need them before the first update.

        The first update is exactly on policy: its own forward pass gives them, unless the objective needs statistics.
        """
        experience = self.experience
        ahead = (experience.updates > 0) | self.objective.needs_old_logprobs
        waiting = [member for member in self._scored(experience.where(experience.valid)) if ahead[member]]
        for batch in self.passes.cut(experience.sequences, waiting):
            experience.remember(batch, *self.passes.logprobs(batch, self.temperature))

    def update(self, number: int, *, on_policy: bool) -> bool:
        """Make one optimizer update from mini-batch `number`; returns whether the policy has changed.

        In the first update of a step (`on_policy`) the old log-probabilities are the current ones, to the last bit.
        """
        share = self.experience.where(self.experience.updates == number)
        members = [member for member in share if self.experience.valid[member]]
        divisor = sum_over_ranks(self._divisor(members))
        if divisor == 0:  # every completion was left out, on every rank
            self._step_without_gradient()
            return False
        self.metrics.add("actor/loss_divisor", ratio(divisor, 1))
        selection = self._selection(members)
        members, scale, metrics = self._scored(members), world_size() / divisor, self.metrics
        if not members:  # this rank still takes part in the exchange of gradients, with weight 0
            members, scale, metrics = share[:1], 0.0, StepMetrics()
        zero_loss = self._zero_loss(members)
        batches = self.passes.cut(self.experience.sequences, members, apart=zero_loss)
        losses = []
        for index, batch in enumerate(batches):
            last = index == len(batches) - 1
            with gradient_sync(self.passes.policy, self.wrapped, now=last):
                if not batch.members:  # padding up to the rank with the most micro-batches
                    self.backward(self._zero(batch))
                    continue
                loss = self._loss(batch, selection, metrics, on_policy=on_policy)
                self.passes.count.forward += batch.num_tokens
                # A backward pass of zeros is skipped, except the last one: it leaves a gradient on every weight, and
                # ranks exchange gradients in it.
                if last or batch.members[0] not in zero_loss:
                    self.backward(loss * scale)
                    self.passes.count.backward += batch.num_tokens
            losses.append(loss.detach())
            del loss  # frees the graph if the backward pass was skipped, before the next micro-batch needs the memory
        return self._step(members, torch.stack(losses))

    def _step(self, members: Sequence[int], losses: Tensor) -> bool:
        """Make the update, unless a loss [M] or the gradient is not finite on any rank."""
        policy = self.passes.policy
        parameters = list(policy.parameters())
        norm = whole(torch.nn.utils.get_total_norm([weight.grad for weight in parameters if weight.grad is not None]))
        # The only numbers of an update that the host waits for.
        length, finite = torch.stack([norm.double(), losses.isfinite().all().to(norm.device).double()]).tolist()
        health = UpdateHealth(length, losses, losses_finite=sum_over_ranks(1 - finite) == 0)
        if not health.finite:
            self.skipped.leave_out(policy, self.experience, members, health, step=self.step + 1, run_dir=self.run_dir)
            self._step_without_gradient()
            return False
        if self.max_grad_norm is not None:
            torch.nn.utils.clip_grads_with_norm_(parameters, self.max_grad_norm, norm)
        self.metrics.add("actor/grad_norm", ratio(health.norm, 1))
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
        self, batch: MicroBatch, selection: dict[str, Tensor], metrics: StepMetrics, *, on_policy: bool
    ) -> Tensor:
        """The sum of the weighted token losses of a micro-batch, not yet divided."""
        experience = self.experience
        logprobs, entropy = self.passes.logprobs(batch, self.temperature, entropy_grad=self.entropy_coef > 0)
        if on_policy or not experience.scored[batch.members[0]]:
            experience.remember(batch, logprobs.detach(), entropy.detach())
        tokens = self._token_batch(batch, logprobs, entropy, selection)
        output = checked_losses(self.objective, tokens)
        if self.loss.correction.mode != "off":
            factors, ratios, applied = self.loss.correction.weigh(
                experience.old_logprobs[batch.places],
                tokens.rollout_logprobs,
                tokens.sequence_ids,
                tokens.num_sequences,
            )
            record_correction(metrics, ratios, applied)
            output.losses = output.losses * factors
        weights = token_weights(batch.sequence_ids, len(batch.members), self.loss.aggregation)
        metrics.add("actor/pg_loss", ratio((weights * output.losses).sum(), self._divisor(batch.members)))
        output = regularized(output, tokens, kl_coef=self.loss.kl_coef, entropy_coef=self.entropy_coef)
        metrics.add_all(output.metrics)
        record_entropy(metrics, entropy, experience.token_correct[batch.places])
        record_ratios(metrics, tokens)
        return (weights * output.losses).sum()

    def _token_batch(
        self, batch: MicroBatch, logprobs: Tensor, entropy: Tensor, selection: dict[str, Tensor]
    ) -> TokenBatch:
        experience, tokens = self.experience, batch.places
        advantages = experience.token_advantages[tokens]
        if (shaping := self.loss.entropy_advantage) is not None:
            old_entropy = experience.old_entropy[tokens]
            advantages = entropy_advantage(advantages, old_entropy, alpha=shaping.alpha, kappa=shaping.kappa)
        return TokenBatch(
            logprobs=logprobs,
            entropy=entropy,
            old_logprobs=self._old_logprobs()[tokens],
            advantages=advantages,
            sequence_ids=batch.sequence_ids,
            num_sequences=len(batch.members),
            rollout_logprobs=experience.rollout_logprobs[tokens],
            ref_logprobs=self.passes.reference_logprobs(batch, self.temperature),
            selection={name: values[tokens] for name, values in selection.items()},
        )

    def _zero(self, batch: MicroBatch) -> Tensor:
        """A loss of 0 that makes the same forward passes as `_loss`, in the same order."""
        logprobs, _ = self.passes.logprobs(batch, self.temperature)
        self.passes.reference_logprobs(batch, self.temperature)
        return logprobs.sum()

    # ---- parts of an update ----

    def _divisor(self, members: Sequence[int]) -> float:
        """Contribution of `members` to their update's divisor."""
        ids = self.experience.sequence_ids(members)
        return local_divisor(ids, len(members), self.loss.aggregation, self.max_tokens)

    def _old_logprobs(self) -> Tensor:
        """Log-probabilities of the step's tokens under the old policy of the ratio, [T]."""
        by_sampler = self.loss.old_logprobs == "sampler"
        return self.experience.rollout_logprobs if by_sampler else self.experience.old_logprobs

    def _chooses_tokens(self) -> bool:
        """Whether the objective takes statistics over the tokens of an update."""
        return type(self.objective).prepare is not Objective.prepare

    def _selection(self, members: Sequence[int]) -> dict[str, Tensor]:
        """Result of the objective's `prepare` for the update, as columns [T]; every rank takes part."""
        if not self._chooses_tokens():
            return {}
        experience, old = self.experience, self._old_logprobs()
        known = old if self.objective.needs_old_logprobs else torch.full_like(old, torch.nan)
        tokens, sequence_ids = experience.tokens(members).to(old.device), experience.sequence_ids(members)
        update = UpdateTokens(
            old_logprobs=known[tokens].cpu(),
            advantages=experience.advantages[list(members)][sequence_ids],
            sequence_ids=sequence_ids,
            token_keys=token_keys(experience, members, self.run_seed, self.step),
            all_gather=cat_over_ranks,
        )
        columns = {}
        for name, values in self.objective.prepare(update).items():
            columns[name] = values.new_zeros(len(old), device=tokens.device)
            columns[name][tokens] = values.to(tokens.device)
        return columns

    def _zero_loss(self, members: Sequence[int]) -> set[int]:
        """The members whose loss is 0, as their prompt is zero-advantage.

        Empty if another term of the loss has a gradient without an advantage, and with sharded weights, where every
        rank takes part in every pass.
        """
        if (
            self.passes.sharded
            or not self.objective.zero_without_advantage
            or self.loss.kl_coef > 0
            or self.entropy_coef > 0
            or self.loss.adaptive_entropy is not None
        ):
            return set()
        return self.experience.zero_advantage(members)

    def _scored(self, members: Sequence[int]) -> list[int]:
        """The members that get a forward pass: all, or all but those whose loss is 0."""
        if self.score_zero_advantage or self.objective.needs_old_logprobs or self._chooses_tokens():
            return list(members)
        zero_loss = self._zero_loss(members)
        return [member for member in members if member not in zero_loss]
