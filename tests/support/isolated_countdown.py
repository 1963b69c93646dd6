"""Countdown as the quick start has it, but judged in worker processes, so that there are some to be left behind."""

from typing import ClassVar

from asymgrpo_app.prompts import Countdown
from asymgrpo_app.rewards.countdown import CountdownVerifier


class IsolatedVerifier(CountdownVerifier):
    """Runs in a worker process."""

    isolated: ClassVar[bool] = True


class IsolatedCountdown(Countdown):
    """Has the isolated verifier."""

    def __init__(self) -> None:
        super().__init__("train")
        self.verifier = IsolatedVerifier()
