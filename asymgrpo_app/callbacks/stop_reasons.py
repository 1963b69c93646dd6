"""The callback that stopped a run before its last step, and its reason, as far as callbacks tell."""

from collections.abc import Sequence
from typing import Any

from lightning.pytorch import Callback
from lightning.pytorch.callbacks import Timer

from asymgrpo_app.errors import one_line

_LIBRARIES = ("lightning", "pytorch_lightning", "asymgrpo_app")


class StopReasons:
    """The reasons that a trainer's callbacks give for `trainer.should_stop`.

    A callback gives its reason as `EarlyStopping` does, in `stopping_reason_message`. One that says nothing is named if
    it is the user's own, since Lightning's others do not stop a run.

    Args:
        callbacks: All callbacks of the trainer, at the start of training. What they say by then is from the state
            of an earlier process.
    """

    def __init__(self, callbacks: Sequence[Callback]) -> None:
        self._callbacks = list(callbacks)
        self._earlier = [_message(callback) for callback in callbacks]

    def __str__(self) -> str:
        pairs = zip(self._callbacks, self._earlier, strict=True)
        # A reason that was given again is another object, with the same words or not.
        stated = [(own, text) for own, earlier in pairs if (text := _message(own)) and text is not earlier]
        timers = [own for own in self._callbacks if isinstance(own, Timer) and _is_over(own)]
        reasons = [
            f"{_name(own)}: {one_line(text).removesuffix(' Signaling Trainer to stop.')}" for own, text in stated
        ]
        reasons += [f"{_name(own)}: its duration is over." for own in timers]
        if not reasons:
            silent = [_name(own) for own in self._callbacks if type(own).__module__.partition(".")[0] not in _LIBRARIES]
            reasons = [f"{' or '.join(silent) or 'trainer.should_stop'}, without a reason."]
        return "; ".join(reasons)


def _message(callback: Callback) -> str | None:
    message: Any = getattr(callback, "stopping_reason_message", None)
    return message if isinstance(message, str) else None


def _is_over(timer: Timer) -> bool:
    remaining = timer.time_remaining()
    return remaining is not None and remaining <= 0


def _name(callback: Callback) -> str:
    return type(callback).__name__
