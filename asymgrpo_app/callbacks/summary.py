"""The summary at the end of a run: accuracy before and after, time per phase, and the paths of its outputs."""

from pathlib import Path
from typing import Any

from lightning.pytorch import Callback, Trainer
from lightning.pytorch.trainer.states import TrainerFn

from asymgrpo_app.callbacks.checkpoint import RunCheckpoint, run_checkpoint
from asymgrpo_app.callbacks.evaluation import RESULTS_NAME
from asymgrpo_app.callbacks.export import export_folder
from asymgrpo_app.checkpoints.folder import list_checkpoints
from asymgrpo_app.checkpoints.run_folder import tensorboard_folder
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

    def on_train_end(self, trainer: Trainer, pl_module: AsymGRPOModule) -> None:
        say(self.text(Path(trainer.default_root_dir), pl_module.completed_steps, run_checkpoint(trainer)))

    def text(self, run_dir: Path, steps: int, keeper: RunCheckpoint) -> str:
        """The summary of a run of `steps` RL steps, with the best checkpoint if `keeper` has a metric for it."""
        lines = ["", f"Run finished: {steps} RL steps, {run_dir}", ""]
        lines += self._accuracy() + self._time()
        checkpoints = list(list_checkpoints(run_dir).values())
        lines += [
            f"  TensorBoard   tensorboard --logdir {tensorboard_folder(run_dir)}",
            f"  Checkpoint    {checkpoints[-1] if checkpoints else 'none was written'}",
        ]
        if keeper.best is not None and (best := keeper.best.best_of(run_dir)):
            lines.append(f"  Best          {best[0]}  ({keeper.best.metric} {best[1]:.3f})")
        if (run_dir / RESULTS_NAME).exists():
            lines.append(f"  Results       {run_dir / RESULTS_NAME}  (for `asymgrpo compare`)")
        if export_folder(run_dir).is_dir():
            lines.append(f"  Model         {export_folder(run_dir)}  (Hugging Face format)")
        return "\n".join([*lines, ""])

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
