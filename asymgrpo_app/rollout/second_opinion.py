"""Second opinions: another verifier judges some of a step's accepted answers, as the first may have a hole."""

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field
from heapq import nsmallest

from asymgrpo_app.algorithm.metrics import ratio
from asymgrpo_app.errors import at_least_1, require
from asymgrpo_app.metrics import StepMetrics
from asymgrpo_app.prompts.base import EncodedPrompt
from asymgrpo_app.rewards.base import Verdict, Verifier
from asymgrpo_app.rewards.functions import checked_verifier
from asymgrpo_app.rewards.pool.messages import is_no_verdict
from asymgrpo_app.rewards.pool.pool import VerifierPool
from asymgrpo_app.rollout.types import JudgedCompletion, RolloutBatch
from asymgrpo_app.seeds import derive_seed

KEY = "rollout.second_opinion"

_SEEDS = 2**63  # how many `derive_seed` has
_SHOWN = 3  # examples
_SHOWN_CHARS = 200

_Answer = tuple[EncodedPrompt, JudgedCompletion]
"""An answer, with its problem before it."""


@dataclass(frozen=True)
class SecondOpinion:
    """Second opinions on a share of the answers that the verifier of training accepted.

    Rewards stay those of the first verifier. The run stops once the two disagree too often.

    Args:
        verifier: The verifier that gives them, by `class_path`. It reads the rows of the training data; rows that it
            refuses get no second opinion.
        share: Share of the accepted answers of each step that it judges, in (0, 1].
        max_disagreement: The run stops, with examples, if the lower end of the 95 % interval of the share of accepted
            answers that it calls wrong is above this, in [0, 1).
        window: The interval is over the last so many problems that got a second opinion.
    """

    verifier: Verifier
    share: float = 0.05
    max_disagreement: float = 0.1
    window: int = 100

    def __post_init__(self) -> None:
        checked_verifier(self.verifier, KEY)
        require(0 < self.share <= 1, f"{KEY}.share", self.share, "in (0, 1]")
        require(0 <= self.max_disagreement < 1, f"{KEY}.max_disagreement", self.max_disagreement, "in [0, 1)")
        at_least_1(f"{KEY}.window", self.window)

    @property
    def name(self) -> str:
        """The class of its verifier, for messages."""
        return type(self.verifier).__name__


@dataclass
class Opinions:
    """The second opinions of one step.

    Attributes:
        accepted: Number of accepted answers.
        drawn: Number of those that were drawn.
        refused: Number of the drawn ones whose row the second verifier cannot judge.
        failed: Number of the others at which it failed (`timeout`, `error`): no opinion.
        disagreed: By the index of a problem in its step, whether each of its other drawn answers was called wrong.
        examples: By the index of a problem, the first of its answers that was called wrong, in words; a few problems.
        failure: One failure, in words.
        no_verdict: One where something else than a verdict was returned, in words.
    """

    accepted: int = 0
    drawn: int = 0
    refused: int = 0
    failed: int = 0
    disagreed: defaultdict[int, list[bool]] = field(default_factory=lambda: defaultdict(list))
    examples: dict[int, str] = field(default_factory=dict)
    failure: str = ""
    no_verdict: str = ""

    @property
    def shares(self) -> list[float]:
        """For each problem with an opinion, in order, the share of its answers that were called wrong."""
        return [sum(wrong) / len(wrong) for _, wrong in sorted(self.disagreed.items())]

    def add(self, answer: _Answer, verdict: Verdict, name: str) -> None:
        """Count the second verdict on a drawn answer."""
        encoded, judged = answer
        if verdict.status.failed:
            self.failed += 1
            shown = f"{name} {verdict.status} ({verdict.detail or 'no reason given'}) at {_shown(encoded, judged)}"
            self.failure = self.failure or shown
            if is_no_verdict(verdict):
                self.no_verdict = self.no_verdict or shown
            return
        self.disagreed[encoded.index].append(not verdict.correct)
        if not verdict.correct and len(self.examples) < _SHOWN:
            first, why = (
                type(encoded.prompt.verifier).__name__,
                "" if verdict.status == "ok" else f" ({verdict.status})",
            )
            said = f"{first} right, {name} wrong{why} at {_shown(encoded, judged)}"
            self.examples.setdefault(encoded.index, said)

    def record(self, metrics: StepMetrics) -> None:
        """`second_opinion/{drawn,refused,failed,disagreement}` of this rank's answers."""
        given = [wrong for each in self.disagreed.values() for wrong in each]
        metrics.add("second_opinion/drawn", ratio(self.drawn, self.accepted))
        metrics.add("second_opinion/refused", ratio(self.refused, self.drawn))
        metrics.add("second_opinion/failed", ratio(self.failed, self.drawn - self.refused))
        metrics.add("second_opinion/disagreement", ratio(sum(given), len(given)))


def of_all(ranks: Sequence[Opinions]) -> Opinions:
    """The opinions of all ranks as those of one; each problem is on one rank alone."""
    found = Opinions()
    for rank in ranks:
        found.accepted += rank.accepted
        found.drawn += rank.drawn
        found.refused += rank.refused
        found.failed += rank.failed
        found.disagreed.update(rank.disagreed)
        found.examples = dict(nsmallest(_SHOWN, (found.examples | rank.examples).items()))
        found.failure = found.failure or rank.failure
        found.no_verdict = found.no_verdict or rank.no_verdict
    return found


def second_opinions(
    config: SecondOpinion, rollouts: RolloutBatch, seed: int, step: int, pool: VerifierPool
) -> Opinions:
    """Draw some of this rank's accepted answers and have the second verifier judge them; changes nothing.

    The draw is a function of the run's seed, the step, the problem's index and the completion's number.

    Raises:
        UserError: The second verifier cannot be sent to worker processes.
        RunError: Worker processes do not start.
    """
    right = rollouts.rewards().flatten().tolist()
    accepted = [answer for answer, reward in zip(rollouts.completions(), right, strict=True) if reward]
    drawn = [
        (encoded, judged)
        for encoded, number, judged in accepted
        if derive_seed("second_opinion", seed, step, encoded.index, number) < config.share * _SEEDS
    ]
    rows = {encoded.index: encoded.prompt.row for encoded, _ in drawn}
    reasons = dict(zip(rows, pool.check([config.verifier] * len(rows), list(rows.values())), strict=True))
    asked = [answer for answer in drawn if reasons[answer[0].index] is None]
    opinions = Opinions(accepted=len(accepted), drawn=len(drawn), refused=len(drawn) - len(asked))
    texts, of_texts = [judged.text for _, judged in asked], [encoded.prompt.row for encoded, _ in asked]
    for answer, verdict in zip(asked, pool.score([config.verifier] * len(asked), texts, of_texts), strict=True):
        opinions.add(answer, verdict, config.name)
    return opinions


def _shown(encoded: EncodedPrompt, judged: JudgedCompletion) -> str:
    """Where an answer is, its problem, its reference and its end, as one line."""
    prompt = encoded.prompt
    text, end = ascii(prompt.text[:_SHOWN_CHARS]), ascii(judged.text[-_SHOWN_CHARS:])
    return (
        f"{prompt.place or prompt.uid}, problem {text[:_SHOWN_CHARS]}, reference "
        f"{ascii(prompt.row.get('answer'))[:_SHOWN_CHARS]}, completion ending in {end[-_SHOWN_CHARS:]}"
    )
