"""Inspects a source before a run: broken rows, prompts that are too long, problems that are in evaluation sets."""

from array import array
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from hashlib import blake2b

import numpy as np

from asymgrpo_app.prompts.base import BadRow, EncodedPrompt, Prompt, PromptSource
from asymgrpo_app.prompts.screening import Encoder, Reason, Rejected, Tally, screen
from asymgrpo_app.rewards.pool.pool import VerifierPool

SHOWN = 5
"""Most faults of a kind that are reported with their place."""

_CHUNK = 1_000


@dataclass(frozen=True)
class Depth:
    """The number of rows of a source that are inspected.

    Attributes:
        read: Rows that are read, checked for their fields, and compared with the evaluation sets; None: all.
        judged: Rows among them that are also tokenized and checked by their verifier; None: all.
    """

    read: int | None = None
    judged: int | None = None


BEFORE_A_RUN = Depth(read=20_000, judged=512)
"""Costs about a second."""

EVERYTHING = Depth()


@dataclass
class Inspection:
    """The findings on the rows of a source.

    Attributes:
        size: Number of rows of the source.
        seen: Number of rows that were read.
        judged: Number of rows among them that were also tokenized and checked by their verifier.
        tally: Outcomes of the judged rows.
        faults: The first messages about rows that cannot be used, at most `SHOWN` of each reason.
        repeated: Number of rows whose prompt an earlier row has, too.
        shared: Place of the first rows that are also in an evaluation set, with the set's name; at most `SHOWN`.
    """

    size: int = 0
    seen: int = 0
    judged: int = 0
    tally: Tally = field(default_factory=Tally)
    faults: dict[Reason, list[str]] = field(default_factory=lambda: {reason: [] for reason in Reason})
    repeated: int = 0
    shared: list[str] = field(default_factory=list)

    @property
    def usable(self) -> int:
        """Number of rows among those that were read that a run can use."""
        return self.seen - sum(self.tally.rejected.values())

    def notes(self) -> list[str]:
        """Notes for the user, one sentence each; none if all is well."""
        lines = []

        def note(count: int, one: str, more: str, looked_at: int = self.seen) -> None:
            among = "" if looked_at == self.size else f" of the first {looked_at:,}"
            if count:
                lines.append(f"{count:,}{among} row{'s' * (count > 1 or bool(among))} {one if count == 1 else more}")

        first = {reason: self.faults[reason][:1] for reason in Reason}
        long, bad = (", the first: ".join(["", *first[reason]]) for reason in (Reason.TOO_LONG, Reason.BAD_ROW))
        rejected = self.tally.rejected
        note(rejected[Reason.BAD_ROW], f"cannot be used{bad}", f"cannot be used{bad}")
        note(
            rejected[Reason.TOO_LONG],
            f"has too many tokens and is left out{long}",
            f"have too many tokens and are left out{long}",
            self.judged,
        )
        shared = f", the first: {self.shared[0]}. Evaluations then measure memory." if self.shared else ""
        note(
            self.tally.in_validation,
            f"is a problem of an evaluation set, too{shared}",
            f"are problems of an evaluation set, too{shared}",
        )
        note(self.repeated, "repeats the prompt of an earlier row.", "repeat the prompt of an earlier row.")
        return lines


def fingerprint(text: str) -> int:
    """64 bits of a problem's text, runs of white space as one space."""
    digest = blake2b(" ".join(text.split()).encode(errors="surrogatepass"), digest_size=8).digest()
    return int.from_bytes(digest, "big")


def inspect(
    source: PromptSource, encoder: Encoder, pool: VerifierPool, validation: Mapping[int, str], depth: Depth
) -> Iterator[Inspection]:
    """Inspect the rows of a source that ends, in its own order.

    Args:
        source: A source with a size.
        encoder: Renders and tokenizes.
        pool: The pool that verifiers check their rows in.
        validation: Name of the evaluation set by the fingerprint of a problem.
        depth: Number of rows to inspect.

    Yields:
        The findings so far (always the same object), after every chunk of rows.
    """
    assert source.size is not None
    found = Inspection(size=source.size)
    seen = array("Q")
    last = source.size if depth.read is None else min(depth.read, source.size)
    judged = last if depth.judged is None else min(depth.judged, last)
    for start in range(0, last, _CHUNK):
        stop = min(start + _CHUNK, last)
        reads = [partial(source.nth, index) for index in range(start, min(stop, judged))]
        outcomes = screen(reads, encoder, pool)
        prompts = [outcome.prompt for outcome in outcomes if not isinstance(outcome, Rejected)]
        _note_faults(found, outcomes)
        for index in range(max(start, judged), stop):
            try:
                prompts.append(source.nth(index))
            except BadRow as error:
                _note_faults(found, [Rejected(Reason.BAD_ROW, str(error))])
        for prompt in prompts:
            mark = fingerprint(prompt.text)
            seen.append(mark)
            if mark in validation:
                _note_shared(found, prompt, validation[mark])
        found.seen, found.judged = stop, min(stop, judged)
        if stop == last:
            found.repeated = len(seen) - len(np.unique(np.frombuffer(seen, dtype=np.uint64)))
        yield found


def _note_faults(found: Inspection, outcomes: Sequence[EncodedPrompt | Rejected]) -> None:
    found.tally.count(outcomes)
    for outcome in outcomes:
        if isinstance(outcome, Rejected) and len(found.faults[outcome.reason]) < SHOWN:
            found.faults[outcome.reason].append(outcome.message)


def _note_shared(found: Inspection, prompt: Prompt, set_name: str) -> None:
    found.tally.in_validation += 1
    if len(found.shared) < SHOWN:
        found.shared.append(f"{prompt.place or prompt.uid} is in {set_name}")
