"""Keeps TensorBoard's events in step with the checkpoints, however a run ends and from wherever it resumes."""

from collections.abc import Sequence
from pathlib import Path

from lightning.pytorch.loggers import Logger, TensorBoardLogger
from tensorboard.compat.proto.event_pb2 import Event, SessionLog

from asymgrpo_app.errors import UserError
from asymgrpo_app.runtime.compat import event_file
from asymgrpo_app.runtime.whole_files import sync

_EVENTS = "events.out.tfevents."
"""How the names of event files begin; the second in which the file was opened follows."""


def begin_at(loggers: Sequence[Logger], step: int) -> None:
    """Mark that events from `step` on are written anew: older events of these steps belong to weights that were lost.

    TensorBoard's own reader takes the first mark of a folder for the beginning of the run and drops nothing there, so a
    fresh run needs one, too: else the first resume would go unnoticed.

    Raises:
        UserError: A logger was closed at the end of an earlier run.
    """
    for logger in loggers:
        if isinstance(logger, TensorBoardLogger):
            if logger.experiment.file_writer is None:  # closed at the end of a run
                raise UserError(
                    "This Trainer has trained already, and its logger is closed: build a new one for each fit."
                )
            put_before(event_file(logger.experiment))
            event = Event(step=step, session_log=SessionLog(status=SessionLog.START))
            logger.experiment.file_writer.add_event(event)


def put_before(newest: Path) -> None:
    """Rename the event files of the same second as `newest`, or a later one, so that TensorBoard reads them before it.

    It reads the files of a folder by name, and names begin with the second in which they were opened. So a run that
    resumes within the second of the last one's start, or on a machine whose clock is behind, could come first.

    Args:
        newest: The event file that was opened last.

    Raises:
        OSError: A file cannot be renamed.
    """
    second, _, _ = newest.name.removeprefix(_EVENTS).partition(".")
    older = sorted(path for path in newest.parent.glob(f"{_EVENTS}*") if path != newest)
    for place, path in enumerate(older):
        if path.name >= f"{_EVENTS}{second}":
            # "~" comes after every letter and digit: these stay behind all other files of that second.
            rest = path.name.removeprefix(_EVENTS)
            path.rename(path.with_name(f"{_EVENTS}{int(second) - 1:010d}.~{place:06d}.{rest}"))


def force_to_disk(loggers: Sequence[Logger]) -> None:
    """Flush the loggers to the disk, so that a checkpoint never has steps that the events lack.

    Raises:
        OSError: It cannot be written.
    """
    for logger in loggers:
        if not isinstance(logger, TensorBoardLogger):
            logger.save()
            continue
        logger.experiment.flush()
        for path in Path(logger.log_dir).glob(f"{_EVENTS}*"):
            sync(path)
