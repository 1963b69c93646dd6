"""What the tests share."""

import os
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

from asymgrpo_app.runtime.environment import quiet_environment
from tests.support.once import once_per_process
from tests.support.paths import QUICKSTART, REPOSITORY
from tests.support.shared_engine import SHARED, kept


def pytest_configure(config: pytest.Config) -> None:
    """Give each worker of pytest-xdist cores of its own, before torch counts them.

    Two engines of vLLM whose threads are bound to the same cores starve each other; with a core each, two tests take no
    longer than one.
    """
    worker = getattr(config, "workerinput", None)
    if worker is None or not hasattr(os, "sched_setaffinity"):
        return
    number, workers = int(worker["workerid"].removeprefix("gw")), worker["workercount"]
    # One that takes the place of a crashed worker has a higher number.
    if own := sorted(os.sched_getaffinity(0))[number % workers :: workers]:
        os.sched_setaffinity(0, own)
        os.environ["OMP_NUM_THREADS"] = str(len(own))


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_auto_num_workers(config: pytest.Config) -> int | None:
    """A worker for each core, and for each 6 GiB of memory: what the largest test takes, with room."""
    if "PYTEST_XDIST_AUTO_NUM_WORKERS" in os.environ:
        return None  # which pytest-xdist follows by itself
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(1, min(cores, psutil.virtual_memory().total // (6 * 2**30)))


# What takes longest, so that no worker is left with it at the end, when the others have nothing to do.
FIRST = (
    "test_kill_loop.py",
    "test_options.py",
    "test_server_vllm.py",
    "test_files_and_commands.py",
    "test_strategies.py",
    "test_gradient_cuts.py",
)


@pytest.hookimpl(trylast=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Long files first; those that start engines of their own last, as they end the common one."""

    def place(item: pytest.Item) -> int:
        if item.path.parent.name == "engines":
            return len(FIRST) + 1
        return FIRST.index(item.path.name) if item.path.name in FIRST else len(FIRST)

    items.sort(key=place)


quiet_environment()
os.environ["HF_HUB_OFFLINE"] = "1"  # no test may reach for a model hub
_cache = tempfile.TemporaryDirectory(prefix="asymgrpo-test-cache-")
os.environ["ASYMGRPO_CACHE"] = _cache.name  # no test may write to the user's own cache


@pytest.fixture
def repository() -> Path:
    """The root of the checkout."""
    return REPOSITORY


@pytest.fixture
def quickstart() -> list[str]:
    """`fit` with the quick start's config, from any working directory."""
    return ["fit", *QUICKSTART]


@pytest.fixture(autouse=True)
def _once_per_process(monkeypatch: pytest.MonkeyPatch) -> None:
    if "asymgrpo_app.cli.run" in sys.modules:  # not for the sake of tests that need no command
        once_per_process(monkeypatch)


@pytest.fixture(scope="session", autouse=True)
def _end_shared_engine() -> Iterator[None]:
    yield
    SHARED.close()


@pytest.fixture(scope="module")
def engine() -> Any:
    """Real vLLM with the shipped policy, the same engine for all test files of this process."""
    return SHARED.get()


@pytest.fixture
def shared_engine(engine: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Runs of this test sample with `engine`, which stays when they end."""
    monkeypatch.setattr("asymgrpo_app.callbacks.rollout.VLLMEngine", lambda *_: kept(engine))
