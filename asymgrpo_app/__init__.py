"""AsymGRPO: train language models with verifiable rewards and an asymmetric group advantage."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from asymgrpo_app.version import __version__

__all__ = [
    "AsymGRPOModule",
    "EvaluationSet",
    "PromptDataModule",
    "VLLMRolloutCallback",
    "__version__",
    "run_callbacks",
]

if TYPE_CHECKING:
    from asymgrpo_app.callbacks.defaults import run_callbacks
    from asymgrpo_app.callbacks.rollout import VLLMRolloutCallback
    from asymgrpo_app.datamodule import PromptDataModule
    from asymgrpo_app.evaluation.sets import EvaluationSet
    from asymgrpo_app.module import AsymGRPOModule

_PLACES = {
    "AsymGRPOModule": "module",
    "EvaluationSet": "evaluation.sets",
    "PromptDataModule": "datamodule",
    "VLLMRolloutCallback": "callbacks.rollout",
    "run_callbacks": "callbacks.defaults",
}


def __getattr__(name: str) -> Any:
    """Load what is public on first use, so that `import asymgrpo_app` stays free of torch."""
    if name in _PLACES:
        return getattr(import_module(f"{__name__}.{_PLACES[name]}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
