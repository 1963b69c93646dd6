"""The callbacks of a training run, for scripts."""

from lightning.pytorch import Callback

from asymgrpo_app.callbacks.checkpoint import RunCheckpoint
from asymgrpo_app.callbacks.epochs import EpochShares
from asymgrpo_app.callbacks.evaluation import FinalResults
from asymgrpo_app.callbacks.export import ExportCallback
from asymgrpo_app.callbacks.progress import RunProgress
from asymgrpo_app.callbacks.rollout import VLLMRolloutCallback
from asymgrpo_app.callbacks.safe_stop import SafeStop
from asymgrpo_app.callbacks.summary import RunSummary
from asymgrpo_app.callbacks.tensorboard import TensorBoardDetails


def run_callbacks(
    rollout: VLLMRolloutCallback, checkpoint: RunCheckpoint | None = None, time_limit_s: float | None = None
) -> list[Callback]:
    """The callbacks that `asymgrpo fit` gives its trainer, in their order, but for the one that writes the config.

    Args:
        rollout: The callback that samples.
        checkpoint: The callback that saves; with its defaults if left out.
        time_limit_s: Seconds from the start of the process after which the run saves its state and stops; None: no
            limit.
    """
    return [
        SafeStop(time_limit_s),
        rollout,
        RunProgress(),
        EpochShares(),
        ExportCallback(),
        FinalResults(),
        RunSummary(),
        TensorBoardDetails(),
        checkpoint or RunCheckpoint(),
    ]
