"""vLLM's process groups in a process that has a group of the run.

vLLM takes the default process group for its own: to shut an engine down destroys it, and with it the run's exchanges.
And each engine makes its groups anew, in which all ranks would have to take part, also those whose engine did not fail.
So inside a run vLLM makes its groups once, and they stay when an engine ends: the next one finds them.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from torch import distributed

# vLLM's groups, each a global of `vllm.distributed.parallel_state`.
_GROUPS = ("_WORLD", "_NODE_COUNT", "_TP", "_ETP", "_ENGRAM_DP", "_DCP", "_PCP", "_PP", "_DP", "_EP", "_EPLB")


class _Made:
    """What vLLM's groups were made for.

    Attributes:
        run: The run's group that they are in; None: there is none, or they are in one of vLLM's own.
        needs: What decides which groups an engine needs.
        own: The default group that vLLM made.
    """

    run: Any = None
    needs: tuple[str, int] | None = None
    own: Any = None


@contextmanager
def making_groups(model: str, tensor_parallel_size: int) -> Iterator[None]:
    """While an engine starts: its groups are made within the run's, or found there.

    All ranks of the run start the first engine at the same time; a further one of the same kind makes no group, so one
    rank alone may start it.

    Args:
        model: Folder or hub id; experts have a group more.
        tensor_parallel_size: Ranks that share one copy of the model.
    """
    run = _default_group()
    if run is _Made.own:
        run = None
    if _Made.run is not run:
        _forget_groups()
    elif run is not None and _Made.needs != (model, tensor_parallel_size):
        from vllm.distributed.parallel_state import destroy_model_parallel

        destroy_model_parallel()
    _Made.run, _Made.needs = run, None
    if run is None:
        yield
        _Made.own = _default_group()
        return
    # A group with a device makes every further group by splitting its communicator, in which all ranks take part, also
    # those outside of the new group.
    bound, run.bound_device_id = run.bound_device_id, None
    try:
        yield
    finally:
        run.bound_device_id = bound
    _Made.needs = (model, tensor_parallel_size)


@contextmanager
def keeping_groups() -> Iterator[None]:
    """While an engine is shut down: the run's group, and vLLM's within it, stay as they are."""
    if _Made.run is None:
        yield  # vLLM's own
        return
    from vllm.distributed import parallel_state

    names = ("destroy_model_parallel", "destroy_distributed_environment")
    destroy = {name: getattr(parallel_state, name) for name in names}
    for name in names:
        setattr(parallel_state, name, _leave)
    try:
        yield
    finally:
        for name in names:
            setattr(parallel_state, name, destroy[name])


def _default_group() -> Any:
    return distributed.group.WORLD if distributed.is_available() and distributed.is_initialized() else None


def _leave() -> None:
    """Destroy nothing."""


def _forget_groups() -> None:
    """Have vLLM make its groups anew: those it knows were in a group that is gone."""
    from vllm.distributed import parallel_state

    for name in _GROUPS:
        setattr(parallel_state, name, None)
