"""The reasons that callbacks give for a run's early end."""

import time

from lightning.pytorch import Callback
from lightning.pytorch.callbacks import EarlyStopping, Timer

from asymgrpo_app.callbacks.stop_reasons import StopReasons


class Silent(Callback):
    """A callback of the user's own, which says nothing."""


def test_what_was_said_in_an_earlier_process_is_no_reason():
    stopping = EarlyStopping("reward/mean")
    stopping.stopping_reason_message = "Monitored metric did not improve."
    reasons = StopReasons([stopping, Silent()])
    assert str(reasons) == "Silent, without a reason."
    stopping.stopping_reason_message = "".join(["Monitored metric ", "did not improve. Signaling Trainer to stop."])
    assert str(reasons) == "EarlyStopping: Monitored metric did not improve."


def test_a_timer_of_a_script_is_a_reason_once_it_is_over():
    over, running = Timer({"microseconds": 1}), Timer({"hours": 1})
    reasons = StopReasons([over, running])
    for timer in (over, running):
        timer.on_train_start(None, None)
    time.sleep(0.001)
    assert str(reasons) == "Timer: its duration is over."


def test_nobody_is_named_where_none_could_be_it():
    assert str(StopReasons([Timer({"hours": 1})])) == "trainer.should_stop, without a reason."
