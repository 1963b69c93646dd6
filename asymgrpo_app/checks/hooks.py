"""Checks of the hooks that a user's callback has: what Lightning would call wrongly, and what it never calls."""

import inspect
from collections.abc import Iterable
from difflib import get_close_matches
from io import BytesIO

import torch
from lightning.pytorch import Callback

from asymgrpo_app.errors import UserError

_OTHERS = ("setup", "teardown", "state_dict", "load_state_dict")
HOOKS = [name for name in dir(Callback) if name.startswith("on_") or name in _OTHERS]
"""Names of the methods of a callback that Lightning calls."""

NEVER = {
    "on_before_zero_grad": "never runs: an update clears its gradients by itself",
    "on_sanity_check_start": "never runs: a run validates before its first step (on_validation_start)",
    "on_sanity_check_end": "never runs: a run validates before its first step (on_validation_end)",
    "on_train_epoch_end": "runs once, at the end: a run is one epoch (on_train_batch_end runs after each step)",
}
"""What is said of hooks that do not run, or not as often as their name says."""

_BY_KEYWORD = ("setup", "teardown")  # Lightning gives them `stage=`
_ONE_SET = "dataloader_idx"  # given where there are several evaluation sets


def check_hooks(callbacks: Iterable[Callback], sets: int) -> list[str]:
    """Check the hooks of a user's callbacks.

    Args:
        callbacks: Those that the config names.
        sets: Number of evaluation sets.

    Returns:
        A note for each hook that never runs here, or that Lightning does not know.

    Raises:
        UserError: Lightning could not call a hook.
    """
    notes = []
    for callback in callbacks:
        own = own_hooks(callback)
        for name in own:
            _check_call(callback, name, sets)
        if "state_dict" in own:
            _check_state(callback)
        place = f"trainer.callbacks: {type(callback).__name__}"
        notes += [f"{place}.{name} {NEVER[name]}." for name in own if name in NEVER]
        for name in _unknown(callback):
            near = get_close_matches(name, HOOKS, n=1, cutoff=0.6)
            notes.append(
                f"{place}.{name} is no hook of Lightning{f' ({near[0]} is)' if near else ''}, so it never runs."
            )
    return notes


def _check_call(callback: Callback, name: str, sets: int) -> None:
    hook = getattr(callback, name)
    place = f"trainer.callbacks: {type(callback).__name__}.{name}"
    if not callable(hook):
        raise UserError(f"{place} must be a method, got {hook!r}.")
    if inspect.iscoroutinefunction(hook) or inspect.isgeneratorfunction(hook):
        raise UserError(f"{place} must be a plain method: a coroutine or a generator would never run.")
    given = [*inspect.signature(getattr(Callback, name)).parameters][1:]
    if sets < 2:
        given = [argument for argument in given if argument != _ONE_SET]
    keywords = {argument: None for argument in given if name in _BY_KEYWORD and argument == "stage"}
    signature = inspect.signature(hook)
    try:
        signature.bind(*(argument for argument in given if argument not in keywords), **keywords)
    except TypeError:
        shown = [f"{argument}=..." if argument in keywords else argument for argument in given]
        raise UserError(
            f"{place}({', '.join(signature.parameters)}) cannot be called as Lightning calls it: "
            f"{name}({', '.join(shown)})."
        ) from None


def _check_state(callback: Callback) -> None:
    """Check that a checkpoint can be read back with the callback's state, as far as it is there before the run."""
    try:
        state = callback.state_dict()
    except Exception:  # it may need what `setup` makes
        return
    file = BytesIO()
    try:
        torch.save(state, file)
        file.seek(0)
        torch.load(file, weights_only=True)
    except Exception as error:
        raise UserError(
            f"trainer.callbacks: {type(callback).__name__}.state_dict holds something else than tensors and plain "
            "values (dict, list, str, int, float, bool, None), with which no checkpoint can be read back: convert it."
        ) from error


def _unknown(callback: Callback) -> list[str]:
    """Methods that are named like hooks and are none, of the user's own classes alone."""
    own = [cls for cls in type(callback).__mro__ if not cls.__module__.startswith(("lightning.", "builtins"))]
    named = {name for cls in own for name, value in vars(cls).items() if name.startswith("on_") and callable(value)}
    return sorted(named - set(HOOKS) - set(dir(Callback)))


def own_hooks(callback: Callback) -> list[str]:
    """The hooks of a callback that are not Lightning's code."""
    own = []
    for name in HOOKS:
        holder = next((cls for cls in type(callback).__mro__ if name in vars(cls)), Callback)
        if name in vars(callback) or not holder.__module__.startswith("lightning."):
            own.append(name)
    return own
