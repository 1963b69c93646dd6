"""The verifier of reasoning-gym's tasks."""

import contextlib
import io
import re
from collections.abc import Mapping
from typing import Any, ClassVar, Literal, get_args

from asymgrpo_app.errors import UserError
from asymgrpo_app.rewards.base import AnswerVerifier, Status, Verdict, visible_answer
from asymgrpo_app.rewards.extraction import last_boxed
from asymgrpo_app.rewards.pool.messages import described
from asymgrpo_app.rewards.reasoning_gym.tasks import load_reasoning_gym, shared_dataset, task_of

AnswerPlace = Literal["tags", "boxed", "last_line", "whole"]

_DIGIT_RUN = re.compile(r"\d\d")


class ReasoningGymVerifier(AnswerVerifier):
    r"""Judges with the scorer of a task of reasoning-gym; correct means a score of exactly 1.

    docs/reasoning_gym.md lists the tasks, and those where a scorer of ours replaces the library's. The answer is the
    content of the last `<answer>...</answer>`; `answer` says where it is if there are no tags. A completion without an
    answer has the status `no_answer`; an answer that the scorer cannot read is wrong.

    Args:
        task: The name of the task, e.g. `chain_sum`.
        answer: The answer of a completion without tags: `tags`: none; `boxed`: the content of the last \boxed{};
            `last_line`: the last line that is not blank; `whole`: the whole completion.
        config: The settings of the task that the problems were made with.

    Raises:
        UserError: The task is unknown or refused, a setting is wrong, or reasoning-gym is not installed.
    """

    isolated: ClassVar[bool] = True

    def __init__(self, task: str, answer: AnswerPlace = "tags", config: dict[str, Any] | None = None) -> None:
        if answer not in get_args(AnswerPlace):
            raise UserError(f"answer must be one of {', '.join(get_args(AnswerPlace))}, not {answer!r}.")
        self.config = {} if config is None else config
        task_of(task)  # refuses what cannot be judged
        shared_dataset(task, self.config)
        self.task = task
        self.answer = answer

    @classmethod
    def prepare(cls) -> None:
        """Import the library."""
        load_reasoning_gym()

    def judge(self, answer: str, row: Mapping[str, Any]) -> Verdict:
        """Judge an answer. The row is a problem of the task: `question`, `answer`, `metadata` and `task`."""
        try:
            return Verdict(correct=self._is_right(answer, row))
        except MemoryError:
            raise
        except Exception:  # whatever a scorer of the library may raise
            # If the row's own answer passes, the scorer could not read the completion's answer; otherwise it failed.
            try:
                self.check_row(row)
            except ValueError as fault:
                return Verdict(correct=False, status=Status.ERROR, detail=str(fault))
            return Verdict(correct=False)

    def find_answer(self, completion: str, row: Mapping[str, Any]) -> str | None:
        # From the end and without a regular expression: linear in the length, whatever is opened and never closed.
        _, opened, found = completion.rpartition("</answer>")[0].rpartition("<answer>")
        if not opened:
            last_line = completion.rstrip().rpartition("\n")[2]
            boxed = last_boxed(completion) or ""
            found = {"tags": "", "boxed": boxed, "last_line": last_line, "whole": completion}[self.answer]
        return found.strip() or None

    def check_row(self, row: Mapping[str, Any]) -> None:
        """Check that the row is a problem of the task, and that its own answer is right.

        Raises:
            ValueError: The row is no such problem, or its answer is not right.
        """
        if row.get("task", self.task) != self.task:
            raise ValueError(f'"task" must be {self.task!r}, not {row["task"]!r}')
        answer = visible_answer(row)
        if not isinstance(row.get("metadata"), Mapping):
            raise ValueError(f'"metadata" must be what the task {self.task!r} made with the problem')
        try:
            is_right = self._is_right(answer.strip(), row)
        except Exception as error:
            raise ValueError(
                f'the row\'s own "answer" cannot be judged by {self.task!r}: {described(error)}'
            ) from error
        if not is_right:
            raise ValueError(f'the row\'s own "answer" is not right for {self.task!r}')

    def _is_right(self, answer: str, row: Mapping[str, Any]) -> bool:
        task = task_of(self.task)
        too_long = len(answer) > max(task.max_chars, len(row["answer"]))
        if too_long or (not task.digit_runs and _DIGIT_RUN.search(answer)):
            return False
        if task.scorer is not None:
            return task.scorer(answer, row)
        dataset = shared_dataset(self.task, self.config)
        with contextlib.redirect_stdout(io.StringIO()):  # some print the answers they cannot read
            score = dataset.score_answer(answer, _entry(self.task, row))
        return float(score) == 1.0


def _entry(task: str, row: Mapping[str, Any]) -> dict[str, Any]:
    """The row in the library's form: lists from JSON become tuples again where the library compares with tuples."""
    if task not in ("arc_agi", "rearc"):
        return dict(row)
    output = tuple(tuple(line) for line in row["metadata"]["output"])
    return {**row, "metadata": {**row["metadata"], "output": output}}
