"""Stop of a run whose accepted answers another verifier calls wrong."""

from collections.abc import Callable
from typing import Any

from asymgrpo_app.errors import RunError, UserError
from asymgrpo_app.evaluation.intervals import Estimate, share_interval
from asymgrpo_app.metrics import StepMetrics
from asymgrpo_app.rollout.second_opinion import KEY, Opinions, SecondOpinion, of_all
from asymgrpo_app.runtime.console import say


class SecondOpinionGuard:
    """Holds the second opinions of the last steps, and stops the run if they disagree too often.

    One value per problem: the share of its drawn answers that were called wrong, since answers to one problem are not
    independent. The values of a step count at once, and are kept once the step is finished: a step that is given up
    and sampled again leaves no trace.

    Args:
        config: The second opinion.

    Raises:
        UserError: It is something else, e.g. a verifier.
    """

    def __init__(self, config: SecondOpinion) -> None:
        if not isinstance(config, SecondOpinion):
            raise UserError(
                f"second_opinion of VLLMRolloutCallback must be a SecondOpinion, got {type(config).__name__}: give it "
                "as SecondOpinion(verifier)."
            )
        self.config = config
        self._kept: list[float] = []
        self._with_step: list[float] = []
        self._warned = False

    def look_at(
        self, own: Opinions, metrics: StepMetrics, step: int, gather: Callable[[Opinions], list[Opinions]]
    ) -> None:
        """Count one step's opinions, record its metrics, and stop the run if need be; every rank takes part.

        A step without a disagreement never stops the run.

        Args:
            own: The opinions of this rank.
            metrics: Receives `second_opinion/*`.
            step: The RL step, from 1.
            gather: Collects those of all ranks.

        Raises:
            RunError: The verifiers disagree too often, or the second one returned something else than a verdict.
        """
        opinions = of_all(gather(own))
        if opinions.no_verdict:
            raise RunError(
                f"{KEY}.verifier must return a Verdict with True or False for every completion: {opinions.no_verdict}"
            )
        own.record(metrics)
        self._warn(opinions, step)
        self._with_step = [*self._kept, *opinions.shares][-self.config.window :]
        if not self._with_step:
            return
        found = share_interval(self._with_step)
        metrics.values["second_opinion/lower_end"] = found.low
        if opinions.examples and found.low > self.config.max_disagreement:
            raise RunError(self._too_often(found, opinions, step))

    def keep(self) -> None:
        """Keep the opinions of the step that was looked at: it is finished."""
        self._kept = self._with_step

    def state_dict(self) -> dict[str, Any]:
        """The values that are kept, and whose they are."""
        return {"verifier": self._of, "values": list(self._kept)}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on with the values of a checkpoint, unless they are opinions of a verifier of another class."""
        values = [float(value) for value in state_dict["values"]] if state_dict["verifier"] == self._of else []
        self._kept = self._with_step = values[-self.config.window :]

    @property
    def _of(self) -> str:
        kind = type(self.config.verifier)
        return f"{kind.__module__}.{kind.__qualname__}"

    def _warn(self, opinions: Opinions, step: int) -> None:
        """Say once that the second verifier fails on most answers, or refuses most: it then guards nothing."""
        asked = opinions.drawn - opinions.refused
        if self._warned or not (2 * opinions.failed > asked or 2 * asked < opinions.drawn):
            return
        self._warned = True
        what = f"failed, for instance: {opinions.failure}" if 2 * opinions.failed > asked else "refused the row"
        say(
            f"WARNING: of {opinions.drawn:,} second opinions in step {step} only {asked - opinions.failed:,} were "
            f"given: {self.config.name} {what}"
        )

    def _too_often(self, found: Estimate, opinions: Opinions, step: int) -> str:
        examples = "; ".join(opinions.examples.values())
        return (
            f"in RL step {step} the second opinion, {self.config.name}, calls {found.value:.1%} of the accepted "
            f"answers wrong (the last {found.n} problems, 95 % interval from {found.low:.1%} to {found.high:.1%}), "
            f"more than {KEY}.max_disagreement ({self.config.max_disagreement:g}) allows: the policy may have found "
            f"a hole in the verifier, or the second one is wrong, for instance: {examples}"
        )
