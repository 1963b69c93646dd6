"""vLLM's server as a program whose processes end with it: `python -m asymgrpo_app.rollout.server.process`.

vLLM's engine does not notice that its server was killed by SIGKILL. It keeps its memory, a GPU's included, and the
server that a supervisor starts next finds none (vLLM issue 55510). So every process that this server makes asks the
kernel to be ended with the one it comes from.
"""

import os

from asymgrpo_app.runtime.stopping import end_with_parent

_forking = {"parent": 0}


def end_forks_with_this() -> None:
    """Make every forked process end with its parent; the kernel's setting for it is not inherited."""
    os.register_at_fork(
        before=lambda: _forking.update(parent=os.getpid()), after_in_child=lambda: end_with_parent(_forking["parent"])
    )


if __name__ == "__mp_main__":  # a process that multiprocessing spawned: it imports the program it comes from
    end_with_parent()
if __name__ in ("__main__", "__mp_main__"):
    end_forks_with_this()
if __name__ == "__main__":
    from vllm.entrypoints.launchers.api_server.entry import main

    main()
