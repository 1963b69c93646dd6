"""Whether this process is one of several of a run, as the environment says, and whether the environment can be right.

Launchers (Lightning's own, torchrun, srun) tell a process its rank by variables. What is left over of one in a shell
would make a lone process take itself for a further rank: it prints nothing, and writes nothing.
"""

import os
from collections.abc import Mapping, MutableMapping

from asymgrpo_app.errors import UserError

LAUNCHER_VARIABLE = "ASYMGRPO_LAUNCHER"
"""Process id of the process whose Lightning launcher starts further ranks; set by `announce_launcher`."""

_RANKS = ("RANK", "LOCAL_RANK", "NODE_RANK", "GROUP_RANK", "SLURM_PROCID", "JSM_NAMESPACE_RANK")
_NUMBERS = (
    *_RANKS,
    *("WORLD_SIZE", "LOCAL_WORLD_SIZE", "GROUP_WORLD_SIZE", "MASTER_PORT"),
    *("SLURM_NTASKS", "SLURM_NTASKS_PER_NODE", "SLURM_NNODES", "SLURM_JOB_NUM_NODES", "SLURM_LOCALID", "SLURM_NODEID"),
)
_MEETING = ("MASTER_ADDR", "MASTER_PORT")
_OF_TORCHRUN = ("RANK", "LOCAL_RANK", "WORLD_SIZE", *_MEETING)


def is_started_rank(environment: Mapping[str, str] = os.environ) -> bool:
    """Whether this process is a further rank that Lightning's launcher started."""
    further = environment.get("LOCAL_RANK", "0") not in ("", "0") and "TORCHELASTIC_RUN_ID" not in environment
    return further and environment.get(LAUNCHER_VARIABLE) == str(os.getppid())


def announce_launcher() -> None:
    """Tell the ranks that Lightning's launcher starts from this process that it is their parent."""
    os.environ[LAUNCHER_VARIABLE] = str(os.getpid())


def check_launch(environment: MutableMapping[str, str] = os.environ) -> None:
    """Refuse variables of a launcher that no launcher set; what says nothing is taken out of the environment.

    A SLURM job in which srun was not used is declared to be one, as Lightning would wait for the other tasks.

    Raises:
        UserError: With the variable and its value.
    """
    for name in (*_NUMBERS, *_MEETING, "OMP_NUM_THREADS"):
        if environment.get(name) == "":
            del environment[name]
    _check_numbers(environment)
    if "TORCHELASTIC_RUN_ID" in environment:
        _check_torchrun(environment)
        return
    if "SLURM_STEP_ID" in environment or is_started_rank(environment) or all(name in environment for name in _MEETING):
        return
    for name in _RANKS:
        if environment.get(name, "0").strip("0"):
            raise UserError(
                f"{name} is {environment[name]} in the environment, as if a launcher had started this process as one "
                f"of several, but none has: unset {name}, or set {' and '.join(_MEETING)} too if you start every "
                "process yourself."
            )
    for name in ("RANK", "LOCAL_RANK", "WORLD_SIZE"):
        environment.pop(name, None)
    if "SLURM_NTASKS" in environment:
        environment["SLURM_JOB_NAME"] = "interactive"  # Lightning's word for a job that starts its processes itself


def _check_numbers(environment: Mapping[str, str]) -> None:
    for name in _NUMBERS:
        if name in environment and not environment[name].isdecimal():
            raise UserError(f"{name} is {environment[name]!r} in the environment, which is no number: unset it.")
    threads = environment.get("OMP_NUM_THREADS", "1")
    if not all(part.strip().isdecimal() and int(part) > 0 for part in threads.split(",")):
        raise UserError(f"OMP_NUM_THREADS is {threads!r} in the environment, which is no number of threads: unset it.")


def _check_torchrun(environment: Mapping[str, str]) -> None:
    if lost := [name for name in _OF_TORCHRUN if name not in environment]:
        raise UserError(
            f"TORCHELASTIC_RUN_ID is set in the environment as by torchrun, but {', '.join(lost)} is not: start the "
            "command with torchrun, or unset it."
        )
