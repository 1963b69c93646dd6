"""vLLM's server as a program whose processes end with it: `python -m asymgrpo_app.rollout.server.process`.

vLLM's engine does not notice that its server was killed by SIGKILL. It keeps its memory, a GPU's included, and the
server that a supervisor starts next finds none (vLLM issue 55510). So every process that this server makes asks the
kernel to be ended with the one it comes from.
"""

import ctypes
import os
import signal
import sys

_PR_SET_PDEATHSIG = 1


def end_with_parent() -> None:
    """Have the kernel kill this process when its parent ends (Linux; elsewhere nothing)."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)


if __name__ == "__mp_main__":  # a process that multiprocessing spawned: it imports the program it comes from
    end_with_parent()
if __name__ in ("__main__", "__mp_main__"):
    os.register_at_fork(after_in_child=end_with_parent)  # the kernel's promise is not inherited
if __name__ == "__main__":
    from vllm.entrypoints.launchers.api_server.entry import main

    main()
