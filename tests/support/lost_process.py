"""A run in which a process is killed in the middle of a step: `asymgrpo ARGUMENTS...` with a scripted sampler.

From the environment: KILLED, the rank that kills itself in the first backward pass of the second step. Each process
writes its PID into PIDS, a folder.
"""

import os
import signal
import sys
from pathlib import Path
from typing import Any

from asymgrpo_app.callbacks import rollout
from asymgrpo_app.cli import main
from asymgrpo_app.module import AsymGRPOModule
from tests.support.scripted_engine import ScriptedEngine

_plain = AsymGRPOModule.manual_backward


def _backward(module: AsymGRPOModule, *arguments: Any, **named: Any) -> None:
    if module.completed_steps == 1 and os.environ["KILLED"] == str(module.global_rank):
        os.kill(os.getpid(), signal.SIGKILL)
    _plain(module, *arguments, **named)


if __name__ == "__main__":
    Path(os.environ["PIDS"], str(os.getpid())).touch()
    AsymGRPOModule.manual_backward = _backward  # type: ignore[method-assign]
    rollout.import_vllm = lambda: None  # type: ignore[assignment]
    rollout.VLLMEngine = ScriptedEngine  # type: ignore[misc, assignment]
    sys.exit(main(sys.argv[1:]))
