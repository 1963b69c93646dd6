"""A sampler without a model whose completions follow from their seeds, so that any split of them is the same."""

from collections.abc import Sequence

from asymgrpo_app.rollout.types import Completion, SampleRequest, SamplingSettings
from tests.support.scripted_engine import RIGHT, WRONG, ScriptedEngine


class SeededEngine(ScriptedEngine):
    """Every other seed, more or less, gives the right answer."""

    def generate(self, requests: Sequence[SampleRequest], settings: SamplingSettings) -> list[Completion]:
        texts = [(RIGHT, WRONG)[request.seed // 1000 % 2] for request in requests]
        return [Completion(self.answers[text], [-2.0] * len(self.answers[text]), truncated=False) for text in texts]
