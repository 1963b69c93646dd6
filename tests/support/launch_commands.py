"""Stand-ins for what the launch scripts start, as small shell scripts in a folder at the front of PATH."""

import os
import signal
import subprocess
import sys
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parents[2]

# Notes its place and arguments, and what it is told to do as rank 0 and 1 (ENDS, a code each; `wait` until a signal).
# After a signal it saves for a second, during which another signal would end it with 99.
RANK = r"""
echo "rank $RANK of $WORLD_SIZE: $*" >>"$NOTES"
ends=($ENDS)
stop() {
  trap 'echo "rank $RANK: a second signal" >>"$NOTES"; exit 99' TERM INT HUP USR1 USR2
  for tenth in 1 2 3 4 5 6 7 8 9 10 11 12; do sleep 0.1; done
  if [ "$RANK" = 0 ]; then for tenth in 1 2 3 4 5 6 7 8 9 10; do sleep 0.1; done; fi
  echo "rank $RANK: saved" >>"$NOTES"
  exit "$1"
}
trap 'stop 143' TERM
trap 'stop 130' INT
trap 'stop 129' HUP
trap 'stop 75' USR1 USR2
echo "rank $RANK: ready" >>"$NOTES"
case ${ends[$RANK]} in
  wait) while :; do sleep 0.1; done ;;
  stop:*) stop "${ends[$RANK]#stop:}" ;;
  *) exit "${ends[$RANK]}" ;;
esac
"""
# torchrun, as far as the number of machines goes: it notes its arguments.
TORCHRUN = r"""
echo "torchrun $*" >>"$NOTES"
echo "${ENDS:-0}" >>"$ASYMGRPO_CODES"
"""
SRUN = r"""
echo "srun $*" >>"$NOTES"
while [[ $1 == --* ]]; do shift; done
code=0
for ((node = 0; node < SLURM_JOB_NUM_NODES; node++)); do
  SLURM_NODEID=$node "$@" || { one=$?; ((one > code)) && code=$one; }
done
exit "$code"
"""
SCONTROL = r"""
if [[ $1 == show ]]; then printf 'gpu%s\n' 07 08; else echo "scontrol $*" >>"$NOTES"; fi
"""
NO_GPUS = "exit 9"


def place(folder: Path, **scripts: str) -> Path:
    """Write commands of these names; returns the folder."""
    folder.mkdir(exist_ok=True)
    for name, text in scripts.items():
        path = folder / name.replace("_", "-")
        path.write_text(f"#!/usr/bin/env bash\n{text}")
        path.chmod(0o755)
    return folder


def environment(folder: Path, **variables: str) -> dict[str, str]:
    """The variables of a command, with the folder's commands before all others, and those of this environment."""
    own = {
        name: value for name, value in os.environ.items() if not name.startswith(("SLURM", "NODE", "MASTER", "CUDA"))
    }
    path = f"{folder}:{Path(sys.executable).parent}:{os.environ['PATH']}"
    return own | {"PATH": path, "NOTES": str(folder / "notes")} | variables


def start(command: list[str], env: dict[str, str]) -> subprocess.Popen[str]:
    """A command in a session of its own, so that a test that fails can end all of it."""
    return subprocess.Popen(
        command,
        env=env,
        cwd=REPOSITORY,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
        # A shell starts what it runs in the background with SIGINT ignored, and no script can trap it then.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )


def notes(folder: Path) -> list[str]:
    """What the commands noted."""
    path = folder / "notes"
    return path.read_text().splitlines() if path.exists() else []
