"""Endless problems from the tasks of reasoning-gym."""

import contextlib
import io
import json
from collections.abc import Mapping, Sequence
from hashlib import blake2b
from typing import Any, Literal, get_args

from asymgrpo_app.errors import UserError
from asymgrpo_app.prompts.base import Prompt, PromptSource
from asymgrpo_app.rewards.reasoning_gym.tasks import make_dataset, shared_dataset
from asymgrpo_app.rewards.reasoning_gym.verifier import AnswerPlace, ReasoningGymVerifier

Split = Literal["train", "validation"]

_INSTRUCTIONS: dict[str, str] = {
    "tags": "Give the final answer between <answer> and </answer>.",
    "boxed": r"Give the final answer in \boxed{}.",
    "last_line": "Give the final answer alone in the last line.",
    "whole": "",
}

_EXAMPLE_KEYS = {
    "graph_color": "possible_answer",
    "propositional_logic": "example_answer",
    "rubiks_cube": "example_correct_answer",
}
"""Metadata key of one right answer, for tasks that have many and leave the answer empty."""

_DRAWN_AT_ONCE = ("acre", "gsm_symbolic")
"""Tasks that draw for all their problems when they are built, so each problem needs a data set of its own ..."""

_DRAWN_SIZE = 10
"""... with this many problems: acre makes its kinds in shares of 6, 2 and 2."""

_FIXED_SEED = 0
_TRIES = 400  # a problem is on the validation side with probability 1/10, so all of these fail in 1 of 10^18 cases
_SCANNED_PER_FIXED = 20


class ReasoningGym(PromptSource):
    r"""Endless procedural problems of one task of reasoning-gym, each with an answer that its scorer accepts.

    A problem is a pure function of (task, config, split, seed, position), in every process. A hash of its question puts
    about one in ten on the validation side, so the two splits share none. Rows are `{"task", "question", "answer",
    "metadata"}` and can be written as JSON. docs/reasoning_gym.md lists the tasks; several are mixed with `Mixture`.

    Args:
        task: The name of the task, e.g. `chain_sum`.
        config: Settings of the task, e.g. `{min_terms: 2, max_terms: 4}`; the library's own if left out.
        split: The side of the split that the problems come from, `train` or `validation`.
        answer: Where the verifier looks for an answer without `<answer>` tags: `tags`: nowhere; `boxed`: in the last
            \boxed{}; `last_line`: in the last line; `whole`: the whole completion is the answer.
        instruction: Text after every question and an empty line; null: one that fits `answer`; an empty string: none.

    Raises:
        UserError: The task is unknown or refused, a setting is wrong, or reasoning-gym is not installed.
    """

    def __init__(
        self,
        task: str,
        config: dict[str, Any] | None = None,
        split: Split = "train",
        answer: AnswerPlace = "tags",
        instruction: str | None = None,
    ) -> None:
        if split not in get_args(Split):
            raise UserError(f"ReasoningGym has no split {split!r}: use 'train' or 'validation'.")
        self.verifier = ReasoningGymVerifier(task, answer, config)
        self.task = task
        self.split = split
        self._last_failure = ""
        self.instruction = _INSTRUCTIONS[answer] if instruction is None else instruction

    def at(self, position: int, seed: int) -> Prompt:
        """Problem number `position` of `seed`. Its uid is `<task>/<split>/<seed>/<position>`.

        Raises:
            UserError: The split has no problem: the config leaves too few.
        """
        for attempt in range(_TRIES):
            row = self._draw(_hash(f"reasoning-gym {self.task} {self.split} {seed} {position} {attempt}") >> 65)
            if row is not None:
                break
        else:
            config = json.dumps(self.verifier.config)
            failure = f" (the last failure was {self._last_failure})" if self._last_failure else ""
            raise UserError(
                f"reasoning-gym's task {self.task!r} gave no problem for the {self.split} split in {_TRIES} tries: "
                f"with the config {config} it has too few different ones, or none whose own answer is right{failure}."
            )
        return Prompt(
            uid=f"{self.task}/{self.split}/{seed}/{position}",
            text=f"{row['question']}\n\n{self.instruction}" if self.instruction else row["question"],
            row=row,
            verifier=self.verifier,
        )

    def fixed(self, limit: int | None) -> Sequence[Prompt]:
        """The first `limit` problems of a constant seed with distinct questions.

        Raises:
            UserError: `limit` is None, not positive, or (nearly) more than the problems the split has.
        """
        if limit is None or limit < 1:
            raise UserError(
                f"reasoning-gym's task {self.task!r} is endless and needs a positive limit for evaluation, not {limit}."
            )
        distinct: dict[str, Prompt] = {}
        for position in range(_SCANNED_PER_FIXED * limit):
            prompt = self.at(position, _FIXED_SEED)
            distinct.setdefault(prompt.row["question"], prompt)
            if len(distinct) == limit:
                return list(distinct.values())
        raise UserError(
            f"The {self.split} split of reasoning-gym's task {self.task!r} is too small for a limit of {limit} "
            f"distinct problems: {len(distinct)} were found, ask for fewer."
        )

    def _draw(self, index: int) -> dict[str, Any] | None:
        """The row of the problem with this index of 63 bits, or None if this split cannot use it."""
        try:
            with contextlib.redirect_stdout(io.StringIO()):  # some print while they work
                item = self._item(index)
        except Exception as error:  # generators that find no problem raise various exceptions
            self._last_failure = f"{type(error).__name__}: {error}"
            return None
        if split_of(self.task, item["question"]) != self.split:
            return None
        row = {"task": self.task, **_plain(item)}
        try:
            # A few generators make a problem whose own answer is empty or that their scorer does not accept.
            self.verifier.check_row(row)
        except ValueError:
            return None
        return row

    def _item(self, index: int) -> Mapping[str, Any]:
        # A problem is drawn from random.Random(seed of the data set + index), so indices that are hashes give streams
        # that do not overlap, and one data set serves them all.
        if self.task in _DRAWN_AT_ONCE:
            dataset = make_dataset(self.task, self.verifier.config, seed=index, size=_DRAWN_SIZE)
            return dict(dataset[0])
        item = dict(shared_dataset(self.task, self.verifier.config)[index])
        if self.task in _EXAMPLE_KEYS:
            example = item["metadata"][_EXAMPLE_KEYS[self.task]]
            item["answer"] = example if isinstance(example, str) else json.dumps(example)
        return item


def split_of(task: str, question: str) -> Split:
    """The split of a problem by the hash of its question: about one in ten is for validation."""
    return "validation" if _hash(f"reasoning-gym split {task} {question}") % 10 == 0 else "train"


def _plain(item: Mapping[str, Any]) -> dict[str, Any]:
    """The problem as read back from JSON: tuples become lists, keys strings, other objects their text."""
    shown = {key: item[key] for key in ("question", "answer", "metadata")}
    plain: dict[str, Any] = json.loads(json.dumps(shown, default=str))
    return plain


def _hash(text: str) -> int:
    return int.from_bytes(blake2b(text.encode(), digest_size=16).digest(), "big")
