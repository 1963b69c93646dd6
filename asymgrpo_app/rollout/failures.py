"""Stop of a run whose verifier fails too often to be trusted."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from asymgrpo_app.errors import RunError
from asymgrpo_app.prompts.base import EncodedPrompt
from asymgrpo_app.rewards.pool.messages import is_no_verdict
from asymgrpo_app.rollout.types import JudgedCompletion

_SHOWN_CHARS = 200


@dataclass
class FailureCount:
    """Counts of verdicts and of verifier failures.

    Attributes:
        judged: Number of verdicts.
        failed: Number of those with the status `timeout` or `error`.
        example: One failure, in words.
        no_verdict: One where the verifier returned something else than a verdict, in words.
    """

    judged: int = 0
    failed: int = 0
    example: str = ""
    no_verdict: str = ""

    def add(self, prompts: Sequence[EncodedPrompt], groups: Sequence[Sequence[JudgedCompletion]]) -> None:
        """Count P groups of judged completions."""
        for encoded, group in zip(prompts, groups, strict=True):
            for judged in group:
                self.judged += 1
                if judged.verdict.status.failed:
                    self.failed += 1
                    self.example = self.example or _example(encoded, judged)
                    if is_no_verdict(judged.verdict):
                        self.no_verdict = self.no_verdict or _example(encoded, judged)

    def stop_above(self, limit: float, gather: "Callable[[FailureCount], list[FailureCount]]") -> None:
        """Stop the run if more than the share `limit` of the verdicts of all ranks failed; every rank takes part.

        What is no verdict stops it at once: that is a mistake in the verifier's code, which no share makes right.

        Raises:
            RunError: More failed; the message has the numbers and one example.
        """
        counts = gather(self)
        if wrong := next((count.no_verdict for count in counts if count.no_verdict), ""):
            raise RunError(f"a verifier must return a Verdict with True or False for every completion: {wrong}")
        judged, failed = sum(count.judged for count in counts), sum(count.failed for count in counts)
        if failed > limit * judged:
            example = next(count.example for count in counts if count.failed)
            raise RunError(
                f"the verifier failed on {failed:,} of {judged:,} completions, more than "
                f"rollout.max_verifier_failures ({limit:g}) allows, for instance: {example}"
            )


def _example(encoded: EncodedPrompt, judged: JudgedCompletion) -> str:
    prompt, verdict = encoded.prompt, judged.verdict
    shown = ascii(judged.text)
    if len(shown) > _SHOWN_CHARS:
        shown = f"{shown[: _SHOWN_CHARS // 2]} ... {shown[-_SHOWN_CHARS // 2 :]}"
    return (
        f"{type(prompt.verifier).__name__} {verdict.status} ({verdict.detail or 'no reason given'}) at "
        f"{prompt.place or prompt.uid}, reference {ascii(prompt.row.get('answer'))[:_SHOWN_CHARS]}, completion {shown}"
    )
