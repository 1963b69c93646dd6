"""AsymGRPO: train language models with verifiable rewards and an asymmetric group advantage."""

from typing import TYPE_CHECKING, Any

from asymgrpo_app.version import __version__

__all__ = ["AsymGRPOModule", "PromptDataModule", "VLLMRolloutCallback", "__version__"]

if TYPE_CHECKING:
    from asymgrpo_app.callbacks.rollout import VLLMRolloutCallback
    from asymgrpo_app.datamodule import PromptDataModule
    from asymgrpo_app.module import AsymGRPOModule


def __getattr__(name: str) -> Any:
    """Load the public classes on first use, so that `import asymgrpo_app` stays free of torch."""
    if name == "AsymGRPOModule":
        from asymgrpo_app.module import AsymGRPOModule

        return AsymGRPOModule
    if name == "PromptDataModule":
        from asymgrpo_app.datamodule import PromptDataModule

        return PromptDataModule
    if name == "VLLMRolloutCallback":
        from asymgrpo_app.callbacks.rollout import VLLMRolloutCallback

        return VLLMRolloutCallback
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
