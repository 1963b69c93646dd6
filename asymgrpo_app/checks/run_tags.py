"""The scalars that a run gives, so that a callback may go by one of them."""

from difflib import get_close_matches
from typing import Any

import torch
from lightning.pytorch import Trainer

from asymgrpo_app.algorithm.objective import Objective, TokenBatch, UpdateTokens, checked_losses
from asymgrpo_app.datamodule import PromptDataModule
from asymgrpo_app.evaluation.outcomes import ACCURACIES
from asymgrpo_app.module import AsymGRPOModule

_ALWAYS = {
    "reward": ("mean", "solved_all", "solved_none", "mixed", "timeout", "error", "no_answer"),
    "data": ("too_long", "bad_row", "in_validation"),
    "advantages": ("mean", "abs_max", "mass_pos", "mass_neg"),
    "actor": (
        *("entropy", "entropy_pos", "entropy_neg", "pg_loss", "loss_divisor", "grad_norm", "skipped_updates", "lr"),
        *("ratio_pos", "ratio_neg", "ratio_max"),
    ),
    "response_length": ("mean", "pos", "neg", "min", "max", "clip_ratio"),
    "rollout_corr": ("kl", "logprob_abs_diff_mean", "logprob_abs_diff_max"),
    "timing_s": ("step", "gen", "reward", "update_weights", "canary", "old_log_prob", "update_actor"),
    "perf": ("throughput", "cpu_memory_gb"),
}
_CORRECTION = ("ratio_raw_mean", "ratio_raw_max", "ratio_mean", "ratio_max", "masked")
_DYNAMIC = ("acceptance_rate", "extra_completions", "unfilled", "rounds")
_SECOND_OPINION = ("drawn", "refused", "failed", "disagreement", "lower_end")
_BINS = ("p00-25", "p25-50", "p50-75", "p75-100")


def validation_tags(data: PromptDataModule, trainer: Trainer) -> list[str]:
    """Tags of the accuracies that every validation of this run gives; none if it makes no validation."""
    if trainer.limit_val_batches == 0:
        return []
    return [
        f"val/{name}/{key}"
        for name, chosen in data.evaluation_sets.items()
        for key in chosen.metrics().choice.names(chosen.samples)
        if key.partition("@")[0] in ACCURACIES
    ]


def run_tags(module: AsymGRPOModule, data: PromptDataModule, trainer: Trainer, section: Any) -> dict[str, bool]:
    """Tags that are in `trainer.callback_metrics` in a training run, in the order of docs/metrics.md.

    Returns:
        By tag, whether every step gives it (a validation tag: every validation). The others come in some steps alone,
        such as the entropy of a bin of groups that may be empty. What only a class of the user's own logs is missing.
    """
    of_validations = validation_tags(data, trainer)
    tags = {f"{group}/{name}": True for group, names in _ALWAYS.items() for name in names}
    tags |= dict.fromkeys(of_validations, True)
    if of_validations:
        tags["timing_s/testing"] = True
    if data.train_source is not None and data.train_source.size is not None and data.repeat_steps is None:
        tags |= dict.fromkeys(("reward/epoch_solved_all", "reward/epoch_solved_none"), False)
    tags |= {f"method/{name}_{share}": False for name in ("entropy", "cov") for share in _BINS}
    if trainer.loggers and section.tensorboard.change_completions > 0:
        tags |= dict.fromkeys(("method/logprob_change_pos", "method/logprob_change_neg"), False)
    if section.rollout.second_opinion is not None:
        tags |= {f"second_opinion/{name}": False for name in _SECOND_OPINION} | {"timing_s/second_opinion": True}
    tags |= dict.fromkeys(_of_method(module, section.rollout), True)
    if trainer.strategy.root_device.type == "cuda":
        tags |= {"perf/max_memory_gb": True, "perf/mfu": False}
    return tags


def _of_method(module: AsymGRPOModule, rollout: Any) -> list[str]:
    """Tags of what is chosen for advantages, loss and sampling."""
    loss = module.loss
    tags = [f"advantages/{name}" for name in module.advantage.scalars(0.0)]
    tags += ["advantages/shaping"] if module.shaping else []
    tags += ["advantages/overlong_penalty"] if loss.overlong_buffer is not None else []
    tags += objective_tags(module.objective)
    tags += ["actor/kl_loss"] if loss.kl_coef > 0 else []
    tags += ["actor/entropy_coef"] if loss.adaptive_entropy is not None else []
    tags += [f"rollout_corr/{name}" for name in _CORRECTION if loss.correction.mode != "off"]
    return tags + [f"dynamic_sampling/{name}" for name in _DYNAMIC if rollout.dynamic_sampling is not None]


def objective_tags(objective: Objective) -> list[str]:
    """Tags that an objective gives for an update, tried on one of two completions with two tokens each.

    None if an objective of the user's own cannot do with that update.
    """
    ids, logprobs = torch.tensor([0, 0, 1, 1]), torch.tensor([-0.5, -1.0, -1.5, -2.0])
    advantages = torch.tensor([1.0, 1.0, -1.0, -1.0])
    keys = torch.linspace(0.1, 0.4, 4, dtype=torch.float64)
    try:
        selection = objective.prepare(UpdateTokens(logprobs, advantages, ids, keys, lambda values: values))
        batch = TokenBatch(
            logprobs=logprobs.clone().requires_grad_(),
            entropy=torch.ones(4),
            old_logprobs=logprobs,
            advantages=advantages,
            sequence_ids=ids,
            num_sequences=2,
            rollout_logprobs=logprobs,
            ref_logprobs=logprobs,
            selection=dict(selection),
        )
        return list(checked_losses(objective, batch).metrics)
    except Exception:  # a class of the user's own: training says what is wrong with it
        return []


def near(tag: str, known: list[str]) -> str:
    """The known tags that are most like one that is not known, as a list for a message."""
    tail = tag.rpartition("/")[2].lower()
    found = get_close_matches(tag, known, n=4, cutoff=0.5)
    found += [other for other in known if other.rpartition("/")[2].lower() == tail and other not in found]
    found += [other for other in known if other.startswith(("val/", "reward/mean")) and other not in found]
    return ", ".join(found[:6])
