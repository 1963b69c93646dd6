"""What the tests share."""

import os
import tempfile
from pathlib import Path

import psutil
import pytest

from asymgrpo_app.environment import quiet_environment


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


quiet_environment()
os.environ["HF_HUB_OFFLINE"] = "1"  # no test may reach for a model hub
_cache = tempfile.TemporaryDirectory(prefix="asymgrpo-test-cache-")
os.environ["ASYMGRPO_CACHE"] = _cache.name  # no test may write to the user's own cache

REPOSITORY = Path(__file__).resolve().parent.parent


@pytest.fixture
def repository() -> Path:
    """The root of the checkout."""
    return REPOSITORY


@pytest.fixture
def quickstart() -> list[str]:
    """`fit` with the quick start's config, from any working directory."""
    return [
        "fit",
        f"--config={REPOSITORY / 'configs/quickstart.yaml'}",
        f"--model.policy={REPOSITORY / 'data/countdown_base'}",
    ]


@pytest.fixture(scope="module")
def engine():
    """One real engine for a module's short runs: starting one per run would take most of their time.

    Not for the whole session: closing any other engine of the process would end this one, too.
    """
    from asymgrpo_app.rollout.vllm_engine import VLLMEngine, VLLMEngineConfig

    config = VLLMEngineConfig(max_num_seqs=64)
    engine = VLLMEngine(str(REPOSITORY / "data/countdown_base"), config, "float32", max_model_len=26)
    yield engine
    engine.close()


def kept(engine):
    """The engine for one run more: closing it leaves it as it is."""

    class Kept:
        keeps_weights = True
        load_weights = staticmethod(engine.load_weights)
        digest = staticmethod(engine.digest)
        generate = staticmethod(engine.generate)

        def close(self) -> None:
            """Stays for the next run."""

    return Kept()


@pytest.fixture
def shared_engine(engine, monkeypatch):
    """Runs of this test sample with the module's engine, which stays when they end."""
    from asymgrpo_app.callbacks import rollout

    monkeypatch.setattr(rollout, "VLLMEngine", lambda *arguments: kept(engine))
