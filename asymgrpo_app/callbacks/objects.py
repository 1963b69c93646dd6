"""Checks that the objects of a run belong together, as a script may build them.

The command links their settings by itself and checks more before it starts (`asymgrpo_app.checks`).
"""

from lightning.pytorch import Trainer
from lightning.pytorch.trainer.states import TrainerFn

from asymgrpo_app.datamodule import PromptDataModule
from asymgrpo_app.errors import UserError
from asymgrpo_app.evaluation.sets import EvaluationSet
from asymgrpo_app.module import AsymGRPOModule
from asymgrpo_app.policy.loading import load_tokenizer
from asymgrpo_app.prompts.base import PromptSource
from asymgrpo_app.rollout.types import SamplingSettings


def check_objects(trainer: Trainer, module: AsymGRPOModule, settings: SamplingSettings) -> None:
    """Check module, data and sampling of a trainer that is about to run, before the policy is loaded.

    Args:
        trainer: The trainer.
        module: Its module.
        settings: How training samples.

    Raises:
        UserError: With what does not go together.
    """
    data = trainer.datamodule  # type: ignore[attr-defined]
    assert trainer.state.fn is not None
    if not isinstance(module, AsymGRPOModule):
        raise UserError(f"VLLMRolloutCallback samples for an AsymGRPOModule, got {type(module).__name__}.")
    if not isinstance(data, PromptDataModule):
        raise UserError(f"trainer.{trainer.state.fn.value} needs a PromptDataModule, got {type(data).__name__}.")
    _check_kinds(data)
    if data.tokenizer_path != module.policy_path:
        own = load_tokenizer(module.policy_path).get_vocab()
        if data.tokenizer.get_vocab() != own:
            raise UserError(
                f"tokenizer of PromptDataModule is {data.tokenizer_path}, whose vocabulary is not that of the policy "
                f"{module.policy_path}: give both the same folder or id."
            )
    if trainer.state.fn != TrainerFn.FITTING:
        if not data.evaluation_sets:
            raise UserError("validation of PromptDataModule is empty: name at least one set to evaluate.")
        return
    if data.train_source is None:
        raise UserError("train of PromptDataModule is not set: fit needs a source of prompts.")
    if data.updates_per_step != module.updates_per_step:
        raise UserError(
            f"updates_per_step is {module.updates_per_step} in AsymGRPOModule and {data.updates_per_step} in "
            "PromptDataModule: give both the same, as the prompts of a step are split into its updates."
        )
    if settings.cuts and module.loss.correction.mode == "off":
        raise UserError(
            "top_p, top_k and min_p of VLLMRolloutCallback cut the distribution that training samples from, which "
            "biases the ratio of policy and sampler: leave them out, or set loss.correction.mode of AsymGRPOModule."
        )


def _check_kinds(data: PromptDataModule) -> None:
    if not isinstance(data.train_source, PromptSource | None):
        raise UserError(
            "train of PromptDataModule must be a source of prompts (docs/data.md), got "
            f"{type(data.train_source).__name__}."
        )
    for name, chosen in data.evaluation_sets.items():
        if not isinstance(chosen, EvaluationSet):
            raise UserError(
                "validation of PromptDataModule must be EvaluationSets by name, got "
                f"{type(chosen).__name__} for {name}."
            )
