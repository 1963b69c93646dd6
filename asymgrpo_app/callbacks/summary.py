"""The summary at the end of a run: accuracy before and after, time per phase, and the paths of its outputs."""

from math import nan
from pathlib import Path
from typing import Any

from lightning.pytorch import Callback, Trainer
from lightning.pytorch.trainer.states import TrainerFn

from asymgrpo_app.callbacks.checkpoint import run_checkpoint
from asymgrpo_app.callbacks.evaluation import RESULTS_NAME
from asymgrpo_app.callbacks.export import export_folder
from asymgrpo_app.checkpoints.folder import list_checkpoints
from asymgrpo_app.checkpoints.run_folder import tensorboard_folder
from asymgrpo_app.module import AsymGRPOModule
from asymgrpo_app.runtime.console import say

_PHASES = {
    "gen": "sampling (vLLM)",
    "reward": "verifying",
    "old_log_prob": "old log-probabilities",
    "update_actor": "policy update",
    "update_weights": "weights to vLLM",
    "canary": "canary",
}


class RunSummary(Callback):
    """Prints a short table when a run ends."""

    def __init__(self) -> None:
        self.evaluations: list[tuple[int, dict[str, float]]] = []
        self.seconds: list[dict[str, float]] = []

    def on_validation_end(self, trainer: Trainer, pl_module: AsymGRPOModule) -> None:
        if trainer.state.fn == TrainerFn.FITTING:
            self.evaluations.append((pl_module.completed_steps, _values(trainer, "val/")))

    def on_train_batch_end(self, trainer: Trainer, pl_module: AsymGRPOModule, *_: Any) -> None:
        self.seconds.append(_values(trainer, "timing_s/"))

    def on_train_end(self, trainer: Trainer, pl_module: AsymGRPOModule) -> None:
        run_dir = Path(trainer.default_root_dir)
        checkpoints, keeper = list(list_checkpoints(run_dir).values()), run_checkpoint(trainer)
        lines = [
            f"\nRun finished: {pl_module.completed_steps} RL steps, {run_dir}\n",
            *self._accuracy(),
            *self._time(),
            f"  TensorBoard   tensorboard --logdir {tensorboard_folder(run_dir)}",
            f"  Checkpoint    {checkpoints[-1] if checkpoints else 'none was written'}",
        ]
        if keeper.best is not None and (best := keeper.best_of(run_dir)):
            lines.append(f"  Best          {best[0]}  ({keeper.best.metric} {best[1]:.3f})")
        if (run_dir / RESULTS_NAME).exists():
            lines.append(f"  Results       {run_dir / RESULTS_NAME}  (for `asymgrpo compare`)")
        if export_folder(run_dir).is_dir():
            lines.append(f"  Model         {export_folder(run_dir)}  (Hugging Face format)")
        say("\n".join([*lines, ""]))

    def _accuracy(self) -> list[str]:
        if not self.evaluations:
            return []
        (first_step, first), (last_step, last) = self.evaluations[0], self.evaluations[-1]
        if first_step == last_step:
            lines = [f"  {'validation':<24}{f'step {last_step}':>10}"]
            return [*lines, *(f"  {name:<24}{value:>10.3f}" for name, value in last.items()), ""]
        lines = [f"  {'validation':<24}{f'step {first_step}':>10}{f'step {last_step}':>10}{'change':>10}"]
        for name, value in last.items():
            before = first.get(name, nan)
            lines.append(f"  {name:<24}{before:>10.3f}{value:>10.3f}{value - before:>+10.3f}")
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


def _values(trainer: Trainer, prefix: str) -> dict[str, float]:
    """The scalars whose tag begins with a prefix, by the rest of their tag."""
    scalars = trainer.callback_metrics.items()
    return {tag.removeprefix(prefix): float(value) for tag, value in scalars if tag.startswith(prefix)}
