"""TensorBoard output beside scalars: layout, samples, histograms, advantage curves, log-probability changes."""

from collections.abc import Sequence
from itertools import chain, zip_longest
from math import ceil
from typing import Any

import torch
from lightning.pytorch import Callback, Trainer
from lightning.pytorch.loggers import TensorBoardLogger
from torch import Tensor

from asymgrpo_app.algorithm.advantages import AdvantageEstimator, AsymGRPO, GroupRewards
from asymgrpo_app.algorithm.metrics import mean_of
from asymgrpo_app.errors import UserError, at_least_1
from asymgrpo_app.metrics import StepMetrics
from asymgrpo_app.module import AsymGRPOModule
from asymgrpo_app.parallel.ranks import gather_objects
from asymgrpo_app.prompts.base import EncodedPrompt
from asymgrpo_app.rollout.types import JudgedCompletion
from asymgrpo_app.update.experience import Experience

LAYOUT = {
    "Watch": {
        "validation accuracy": [r"val/.*/(avg|pass|maj)@.*", r"val/.*/greedy"],
        "training accuracy": ["reward/mean"],
        "groups: none, all, some solved": ["reward/solved_none", "reward/solved_all", "reward/mixed"],
        "entropy of right and of wrong completions": ["actor/entropy$", "actor/entropy_pos", "actor/entropy_neg"],
        "entropy by group accuracy": ["method/entropy_.*"],
        "Cov(log pi, A) by group accuracy": ["method/cov_.*"],
        "change of log pi by the update": ["method/logprob_change_.*"],
        "gradient mass of each side": ["advantages/mass_pos", "advantages/mass_neg"],
        "gradient norm": ["actor/grad_norm"],
        "completion length": ["response_length/mean", "response_length/pos", "response_length/neg"],
        "sampler against trainer": ["rollout_corr/logprob_abs_diff_max"],
        "seconds by phase": ["timing_s/step", "timing_s/gen", "timing_s/reward", "timing_s/update_actor"],
    },
    "The rest": {
        "groups over whole epochs": ["reward/epoch_.*"],
        "verifier: no answer, timeout, error": ["reward/no_answer", "reward/timeout", "reward/error"],
        "second opinion on accepted answers": ["second_opinion/.*"],
        "prompts left out or met before": ["data/.*"],
        "cut at the limit": ["response_length/clip_ratio"],
        "shortest and longest completion": ["response_length/min", "response_length/max"],
        "exponents": ["advantages/beta_.*"],
        "largest advantage": ["advantages/abs_max"],
        "mean advantage, and what shapes it": ["advantages/mean", "advantages/shaping", "advantages/overlong_penalty"],
        "policy loss": ["actor/pg_loss"],
        "divisor of the loss": ["actor/loss_divisor"],
        "KL to the old policy and to the reference": ["actor/ppo_kl", "actor/kl_loss"],
        "clipped tokens": ["actor/pg_clipfrac.*", "actor/kl_cov_frac"],
        "ratio to the old policy by sign": ["actor/ratio_pos", "actor/ratio_neg"],
        "updates left out as not finite": ["actor/skipped_updates"],
        "largest ratio": ["actor/ratio_max"],
        "learning rate and entropy bonus": ["actor/lr", "actor/entropy_coef"],
        "sampler against trainer: means": ["rollout_corr/kl", "rollout_corr/logprob_abs_diff_mean"],
        "sampler correction": ["rollout_corr/ratio_.*", "rollout_corr/masked"],
        "dynamic sampling": ["dynamic_sampling/.*"],
        "seconds beside the phases": [
            "timing_s/old_log_prob",
            "timing_s/update_weights",
            "timing_s/canary",
            "timing_s/second_opinion",
            "timing_s/testing",
            "timing_s/save_checkpoint",
        ],
        "tokens per second": ["perf/throughput"],
        "memory": ["perf/cpu_memory_gb", "perf/max_memory_gb"],
        "use of the GPU": ["perf/mfu"],
    },
}
"""The charts of TensorBoard's custom scalars, by title with the tags: those to watch first, then the rest."""


class TensorBoardDetails(Callback):
    """Writes histograms and samples, and measures how an update changed the log-probabilities of its completions.

    Args:
        every_n_steps: RL steps between two writings, at least 1; the first step is always written.
        samples: Number of completions shown as text each time, right and wrong ones in turn; 0: none.
        change_completions: Number of completions that are scored again after the update, for `method/logprob_change_*`;
            this takes an extra forward pass over them. 0: none.
    """

    def __init__(self, every_n_steps: int = 10, samples: int = 6, change_completions: int = 64) -> None:
        at_least_1("tensorboard.every_n_steps", every_n_steps)
        for name, value in {"samples": samples, "change_completions": change_completions}.items():
            if value < 0:
                raise UserError(f"tensorboard.{name} must be 0 or more, got {value}.")
        self.every_n_steps = every_n_steps
        self.samples = samples
        self.change_completions = change_completions
        self._drawn: dict[str, float] | None = None  # the exponents of the last figure

    def on_train_start(self, trainer: Trainer, pl_module: AsymGRPOModule) -> None:
        layout = {
            name: {title: ["Multiline", tags] for title, tags in charts.items()} for name, charts in LAYOUT.items()
        }
        for writer in _writers(trainer):
            writer.add_custom_scalars(layout)

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: AsymGRPOModule, outputs: Any, batch: Any, *_: Any
    ) -> None:
        step = pl_module.completed_steps
        if not trainer.loggers or (step % self.every_n_steps and step != 1):
            return
        record = pl_module.last_step
        assert record is not None
        groups = record.groups
        histograms = {
            "group_accuracy": groups.accuracy[groups.num_valid > 0],
            "response_length": record.experience.lengths,
            "advantages": record.advantages[groups.valid],
            "ratio_after_update": self._log_change(pl_module, record.experience, record.temperature),
        }
        of_ranks = gather_objects(histograms)
        for writer in _writers(trainer) if trainer.is_global_zero else []:
            for name in histograms:
                values = torch.cat([part[name] for part in of_ranks])
                if values.numel():
                    writer.add_histogram(f"histograms/{name}", values, step)
            if self.samples:
                table = samples_table(batch.rollouts.prompts, batch.rollouts.groups, self.samples)
                writer.add_text("samples", table, step)
            if (exponents := pl_module.advantage.scalars(pl_module.progress)) != self._drawn:
                figure = advantage_curves(pl_module.advantage, groups.rewards.shape[1], pl_module.progress)
                writer.add_figure("advantage_curves", figure, step)
                self._drawn = exponents

    def _log_change(self, pl_module: AsymGRPOModule, experience: Experience, temperature: float) -> Tensor:
        """Score some completions under the updated policy; returns the ratios of their tokens on this rank, [T]."""
        if self.change_completions == 0:
            return torch.zeros(0)
        known = experience.where(experience.valid & experience.scored)
        # Chosen over all ranks, so that the number of ranks changes nothing, and spread over the step's prompts.
        everywhere = sorted(chain.from_iterable(gather_objects([experience.identities[index] for index in known])))
        identities = set(everywhere[:: max(1, ceil(len(everywhere) / self.change_completions))])
        chosen = [index for index in known if experience.identities[index] in identities]
        after = pl_module.sequence_logprobs([experience.sequences[index] for index in chosen], temperature)
        before = experience.old_logprobs.cpu()[experience.tokens(chosen)].split(experience.lengths[chosen].tolist())
        changes = [now - old for now, old in zip(after, before, strict=True)] if chosen else []
        of_completion = torch.tensor([float(change.mean()) for change in changes])
        correct = experience.correct[chosen]
        metrics = StepMetrics()
        metrics.add("method/logprob_change_pos", mean_of(of_completion, correct))
        metrics.add("method/logprob_change_neg", mean_of(of_completion, ~correct))
        pl_module.publish(metrics.combined(gather_objects))
        return torch.cat(changes).exp() if changes else torch.zeros(0)


def samples_table(prompts: Sequence[EncodedPrompt], groups: Sequence[Sequence[JudgedCompletion]], number: int) -> str:
    """A Markdown table of some completions with prompt, verdict and reference: right and wrong ones in turn."""
    judged = [(prompt, completion) for prompt, group in zip(prompts, groups, strict=True) for completion in group]
    right = [pair for pair in judged if _right(pair[1])]
    wrong = [pair for pair in judged if not _right(pair[1])]
    in_turn = [pair for pairs in zip_longest(right, wrong) for pair in pairs if pair is not None]
    rows = ["| verdict | prompt | completion | reference |", "| --- | --- | --- | --- |"]
    for prompt, completion in in_turn[:number]:
        verdict = "right" if _right(completion) else "wrong"
        notes = [str(completion.verdict.status)] if completion.verdict.status != "ok" else []
        notes += ["cut"] if completion.completion.truncated else []
        if notes:
            verdict += f" ({', '.join(notes)})"
        cells = (verdict, prompt.rendered, completion.text, str(prompt.prompt.row.get("answer", "")))
        rows.append("| " + " | ".join(_cell(cell) for cell in cells) + " |")
    return "\n".join(rows)


def _right(judged: JudgedCompletion) -> bool:
    """Whether a completion is right as in the step's rewards: one that the limit cut never is."""
    return judged.verdict.correct and not judged.completion.truncated


def _cell(text: str) -> str:
    """Model output escaped as a table cell, so that it is shown as it is; at most 500 characters of it."""
    shown = text if len(text) <= 500 else f"{text[:500]} ..."
    for mark in "&\\`*_|<>[]":  # the ampersand first: the others become entities
        shown = shown.replace(mark, f"&#{ord(mark)};")
    return "<br>".join(shown.replace("\r\n", "\n").replace("\r", "\n").split("\n"))


def advantage_curves(estimator: AdvantageEstimator, group_size: int, progress: float) -> Any:
    """A figure of the run's advantages over group accuracy, against GRPO and REINFORCE."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9, 4), layout="constrained")
    axes = figure.subplots(1, 2)
    curves: dict[str, tuple[AdvantageEstimator, str]] = {
        "REINFORCE": (AsymGRPO(beta_pos=0.0, beta_neg=0.0, degenerate_groups="keep"), ":"),
        "GRPO": (AsymGRPO(beta_pos=0.5, beta_neg=0.5), "--"),
        "this run": (estimator, "-"),
    }
    rewards = torch.tensor([[float(index < k) for index in range(group_size)] for k in range(group_size + 1)])
    groups = GroupRewards(rewards, torch.ones_like(rewards).bool(), progress)
    p = groups.accuracy
    for name, (each, style) in curves.items():
        values = each(groups)
        axes[0].plot(p[1:], values[1:, 0], style, marker=".", label=name)
        axes[1].plot(p[:-1], values[:-1, -1], style, marker=".", label=name)
    for axis, title in zip(axes, ("right completions", "wrong completions"), strict=True):
        axis.set(title=title, xlabel="group accuracy p", ylabel="advantage A")
        axis.legend()
    return figure


def _writers(trainer: Trainer) -> list[Any]:
    """TensorBoard's writers; on ranks other than the first they do nothing."""
    return [logger.experiment for logger in trainer.loggers if isinstance(logger, TensorBoardLogger)]
