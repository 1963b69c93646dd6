"""Messages on the terminal, and silenced messages of libraries.

All that is said passes through here: texts of files, models and servers are shown, and never obeyed by the terminal.
"""

import logging
import sys
import threading
import traceback
import warnings
from types import TracebackType

from lightning_utilities.core.rank_zero import rank_zero_only  # Lightning's own, which takes seconds to import
from tqdm import tqdm

_LONGEST_COMPLAINT = 2_000
# What a user of Lightning asks for: reports of profilers, tables of layers, and why EarlyStopping stopped (`verbose`).
_REPORTS = tuple(
    f"lightning.pytorch.{name}" for name in ("profilers", "callbacks.model_summary", "callbacks.early_stopping")
)
_thread_failed = threading.excepthook


def printable(text: str) -> str:
    """The text with control characters, half surrogate pairs and the like as escapes, since a terminal obeys them."""
    return "".join(char if char.isprintable() else ascii(char)[1:-1] for char in text)


def lines_of(text: str) -> str:
    """A text of our own, with its line feeds; whatever is put into it from elsewhere has to be `printable` before."""
    return "\n".join(map(printable, text.split("\n")))


def say(text: str) -> None:
    """Print lines, on the first rank alone; above the progress bar where there is one."""
    if getattr(rank_zero_only, "rank", 0) == 0:  # not set where Lightning is not loaded
        tqdm.write(lines_of(text))
        sys.stdout.flush()


def complain(text: str) -> None:
    """Print one line on stderr: the sentence that a command ends with. Of a very long one the middle is left out."""
    line = printable(text)
    if len(line) > _LONGEST_COMPLAINT:
        line = f"{line[: _LONGEST_COMPLAINT - 400]} ... {line[-395:]}"  # what to do is said at the end
    print(line, file=sys.stderr)


def show_failure(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
    """Exception hook: a traceback quotes texts of files, too."""
    print(lines_of("".join(traceback.format_exception(kind, error, trace))), file=sys.stderr)


def quiet_libraries() -> None:
    """Silence messages of libraries that a user cannot act on; errors still show."""
    for name in ("lightning.pytorch", "lightning.fabric"):
        logging.getLogger(name).setLevel(logging.WARNING)  # device lists and tips
    for name in _REPORTS:
        reports = logging.getLogger(name)
        reports.setLevel(logging.INFO)
        reports.handlers, reports.propagate = [_SayReport()], False
    if (loaded := sys.modules.get("transformers")) is not None:  # else it reads `quiet_environment` when it is imported
        loaded.logging.disable_progress_bar()
        loaded.logging.set_verbosity_error()
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
    warnings.formatwarning = _warning_line


class _SayReport(logging.Handler):
    """Says what a library logs as a report, as all else on the terminal is said."""

    def emit(self, record: logging.LogRecord) -> None:
        say(record.getMessage().replace("\r", "").expandtabs())


def _warning_line(
    message: Warning | str,
    category: type[Warning],
    filename: str,
    lineno: int,
    line: str | None = None,  # noqa: ARG001
) -> str:
    """A warning as one line that the terminal does not obey; in place of Python's and Lightning's formats."""
    return printable(f"{filename}:{lineno}: {category.__name__}: {message}") + "\n"


def _tell_of_thread(failure: threading.ExceptHookArgs) -> None:
    """Thread exception hook that ignores write errors of TensorBoard's writer: the run gets them at its next event."""
    of_writer = type(failure.thread).__module__ == "tensorboard.summary.writer.event_file_writer"
    if not (of_writer and isinstance(failure.exc_value, OSError)):
        _thread_failed(failure)
