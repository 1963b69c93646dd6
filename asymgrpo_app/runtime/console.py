"""Messages on the terminal, and silenced messages of libraries."""

import logging
import sys
import threading
import warnings

from lightning.pytorch.utilities import rank_zero_only
from tqdm import tqdm

_thread_failed = threading.excepthook


def printable(text: str) -> str:
    """The text with control characters, half surrogate pairs and the like as escapes, since a terminal obeys them."""
    return "".join(char if char.isprintable() else ascii(char)[1:-1] for char in text)


@rank_zero_only
def say(text: str) -> None:
    """Print a line, on the first rank alone; above the progress bar where there is one."""
    tqdm.write(text)
    sys.stdout.flush()


def quiet_libraries() -> None:
    """Silence messages of libraries that a user cannot act on; errors still show."""
    for name in ("lightning.pytorch", "lightning.fabric"):
        logging.getLogger(name).setLevel(logging.WARNING)  # device lists and tips
    import transformers

    transformers.logging.disable_progress_bar()  # "Loading weights" for every model file
    transformers.logging.set_verbosity_error()
    for message in (
        ".*does not have many workers.*",  # prompts are cheap to make, there is nothing to load in workers
        ".*You are resuming from a checkpoint that ended before the epoch ended.*",  # the data continue by step
        ".*sync_dist=True.*",  # values are reduced over ranks before they are logged
        ".*Total length of .* across ranks is zero.*",  # a run without evaluation sets
        ".*torch.distributed is disabled.*",  # one process alone reads a sharded checkpoint on purpose
        ".*LeafSpec.*",  # Lightning's use of torch
    ):
        warnings.filterwarnings("ignore", message=message)
    threading.excepthook = _tell_of_thread


def _tell_of_thread(failure: threading.ExceptHookArgs) -> None:
    """Thread exception hook that ignores write errors of TensorBoard's writer: the run gets them at its next event."""
    of_writer = type(failure.thread).__module__ == "tensorboard.summary.writer.event_file_writer"
    if not (of_writer and isinstance(failure.exc_value, OSError)):
        _thread_failed(failure)
