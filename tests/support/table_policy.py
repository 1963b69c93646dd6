"""RL steps without a language model: log-probabilities and entropies come from a table, the loop is Lightning's own.

A test puts down the policy's log-probabilities at the start of the step and those that it has now, so that the ratios
are the ones it wants, and reads what the step logged and the gradient that each token got.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any

import torch
from lightning.pytorch import Callback, LightningDataModule, Trainer
from lightning.pytorch.loggers.logger import Logger
from torch import Tensor, nn
from torch.utils.data import DataLoader

from asymgrpo_app.microbatch.microbatch import MicroBatch
from asymgrpo_app.module import AsymGRPOModule
from asymgrpo_app.prompts.base import EncodedPrompt, Prompt
from asymgrpo_app.rewards.base import Status, Verdict
from asymgrpo_app.rewards.countdown import CountdownVerifier
from asymgrpo_app.rollout.types import (
    AttachesRollouts,
    Completion,
    JudgedCompletion,
    PromptBatch,
    RolloutBatch,
    SamplingSettings,
)

UPDATES_PER_STEP = 2
"""The first update has no prompts, so that all of them are off policy: their ratios come from the table."""


@dataclass
class Table:
    """What a policy thinks of each token; the token's id is its place in these lists.

    Attributes:
        start_logprobs: Log-probabilities at the start of the step.
        logprobs: Log-probabilities now.
        start_entropy: Entropies at the start of the step.
        entropy: Entropies now.
        reference_logprobs: Log-probabilities under the reference, read where a config holds one.
    """

    start_logprobs: Sequence[float]
    logprobs: Sequence[float]
    start_entropy: Sequence[float]
    entropy: Sequence[float]
    reference_logprobs: Sequence[float]


class TablePolicy(nn.Module):
    """A model whose parameters are its answers."""

    def __init__(self, start: Sequence[Sequence[float]], now: Sequence[Sequence[float]]) -> None:
        super().__init__()
        self.config = SimpleNamespace(_attn_implementation="a table")
        self.start_logprobs, self.start_entropy = (torch.tensor(values) for values in start)
        self.logprobs, self.entropy = (nn.Parameter(torch.tensor(values)) for values in now)


def look_up(
    policy: TablePolicy, batch: MicroBatch, *, temperature: float, entropy_grad: bool = False
) -> tuple[Tensor, Tensor]:
    """Stands in for `token_logprobs`: a pass without gradient is one at the start of the step."""
    if not torch.is_grad_enabled():
        return policy.start_logprobs[batch.targets], policy.start_entropy[batch.targets]
    entropy = policy.entropy if entropy_grad else policy.entropy.detach()
    return policy.logprobs[batch.targets], entropy[batch.targets]


@dataclass
class Step:
    """What one RL step did.

    Attributes:
        logged: The scalars that went to the logger.
        logprob_gradient: Gradient of each token's log-probability, before gradients are clipped.
        entropy_gradient: Gradient of each token's entropy; zeros where the loss does not depend on it.
    """

    logged: dict[str, float]
    logprob_gradient: list[float]
    entropy_gradient: list[float]


def run_steps(
    module: AsymGRPOModule, rollouts: RolloutBatch, table: Table, monkeypatch: Any, steps: int = 1
) -> list[Step]:
    """Train on the same rollouts for a number of steps; the module's optimizer should leave the table as it is."""
    start, reference = (table.start_logprobs, table.start_entropy), (table.reference_logprobs, table.start_entropy)
    loaded = iter([TablePolicy(start, (table.logprobs, table.entropy)), TablePolicy(reference, reference)])
    monkeypatch.setattr("asymgrpo_app.update.policy_module.load_policy", lambda path, attention: next(loaded))
    monkeypatch.setattr("asymgrpo_app.update.passes.policy_logprobs", look_up)
    module.configure_model()
    gradients = {name: _sums_of_gradients(parameter, steps) for name, parameter in module.policy.named_parameters()}
    logger = _Logger(gradients)
    trainer = Trainer(
        accelerator="cpu",
        devices=1,
        max_epochs=-1,
        callbacks=[_Given(steps)],
        logger=logger,
        log_every_n_steps=1,
        limit_val_batches=0,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    trainer.fit(module, datamodule=_Batches(rollouts, steps))
    return logger.steps


def rollout_batch(groups: Sequence[Sequence[JudgedCompletion]], max_tokens: int, **treatment: bool) -> RolloutBatch:
    """Groups of judged completions as a step gets them, all in the last update."""
    prompt = Prompt("by hand", "", {"answer": ""}, CountdownVerifier())
    prompts = [EncodedPrompt(prompt, "", [0], index, UPDATES_PER_STEP - 1) for index in range(len(groups))]
    settings = SamplingSettings(temperature=1.0, max_tokens=max_tokens, stop_token_ids=())
    return RolloutBatch(prompts, [list(group) for group in groups], settings, **treatment)


def judged(token_ids: list[int], rollout_logprobs: list[float], *, correct: bool, truncated: bool) -> JudgedCompletion:
    """One completion with its verdict."""
    return JudgedCompletion(Completion(token_ids, rollout_logprobs, truncated), "", Verdict(correct, Status.OK))


def _sums_of_gradients(parameter: nn.Parameter, steps: int) -> list[Tensor]:
    """A sum over micro-batches, which a logged step closes."""
    sums = [torch.zeros_like(parameter)]
    parameter.register_hook(lambda gradient: sums[-1].add_(gradient))
    return sums


class _Given(Callback, AttachesRollouts):
    """The batches have their rollouts already; ends the run after the last of them."""

    def __init__(self, steps: int) -> None:
        self.steps = steps

    def on_train_batch_end(self, trainer: Any, module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        trainer.should_stop = batch_idx + 1 >= self.steps


@dataclass
class _Logger(Logger):
    gradients: dict[str, list[Tensor]]
    steps: list[Step] = field(default_factory=list)
    name = version = None

    def log_hyperparams(self, *args: Any, **kwargs: Any) -> None: ...

    def log_metrics(self, metrics: dict[str, float], step: int | None = None) -> None:
        logprob, entropy = (self.gradients[name][-1].tolist() for name in ("logprobs", "entropy"))
        self.steps.append(Step(metrics, logprob, entropy))
        for sums in self.gradients.values():
            sums.append(torch.zeros_like(sums[-1]))


class _Batches(LightningDataModule):
    seed = 0  # of the run; what token keys are drawn from

    def __init__(self, rollouts: RolloutBatch, steps: int) -> None:
        super().__init__()
        self.batches = [PromptBatch("train", step, rollouts.prompts, rollouts) for step in range(steps)]

    def train_dataloader(self) -> DataLoader[PromptBatch]:
        return DataLoader(self.batches, batch_size=None)
