"""A callback with which vLLM fails on one rank."""

from typing import Any

from lightning.pytorch import Callback, Trainer

from asymgrpo_app.rollout.engine import EngineError
from asymgrpo_app.rollout.vllm_engine import VLLMEngine


class FailsOnce(Callback):
    """The second generation of rank 1 fails, once."""

    def setup(self, trainer: Trainer, pl_module: Any, stage: str) -> None:
        generate, calls = VLLMEngine.generate, []

        def failing(engine: VLLMEngine, *arguments: Any) -> Any:
            calls.append(engine)
            if trainer.global_rank == 1 and len(calls) == 2:
                raise EngineError("vLLM failed while it sampled: as it was told.")
            return generate(engine, *arguments)

        VLLMEngine.generate = failing  # type: ignore[method-assign]
