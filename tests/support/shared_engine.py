"""One real vLLM engine for all short runs of a test process: starting one per run would take most of their time."""

from typing import Any

from tests.support.paths import POLICY

ROOM = 50
"""Most tokens of a prompt and its completion: more than one block of vLLM's cache, which has 32."""


class SharedEngine:
    """Started when it is first asked for; ended before a test file that starts engines of its own.

    Closing any engine ends all others of its process, so no two may be there at a time.
    """

    def __init__(self) -> None:
        self._engine: Any = None

    def get(self) -> Any:
        """The engine: float32, `ROOM` tokens, for the shipped policy."""
        if self._engine is None or not _workers_are_there():
            from asymgrpo_app.rollout.vllm_engine import VLLMEngine, VLLMEngineConfig

            self._engine = VLLMEngine(POLICY, VLLMEngineConfig(max_num_seqs=64), "float32", max_model_len=ROOM)
        return self._engine

    def close(self) -> None:
        """End it; the next `get` starts another."""
        if self._engine is not None:
            self._engine.close()
            self._engine = None


def _workers_are_there() -> bool:
    """Whether no other engine of this process was closed meanwhile, as long as no other is open."""
    from vllm.distributed.parallel_state import model_parallel_is_initialized

    return bool(model_parallel_is_initialized())


SHARED = SharedEngine()
"""The one of this process, as vLLM keeps one group of workers per process."""


def kept(engine: Any) -> Any:
    """The engine for one run more: closing it leaves it as it is."""

    class Kept:
        keeps_weights = True
        load_weights = staticmethod(engine.load_weights)
        digest = staticmethod(engine.digest)
        generate = staticmethod(engine.generate)

        def close(self) -> None:
            """Stays for the next run."""

    return Kept()
