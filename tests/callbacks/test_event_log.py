"""Events are read in the order in which they were written, whatever the clocks of the machines say."""

import pytest
from lightning.pytorch.loggers import TensorBoardLogger

from asymgrpo_app.callbacks.event_log import begin_at, force_to_disk, put_before
from tests.support.events import scalars

NAMES = ("events.out.tfevents.0000000149.host.9.0", "events.out.tfevents.0000000300.host.8.1")


def touched(folder, *names):
    for name in names:
        (folder / name).write_text(name)
    return folder / names[-1]


def read_order(folder):
    return [path.read_text() for path in sorted(folder.iterdir())]


@pytest.mark.parametrize(
    "newest",
    [
        "events.out.tfevents.0000000301.host.7.0",
        "events.out.tfevents.0000000300.host.7.1",  # the same second, of a process with a lower number
        "events.out.tfevents.0000000300.host.8.0",
        "events.out.tfevents.0000000150.host.7.0",  # a clock that is behind
        "events.out.tfevents.0000000100.host.7.0",
    ],
)
def test_older_files_come_first(newest, tmp_path):
    put_before(touched(tmp_path, *NAMES, newest))
    assert read_order(tmp_path) == [*NAMES, newest]
    assert (tmp_path / newest).exists()
    again = touched(tmp_path, "events.out.tfevents.0000000090.host.7.0")
    put_before(again)
    assert read_order(tmp_path) == [*NAMES, newest, again.name]


@pytest.mark.parametrize("clock", [0, -3600, 1])
def test_a_run_that_goes_on_is_read_after_the_first(clock, tmp_path, monkeypatch):
    """Twelve loggers of one process: numbers in names are compared as text, "10" before "9"."""
    now = 1_700_000_000.0
    monkeypatch.setattr("time.time", lambda: now)
    for step in range(12):
        logger = TensorBoardLogger(tmp_path, name="", version="tensorboard")
        begin_at([logger], step)
        logger.log_metrics({"reward": step / 4}, step)
        if step < 11:
            logger.log_metrics({"reward": 99.0}, step + 1)  # lost when the process was killed
        force_to_disk([logger])
        logger.finalize("success")
        now += clock
    assert scalars(tmp_path)["reward"] == [(step, step / 4) for step in range(12)]
