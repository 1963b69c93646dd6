"""Whether vLLM can be imported: to be installed says little about its C extensions, CUDA, and what it needs."""

import signal
import subprocess
import sys
from importlib.util import find_spec

from asymgrpo_app.errors import UserError

_SECONDS = 300.0
_MARK = "vLLM cannot be imported: "
_IMPORT = f"""
import sys, warnings
warnings.simplefilter("ignore")
try:
    import vllm
    vllm.LLM
except BaseException as error:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    print("{_MARK}" + ": ".join([type(error).__name__, *lines[:1]]), flush=True)
    sys.exit(1)
"""


def described(error: BaseException) -> str:
    """Type and first line of an exception."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return ": ".join([type(error).__name__, *lines[:1]])[:300]


def cannot_be_imported(reason: str) -> UserError:
    """The error for a vLLM that is installed, and fails as it is imported."""
    return UserError(
        f"vLLM is installed, but it cannot be imported ({reason}): install it again for this machine's Python, torch "
        "and CUDA, or set rollout.sampler: transformers, which is slow."
    )


class ImportTrial:
    """Imports vLLM in a process of its own, while this one goes on; nothing happens if it is not installed."""

    def __init__(self) -> None:
        self._process: subprocess.Popen[str] | None = None
        if find_spec("vllm") is not None:
            self._process = subprocess.Popen(
                # Not from the working directory, which may have a file of that name.
                [sys.executable, "-P", "-c", _IMPORT],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.DEVNULL,
                text=True,
                errors="replace",
                start_new_session=True,  # a Ctrl-C is for this process, which then ends that one
            )

    def finish(self) -> None:
        """Wait for it.

        Raises:
            UserError: vLLM cannot be imported; the message has the first line of the cause.
        """
        if self._process is None:
            return
        try:
            out, _ = self._process.communicate(timeout=_SECONDS)
        except subprocess.TimeoutExpired:
            raise cannot_be_imported(f"it took longer than {_SECONDS:g} s") from None
        code = self._process.returncode
        if code == 0:
            return
        said = [line.removeprefix(_MARK) for line in out.splitlines() if line.startswith(_MARK)]
        how = f"the process was ended by {signal.Signals(-code).name}" if code < 0 else f"exit code {code}"
        raise cannot_be_imported(said[0][:300] if said else how)

    def end(self) -> None:
        """End it, whatever it is doing. Safe to call twice."""
        if self._process is not None:
            with self._process:
                self._process.kill()
