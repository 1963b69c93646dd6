"""Endless problems from the tasks of reasoning-gym."""

import contextlib
import io
import json
from collections.abc import Mapping
from typing import Any

from asymgrpo_app.prompts.procedural import ProceduralSource, Split
from asymgrpo_app.rewards.reasoning_gym.tasks import make_dataset, shared_dataset
from asymgrpo_app.rewards.reasoning_gym.verifier import AnswerPlace, ReasoningGymVerifier

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


class ReasoningGym(ProceduralSource):
    r"""Endless procedural problems of one task of reasoning-gym, each with an answer that its scorer accepts.

    A problem is a pure function of (task, config, split, seed, position), in every process. A hash of its question puts
    about one in ten on the validation side, so the two splits share none. Rows are `{"task", "question", "answer",
    "metadata"}` and can be written as JSON; the uid is `<task>/<split>/<seed>/<position>`. docs/reasoning_gym.md lists
    the tasks; several are mixed with `Mixture`.

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
        verifier = ReasoningGymVerifier(task, answer, config)
        super().__init__(split, task, f"reasoning-gym {task} {split}", verifier)
        self.task = task
        self.config = verifier.config
        self.instruction = _INSTRUCTIONS[answer] if instruction is None else instruction

    def __str__(self) -> str:
        return f"reasoning-gym's task {self.task!r}"

    def draw(self, bits: int) -> dict[str, Any] | None:
        try:
            with contextlib.redirect_stdout(io.StringIO()):  # some print while they work
                item = self._item(bits >> 65)
        except Exception as error:  # generators that find no problem raise various exceptions
            self.last_failure = f" (the last failure was {type(error).__name__}: {error})"
            return None
        # The problem as read back from JSON: tuples become lists, keys strings, other objects their text.
        shown = {key: item[key] for key in ("question", "answer", "metadata")}
        row = {"task": self.task, **json.loads(json.dumps(shown, default=str))}
        if self.split_of(row) != self.split:
            return None
        try:
            # A few generators make a problem whose own answer is empty or that their scorer does not accept.
            self.verifier.check_row(row)
        except ValueError:
            return None
        return row

    def text(self, row: Mapping[str, Any]) -> str:
        question: str = row["question"]
        return f"{question}\n\n{self.instruction}" if self.instruction else question

    def identity(self, row: Mapping[str, Any]) -> str:
        return f"reasoning-gym split {self.task} {row['question']}"

    def _item(self, index: int) -> Mapping[str, Any]:
        # A problem is drawn from random.Random(seed of the data set + index), so indices that are hashes give streams
        # that do not overlap, and one data set serves them all.
        if self.task in _DRAWN_AT_ONCE:
            dataset = make_dataset(self.task, self.config, seed=index, size=_DRAWN_SIZE)
            return dict(dataset[0])
        item = dict(shared_dataset(self.task, self.config)[index])
        if self.task in _EXAMPLE_KEYS:
            example = item["metadata"][_EXAMPLE_KEYS[self.task]]
            item["answer"] = example if isinstance(example, str) else json.dumps(example)
        return item
