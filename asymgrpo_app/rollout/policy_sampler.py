"""The sampler of a run: an engine that has the policy's newest weights whenever it samples."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, Protocol

import torch
from torch import Tensor

from asymgrpo_app.metrics import Stopwatch
from asymgrpo_app.microbatch.microbatch import TokenSequence
from asymgrpo_app.parallel.ranks import gather_objects
from asymgrpo_app.parallel.sharding import is_sharded, whole_weights
from asymgrpo_app.policy.loading import linear_weights
from asymgrpo_app.rollout.canary import ONE_TO_ONE, CanaryConfig, check_digest, check_logprobs
from asymgrpo_app.rollout.digest import RunningDigest, WeightDigest
from asymgrpo_app.rollout.engine import EngineError, RolloutEngine
from asymgrpo_app.rollout.types import Completion, SampleRequest, SamplingSettings
from asymgrpo_app.runtime.console import say

if TYPE_CHECKING:  # transformers takes seconds to import, which a wrong key should not wait for
    from transformers import PreTrainedModel


class SampledModule(Protocol):
    """Protocol of the module whose policy is sampled.

    Attributes:
        policy: The model.
        weight_version: Changes whenever its weights do.
        completed_steps: RL steps completed.
    """

    policy: PreTrainedModel
    weight_version: int
    completed_steps: int

    def sequence_logprobs(self, sequences: Sequence[TokenSequence], temperature: float) -> list[Tensor]:
        """Log-probabilities of each completion's tokens under the policy as it is now, on the CPU."""


class PolicySampler:
    """Pushes weights before any generation that needs them, and checks each push.

    The engine is started when it is first needed, and anew when it fails.

    Args:
        start: Starts an engine for a module's policy; returns it and the type that it computes in.
        canary: Checks after each push.
        max_restarts: How often in a row a failing engine is started anew. Never if the policy is sharded: a new engine
            needs the weights, which ranks that shard it push together.
    """

    def __init__(
        self, start: Callable[[Any], tuple[RolloutEngine, str]], canary: CanaryConfig, max_restarts: int
    ) -> None:
        self._start = start
        self._canary = canary
        self._max_restarts = max_restarts
        self._engine: RolloutEngine | None = None
        self._dtype = ""
        self._version: int | None = None  # the module's weight version that the engine holds
        self._restarts = 0
        self._compares = canary.digest  # whether digests are compared: not if an engine cannot read its weights back
        self._agreed = False  # whether digests were equal at least once
        self._unproven = False  # whether weights were pushed since log-probabilities were last compared
        self._proof: list[tuple[SampleRequest, Completion]] = []  # whose log-probabilities are to be compared
        self._proof_temperature = 1.0

    def synchronize(self, module: SampledModule, clock: Stopwatch) -> None:
        """Push the policy's newest weights to the engine if any rank's engine lacks them.

        Every rank takes part: sharded weights are gathered here, and a server gets them from one rank.

        Args:
            module: The AsymGRPOModule.
            clock: Books the push and its check, not the start of an engine.

        Raises:
            RunError: The engine does not hold the weights that it was given.
        """
        # A rank that had nothing to sample may still hold the weights that the others have to push again.
        if any(gather_objects(self._engine is None or self._version != module.weight_version)):
            self._push(module, clock)
        clock.lap("update_weights")

    def _push(self, module: SampledModule, clock: Stopwatch) -> RolloutEngine:
        if self._engine is None:
            self._engine, self._dtype = self._start(module)
            clock.restart()
        engine, policy, version = self._engine, module.policy, module.weight_version
        named = whole_weights(policy)
        passed = RunningDigest(*linear_weights(policy), getattr(torch, self._dtype), version)
        engine.load_weights(passed.of(named) if self._compares else named)
        self._version, self._unproven = version, True
        clock.lap("update_weights")
        if self._compares:
            kind = str(policy.config.model_type)
            self._compare(passed.digest, engine.digest(version), module.completed_steps, kind)
        clock.lap("canary")
        return engine

    def sample(
        self, module: SampledModule, requests: Sequence[SampleRequest], settings: SamplingSettings, clock: Stopwatch
    ) -> list[Completion]:
        """Sample completions of the policy as it is now. An engine that is started anew gives the same.

        With several ranks, all have called `synchronize` before, and each samples for itself.

        Raises:
            RunError: The engine failed too often, or it does not hold the policy's weights.
        """
        while True:
            engine = self._engine
            if engine is None or self._version != module.weight_version:
                engine = self._push(module, clock)
            clock.lap("update_weights")  # written in each step: 0 where a validation has pushed them
            try:
                completions = engine.generate(requests, settings)
                break
            except EngineError as error:
                if self._restarts >= self._max_restarts or is_sharded(module.policy):
                    raise
                self._restarts += 1
                say(f"{error} It is started anew.")
                self.close()
        clock.lap("gen")
        self._restarts = 0
        if not engine.keeps_weights:
            self._version = None
        # If the sampler cuts its distribution (greedy, top-p), its log-probabilities differ by design.
        number = min(self._canary.completions, len(completions))
        if self._unproven and number and not settings.cuts:
            indices = [part * len(completions) // number for part in range(number)]
            self._proof += [(requests[index], completions[index]) for index in indices]
            self._proof_temperature = settings.temperature
            self._unproven = False
        return completions

    def prove(self, module: SampledModule, clock: Stopwatch) -> None:
        """Score a few of the completions that followed a push of weights with the policy, and compare.

        Every rank takes part: a sharded policy scores on all of them or on none.

        Raises:
            RunError: The sampler's log-probabilities are not the policy's.
        """
        proof, self._proof = self._proof, []
        temperatures = [value for value in gather_objects(self._proof_temperature if proof else None) if value]
        clock.restart()  # not the wait for other ranks
        if temperatures:
            sequences = [TokenSequence(request.prompt_token_ids, drawn.token_ids) for request, drawn in proof]
            scored = module.sequence_logprobs(sequences, temperatures[0])
            if proof:
                sampled = [torch.tensor(drawn.logprobs) for _, drawn in proof]
                check_logprobs(scored, sampled, self._canary.limit(self._dtype), module.completed_steps)
        clock.lap("canary")

    def close(self) -> None:
        """Shut the engine down. Safe to call twice."""
        if self._engine is not None:
            self._engine.close()
            self._engine = self._version = None

    def _compare(self, expected: WeightDigest, found: WeightDigest | None, step: int, model_type: str) -> None:
        """Compare the digest of the engine's weights with that of the pushed ones, bit by bit."""
        if found is None:  # the engine cannot read its weights back
            self._compares = False
        elif not self._agreed and expected != found and model_type not in ONE_TO_ONE:
            # Some architectures are stored in another form (merged experts, say): only log-probabilities tell.
            self._compares = False
            say(
                "The weights of this architecture cannot be compared one to one with the sampler's: rollout.canary "
                "checks log-probabilities alone."
            )
        else:
            self._agreed = True
            check_digest(expected, found, step)
