"""The outputs of an evaluation: a table, `results.json`, and with `predict` every completion."""

from collections.abc import Mapping
from itertools import chain
from operator import attrgetter
from pathlib import Path
from typing import Any

from lightning.pytorch import Callback, Trainer

from asymgrpo_app.callbacks.rollout import VLLMRolloutCallback
from asymgrpo_app.checkpoints.folder import checkpoint_path
from asymgrpo_app.datamodule import data_of
from asymgrpo_app.evaluation.files import write_record
from asymgrpo_app.evaluation.metrics import SetMetrics
from asymgrpo_app.evaluation.outcomes import outcomes_of
from asymgrpo_app.evaluation.predictions import PredictionHeader, PredictionWriter, finished_sets
from asymgrpo_app.evaluation.results import (
    EvaluationProtocol,
    EvaluationRun,
    Results,
    code_commit,
    problems_digest,
    results,
    set_result,
    table,
)
from asymgrpo_app.module import AsymGRPOModule
from asymgrpo_app.parallel.ranks import gather_objects
from asymgrpo_app.runtime.console import say

RESULTS_NAME = "results.json"
PREDICTIONS_NAME = "predictions.jsonl"


class EvaluationReport(Callback):
    """Ends `validate`, `test` and `predict` with a table and `<folder>/results.json`.

    With `predict` every completion is written to `<folder>/predictions.jsonl` as soon as its problem is judged; the
    same command resumes a file that was interrupted.

    Args:
        folder: The folder to write to.
        checkpoint: The checkpoint that is evaluated; None: the policy as it was loaded.
        predict: Whether the completions are written.
    """

    def __init__(self, folder: Path, checkpoint: str | None, *, predict: bool) -> None:
        self.folder = folder
        self.checkpoint = checkpoint
        self.predict = predict
        self._writer: PredictionWriter | None = None

    def setup(self, trainer: Trainer, pl_module: AsymGRPOModule, stage: str) -> None:
        """Open the file of completions, and tell the data module which problems are in it already."""
        if not self.predict:
            return
        data = data_of(trainer)
        complete: dict[str, list[int]] = {}
        if trainer.is_global_zero:
            header = PredictionHeader(_run(pl_module, trainer, self.checkpoint), _protocols(trainer))
            writer = self._writer = PredictionWriter(self.folder / PREDICTIONS_NAME, header)
            complete = {
                name: [p.index for p in data.evaluation_problems(name) if writer.is_complete(name, p.index)]
                for name in data.evaluation_sets
            }
            if number := sum(map(len, complete.values())):
                say(f"{number:,} problems are in {writer.path} already; going on with the others.")
        data.leave_out(trainer.strategy.broadcast(complete))

    # ---- validate and test ----

    def on_validation_end(self, trainer: Trainer, pl_module: AsymGRPOModule) -> None:
        if trainer.is_global_zero:
            self._report(trainer, pl_module, pl_module.evaluations)

    on_test_end = on_validation_end  # type: ignore[assignment]

    # ---- predict ----

    def on_predict_batch_end(
        self, trainer: Trainer, pl_module: AsymGRPOModule, outputs: Any, batch: Any, *_: Any
    ) -> None:
        outcomes = outcomes_of(batch.set_name, batch.rollouts) if batch.prompts else []
        parts = gather_objects([prediction for outcome in outcomes for prediction in outcome.completions])
        if self._writer is not None:
            self._writer.write(sorted(chain.from_iterable(parts), key=attrgetter("index", "sample")))

    def on_predict_end(self, trainer: Trainer, pl_module: AsymGRPOModule) -> None:
        if self._writer is None:
            return
        self._writer.close()
        evaluations = {}
        outcomes = finished_sets(self._writer.path, self._writer.written.values(), self._writer.header)
        for name, by_uid in outcomes.items():
            metrics = evaluations[name] = data_of(trainer).evaluation_sets[name].metrics()
            metrics.update(list(by_uid.values()))
            metrics.compute()
        self._report(trainer, pl_module, evaluations)

    def on_exception(self, trainer: Trainer, pl_module: AsymGRPOModule, exception: BaseException) -> None:
        if self._writer is not None:
            self._writer.close()

    # ---- the report ----

    def _report(self, trainer: Trainer, pl_module: AsymGRPOModule, evaluations: Mapping[str, SetMetrics]) -> None:
        content = _results(trainer, pl_module, evaluations, self.checkpoint)
        path = self.folder / RESULTS_NAME
        write_record(path, content, overwrite=self.predict)  # the same completions, counted again
        lines = ["", table(content), "", f"  Results       {path}"]
        if self.predict:
            lines.append(f"  Completions   {self.folder / PREDICTIONS_NAME}")
        say("\n".join([*lines, ""]))


class FinalResults(Callback):
    """Writes the validation after a run's last step to `<run_dir>/results.json`, as `validate` would.

    The last step of a run that a callback stops is the one it ends with.
    """

    def __init__(self) -> None:
        self._validated_at: int | None = None

    def on_validation_end(self, trainer: Trainer, pl_module: AsymGRPOModule) -> None:
        self._validated_at = pl_module.completed_steps

    def on_train_end(self, trainer: Trainer, pl_module: AsymGRPOModule) -> None:
        validated = self._validated_at == pl_module.completed_steps > 0
        if validated and pl_module.evaluations and trainer.is_global_zero:
            run_dir = Path(trainer.default_root_dir)
            checkpoint = str(checkpoint_path(run_dir, pl_module.completed_steps))
            # A run that is continued for more steps replaces what its earlier end left.
            content = _results(trainer, pl_module, pl_module.evaluations, checkpoint)
            write_record(run_dir / RESULTS_NAME, content, overwrite=True)


def _results(
    trainer: Trainer, pl_module: AsymGRPOModule, evaluations: Mapping[str, SetMetrics], checkpoint: str | None
) -> Results:
    protocols = _protocols(trainer)
    sets = {}
    for name, metrics in evaluations.items():
        assert metrics.problems is not None
        uids = {problem.index: problem.prompt.uid for problem in data_of(trainer).evaluation_problems(name)}
        sets[name] = set_result(protocols[name], [uids[i] for i in metrics.problems.indices], metrics.problems.values)
    return results(_run(pl_module, trainer, checkpoint), sets)


def _run(pl_module: AsymGRPOModule, trainer: Trainer, checkpoint: str | None) -> EvaluationRun:
    return EvaluationRun(pl_module.policy_path, checkpoint, data_of(trainer).seed, commit=code_commit())


def _protocols(trainer: Trainer) -> dict[str, EvaluationProtocol]:
    data = data_of(trainer)
    callbacks: Any = trainer.callbacks  # type: ignore[attr-defined]
    rollout = next(callback for callback in callbacks if isinstance(callback, VLLMRolloutCallback))
    protocols = {}
    for name, chosen in data.evaluation_sets.items():
        problems = data.evaluation_problems(name)
        protocols[name] = EvaluationProtocol(
            problems=len(problems),
            samples=chosen.samples,
            temperature=chosen.temperature,
            top_p=chosen.top_p,
            max_tokens=chosen.max_completion_tokens or rollout.max_completion_tokens,
            template=type(chosen.template or data.template).__name__,
            digest=problems_digest(problem.prompt.text for problem in problems),
        )
    return protocols
