"""The summary at the end of a run: how it ended, accuracy before and after, time per phase, and its outputs."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from lightning.pytorch import Callback, Trainer
from lightning.pytorch.loggers import Logger, TensorBoardLogger
from lightning.pytorch.trainer.states import TrainerFn

from asymgrpo_app.callbacks.checkpoint import RunCheckpoint, run_checkpoint
from asymgrpo_app.callbacks.evaluation import RESULTS_NAME
from asymgrpo_app.callbacks.export import export_folder
from asymgrpo_app.callbacks.stop_reasons import StopReasons
from asymgrpo_app.checkpoints.folder import list_checkpoints
from asymgrpo_app.module import AsymGRPOModule
from asymgrpo_app.runtime.console import say

_PHASES = {
    "gen": "sampling",
    "reward": "verifying",
    "old_log_prob": "old log-probabilities",
    "update_actor": "policy update",
    "update_weights": "weights to the sampler",
    "canary": "canary",
}


class RunSummary(Callback):
    """Prints a short table when a run ends."""

    def __init__(self) -> None:
        self.evaluations: list[tuple[int, dict[str, float]]] = []
        self.seconds: list[dict[str, float]] = []
        self._reasons = StopReasons([])

    def on_fit_start(self, trainer: Trainer, pl_module: AsymGRPOModule) -> None:
        self._reasons = StopReasons(trainer.callbacks)  # type: ignore[attr-defined]

    def setup(self, trainer: Trainer, pl_module: AsymGRPOModule, stage: str) -> None:
        if stage == "fit":
            run_checkpoint(trainer)  # of which the summary tells

    def on_validation_end(self, trainer: Trainer, pl_module: AsymGRPOModule) -> None:
        values = {tag: float(value) for tag, value in trainer.callback_metrics.items() if tag.startswith("val/")}
        if trainer.state.fn == TrainerFn.FITTING:
            self.evaluations.append((pl_module.completed_steps, values))

    def on_train_batch_end(self, trainer: Trainer, pl_module: AsymGRPOModule, *_: Any) -> None:
        timings = {tag: float(v) for tag, v in trainer.callback_metrics.items() if tag.startswith("timing_s/")}
        self.seconds.append({tag.removeprefix("timing_s/"): value for tag, value in timings.items()})

    def on_fit_end(self, trainer: Trainer, pl_module: AsymGRPOModule) -> None:
        """Print it here, since `on_train_end` is not called if a callback stops the run before its training starts."""
        run_dir = Path(trainer.default_root_dir)
        lines = ["", *self._ending(pl_module.completed_steps, pl_module.total_steps, run_dir), ""]
        lines += self._accuracy() + self._time() + _outputs(run_dir, trainer.loggers, run_checkpoint(trainer))
        say("\n".join([*lines, ""]))

    def _ending(self, steps: int, total: int, run_dir: Path) -> list[str]:
        if steps >= total:
            return [f"Run finished: {steps} RL steps, {run_dir}"]
        if steps == 0:
            then = "Nothing was trained, so nothing is saved or exported."
        else:
            then = f"The run goes on with --ckpt_path last, run_dir {run_dir}."
        return [f"Run stopped early: RL step {steps} of {total}, by {self._reasons}", then]

    def _accuracy(self) -> list[str]:
        if not self.evaluations:
            return []
        (first_step, first), (last_step, last) = self.evaluations[0], self.evaluations[-1]
        if first_step == last_step:
            lines = [f"  {'validation':<24}{f'step {last_step}':>10}"]
            return [*lines, *(f"  {tag.removeprefix('val/'):<24}{value:>10.3f}" for tag, value in last.items()), ""]
        lines = [f"  {'validation':<24}{f'step {first_step}':>10}{f'step {last_step}':>10}{'change':>10}"]
        for tag, value in last.items():
            before = first.get(tag, float("nan"))
            lines.append(f"  {tag.removeprefix('val/'):<24}{before:>10.3f}{value:>10.3f}{value - before:>+10.3f}")
        return [*lines, ""]

    def _time(self) -> list[str]:
        if not self.seconds:
            return []
        settled = self.seconds[1:] or self.seconds  # the first step contains vLLM's warm-up
        mean = {name: sum(s.get(name, 0.0) for s in settled) / len(settled) for name in [*_PHASES, "step"]}
        lines = [f"  {'seconds per step':<24}{mean['step']:>10.2f}"]
        lines += [
            f"    {label:<22}{mean[name]:>10.2f}{mean[name] / mean['step']:>9.0%}"
            for name, label in _PHASES.items()
            if mean[name] > 0
        ]
        return [*lines, ""]


def _outputs(run_dir: Path, loggers: Sequence[Logger], keeper: RunCheckpoint) -> list[str]:
    """What there is of a run, with paths; the best checkpoint if `keeper` has a metric for it."""
    checkpoints = list(list_checkpoints(run_dir).values())
    lines = [line for logger in loggers if (line := _log(logger))]
    lines.append(f"  Checkpoint    {checkpoints[-1] if checkpoints else 'none was written'}")
    if keeper.best is not None and (best := keeper.best.best_of(run_dir)):
        lines.append(f"  Best          {best[0]}  ({keeper.best.metric} {best[1]:.3f})")
    if (run_dir / RESULTS_NAME).exists():
        lines.append(f"  Results       {run_dir / RESULTS_NAME}  (for `asymgrpo compare`)")
    if export_folder(run_dir).is_dir():
        lines.append(f"  Model         {export_folder(run_dir)}  (Hugging Face format)")
    return lines


def _log(logger: Logger) -> str | None:
    """The line about a logger's folder; None if it has none on this machine."""
    folder = getattr(logger, "log_dir", None) or logger.save_dir
    if folder is None or not Path(folder).is_dir():
        return None
    command = "tensorboard --logdir " if isinstance(logger, TensorBoardLogger) else ""
    return f"  {type(logger).__name__.removesuffix('Logger'):<13} {command}{folder}"
