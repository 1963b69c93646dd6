"""Reward functions in the form of TRL, as verifiers."""

import asyncio
import inspect
import math
import pkgutil
from collections.abc import Awaitable, Callable, Mapping
from typing import Any, Literal

from asymgrpo_app.errors import UserError
from asymgrpo_app.rewards.base import Status, Verdict, Verifier

REWARDS_HINT = (
    "a reward function goes into asymgrpo_app.rewards.FunctionVerifier, and what scores form or length into "
    "model.shaping (docs/verifiers.md)"
)
"""Where a function, several rewards or weights belong that were given as a verifier."""

_NOT_COLUMNS = ("prompt", "completion", "completion_ids")
_UNKNOWN_HERE = ("completion_ids", "trainer_state")
"""What TRL gives a reward function and a verifier does not have."""


class FunctionVerifier(Verifier):
    """Judges by a reward function in the form of TRL: `f(prompts, completions, **columns)` returns a list of rewards.

    It is called for one completion at a time, so every list holds one element: the prompt, the completion, and the
    value of each further field of the row under the field's name. Arguments that the function does not name are left
    out, unless it takes `**kwargs`. It may be `async`.

    A reward of 1 (or True) is right, 0 (or False) is wrong, and None says that the completion was not judged, which is
    the status `error`. Any other number is refused as long as there is no `threshold`.

    Args:
        function: The function, by its module and name, e.g. `my_rewards.correct`; in Python also the function itself.
        threshold: Least reward that is right, for a function with graded rewards; null: a reward is 0 or 1.
        completions: Form of the completions: `text`, or `messages` as for chat data in TRL, `[{"role": "assistant",
            "content": text}]`.
        prompt_field: Field of the row that is given as `prompts`.

    Raises:
        UserError: There is no such function, or it asks for what a verifier does not have.
    """

    def __init__(
        self,
        function: str | Callable[..., Any],
        threshold: float | None = None,
        completions: Literal["text", "messages"] = "text",
        prompt_field: str = "prompt",
    ) -> None:
        if threshold is not None and not math.isfinite(threshold):
            raise UserError(f"threshold of FunctionVerifier must be a finite number or null, got {threshold}.")
        if completions not in ("text", "messages"):
            raise UserError(f'completions of FunctionVerifier must be "text" or "messages", got {completions!r}.')
        self.function = _found(function) if isinstance(function, str) else _callable(function, repr(function))
        self.threshold = threshold
        self.completions = completions
        self.prompt_field = prompt_field
        parameters = _parameters(self.function)
        self._takes_all = any(p.kind is p.VAR_KEYWORD for p in parameters)
        named = [p for p in parameters if p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY)]
        self._names = {p.name for p in named}
        self._required = {p.name for p in named if p.default is p.empty}
        if missing := self._required & set(_UNKNOWN_HERE):
            raise UserError(
                f"{self.name} asks for {', '.join(sorted(missing))}, which a verifier does not have: give it a default."
            )
        self._tried = False

    @property
    def name(self) -> str:
        """The name of the function, for messages."""
        return str(getattr(self.function, "__name__", type(self.function).__name__))

    def verify(self, completion: str, row: Mapping[str, Any]) -> Verdict:
        """Judge one completion by the function's reward.

        Raises:
            TypeError, ValueError: It returned something else than a list of one reward that is right or wrong.
        """
        reward = self._reward(completion, row)
        if reward is None:
            return Verdict(correct=False, status=Status.ERROR, detail=f"{self.name} returned None: not judged")
        return Verdict(correct=self._is_right(reward))

    def check_row(self, row: Mapping[str, Any]) -> None:
        """Check that the function's arguments are in the row, and try it on the first row that this process sees.

        Raises:
            ValueError: One is missing, or the function fails.
        """
        given = {"prompts", "completions"} if self.prompt_field in row else {"completions"}
        if missing := sorted(self._required - given - set(row)):
            fields = ", ".join(sorted(map(str, row)))
            hint = " (prompt_field names the field of the prompt)" if "prompts" in missing else ""
            raise ValueError(f"{self.name} asks for {', '.join(missing)}{hint}, the row has {fields}")
        if self._tried:
            return
        answer = row.get("answer")
        for completion in ("", answer) if isinstance(answer, str) else ("",):
            try:
                self.verify(completion, row)
            except Exception as error:
                said = str(error) if isinstance(error, ValueError) else f"{type(error).__name__}: {error}"
                raise ValueError(f"{self.name}: {said}") from error
        self._tried = True

    def _reward(self, completion: str, row: Mapping[str, Any]) -> Any:
        given: Any = [{"role": "assistant", "content": completion}] if self.completions == "messages" else completion
        arguments = {name: [value] for name, value in row.items() if name not in _NOT_COLUMNS}
        arguments |= {"completions": [given]}
        if self.prompt_field in row:
            arguments["prompts"] = [row[self.prompt_field]]
        if not self._takes_all:
            arguments = {name: value for name, value in arguments.items() if name in self._names}
        rewards = self.function(**arguments)
        if inspect.isawaitable(rewards):
            rewards = asyncio.run(_awaited(rewards))
        try:
            (reward,) = rewards
        except (TypeError, ValueError) as error:
            raise TypeError(f"{self.name} must return a list with one reward for one completion") from error
        return reward

    def _is_right(self, reward: Any) -> bool:
        if isinstance(reward, str):
            raise TypeError(f"{self.name} must return numbers, got {type(reward).__name__}")
        value = float(reward)
        if self.threshold is not None and math.isfinite(value):
            return value >= self.threshold
        if value not in (0.0, 1.0):
            raise ValueError(
                f"the reward {value:g} is neither 0 nor 1, as a share of right answers needs: set threshold, the least "
                "that is right; form is for model.shaping (docs/verifiers.md)"
            )
        return value == 1.0


def checked_verifier(verifier: object, owner: str) -> Verifier:
    """A verifier that was given in Python.

    Args:
        verifier: What was given.
        owner: Whose argument it is, for the message.

    Raises:
        UserError: It is something else, e.g. a function; the message says where that goes.
    """
    if not isinstance(verifier, Verifier):
        shown = verifier.__name__ if isinstance(verifier, type) or inspect.isfunction(verifier) else repr(verifier)
        raise UserError(f"verifier of {owner} must be an object of a Verifier class, got {shown}; {REWARDS_HINT}.")
    return verifier


def _found(path: str) -> Callable[..., Any]:
    if "." not in path or not all(part.isidentifier() for part in path.split(".")):
        raise UserError(f"function must be named by its module and name, e.g. my_rewards.correct, got {path!r}.")
    try:
        return _callable(pkgutil.resolve_name(path), path)
    except (ImportError, AttributeError) as error:
        raise UserError(f"function {path} cannot be loaded: {error}.") from error


def _callable(function: object, shown: str) -> Callable[..., Any]:
    if isinstance(function, type) or not callable(function):
        raise UserError(f"function must be a function that returns rewards, got {shown}.")
    return function


def _parameters(function: Callable[..., Any]) -> list[inspect.Parameter]:
    try:
        return list(inspect.signature(function).parameters.values())
    except (TypeError, ValueError) as error:  # written in C
        raise UserError(f"function {function!r} does not say which arguments it takes.") from error


async def _awaited(rewards: Awaitable[Any]) -> Any:
    return await rewards
