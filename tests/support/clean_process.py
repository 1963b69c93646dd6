"""Commands in processes of their own: forked by a server that has imported what takes seconds, or started afresh."""

import multiprocessing
import os
import signal
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

_HEAVY = ("asymgrpo_app.cli.run", "asymgrpo_app.rollout.transformers_engine", "tensorboard.compat", "matplotlib.figure")
_SCRIPT = str(Path(sys.executable).with_name("asymgrpo"))


@dataclass(frozen=True)
class Ended:
    """What a command did.

    Attributes:
        code: Its exit code; negative: the signal that killed it; None: it took too long, and was killed.
        out: What it wrote to stdout.
        error: What it wrote to stderr.
    """

    code: int | None
    out: str
    error: str


def run(
    arguments: list[str], folder: Path, environment: Mapping[str, str | None], logs: Path, seconds: float = 120
) -> Ended:
    """Run `asymgrpo ARGUMENTS...` in a folder.

    Args:
        arguments: Of the command.
        folder: Its working directory.
        environment: Variables to set, or to unset with None.
        logs: A folder for what it says.
        seconds: How long it may take.
    """
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload([*_HEAVY])
    process = context.Process(target=_command, args=(arguments, str(folder), dict(environment), str(logs)))
    process.start()
    process.join(seconds)
    code = process.exitcode
    if code is None:
        os.killpg(process.pid or 0, signal.SIGKILL)
        process.join()
    return Ended(code, *((logs / name).read_text(errors="replace") for name in ("out", "error")))


def run_afresh(
    arguments: list[str], folder: Path, environment: Mapping[str, str | None], seconds: float = 240
) -> Ended:
    """The same in a new interpreter, for variables that it or a library reads when it starts."""
    chosen = {name: value for name, value in {**os.environ, **environment}.items() if value is not None}
    started = subprocess.Popen(
        [_SCRIPT, *arguments],
        cwd=folder,
        env=chosen,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        start_new_session=True,
        text=True,
        errors="replace",
    )
    try:
        out, error = started.communicate(timeout=seconds)
    except subprocess.TimeoutExpired:
        os.killpg(started.pid, signal.SIGKILL)
        return Ended(None, *started.communicate())
    return Ended(started.returncode, out, error)


def _command(arguments: list[str], folder: str, environment: dict[str, str | None], logs: str) -> None:
    os.setsid()
    signal.signal(signal.SIGINT, signal.default_int_handler)
    os.chdir(folder)
    for name, value in environment.items():
        if value is None:
            os.environ.pop(name, None)
        else:
            os.environ[name] = value
    for stream, name in ((sys.stdout, "out"), (sys.stderr, "error")):
        stream.flush()
        os.dup2(os.open(f"{logs}/{name}", os.O_WRONLY | os.O_CREAT | os.O_TRUNC), stream.fileno())
    sys.argv = [_SCRIPT, *arguments]  # which further ranks are started by
    from asymgrpo_app.cli import entry_point

    entry_point()
