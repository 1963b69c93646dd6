"""The sampler of a run: an engine that has the policy's newest weights whenever it samples."""

from collections.abc import Callable, Sequence
from typing import Any

import torch

from asymgrpo_app.console import say
from asymgrpo_app.policy import linear_weights, named_weights
from asymgrpo_app.rollout.canary import CanaryConfig, check_digest, check_logprobs
from asymgrpo_app.rollout.collect import SeedOf, Stopwatch, sample
from asymgrpo_app.rollout.digest import policy_digest
from asymgrpo_app.rollout.engine import RolloutEngine
from asymgrpo_app.rollout.microbatch import TokenSequence
from asymgrpo_app.rollout.types import Completion, EncodedPrompt, SamplingSettings
from asymgrpo_app.rollout.vllm_engine import EngineError


class PolicySampler:
    """Pushes weights before any generation that needs them, and checks each push.

    The engine is started when it is first needed, and anew when it fails.

    Args:
        start: Makes an engine.
        dtype: What the engine computes in.
        canary: What is checked after each push.
        max_restarts: How often in a row a failing engine is started anew.
        announce: Tells the user what is waited for; nothing if empty.
    """

    def __init__(
        self,
        start: Callable[[], RolloutEngine],
        dtype: str,
        canary: CanaryConfig,
        max_restarts: int,
        announce: Callable[[str], None],
    ) -> None:
        self._start = start
        self._dtype = dtype
        self._canary = canary
        self._max_restarts = max_restarts
        self._announce = announce
        self._engine: RolloutEngine | None = None
        self._version: int | None = None  # the module's weight version that the engine holds
        self._restarts = 0
        self._warm = False  # whether the engine has sampled: its first generation is slower than the others
        self._digests_agreed: bool | None = (
            None  # whether engine's and policy's did the first time; None: not yet tried
        )
        self._unproven = False  # whether weights were pushed since log-probabilities were compared

    def synchronize(self, module: Any, clock: Stopwatch) -> RolloutEngine:
        """The engine, with the policy's newest weights; ranks may exchange something here.

        Args:
            module: The AsymGRPOModule.
            clock: Books the push, not the start of an engine.

        Raises:
            RunError: The engine does not hold the weights that it was given.
        """
        if self._engine is None:
            self._announce("sampler starts")
            self._engine = self._start()
            clock.restart()
        if self._version != module.weight_version:
            self._engine.load_weights(named_weights(module.policy))
            self._version, self._unproven = module.weight_version, True
            self._check_digest(self._engine, module)
        clock.lap("update_weights")
        return self._engine

    def sample(
        self,
        module: Any,
        prompts: Sequence[EncodedPrompt],
        group_size: int,
        settings: SamplingSettings,
        seed_of: SeedOf,
        clock: Stopwatch,
    ) -> list[Completion]:
        """Completions of the policy as it is now, prompt by prompt: P * G. An engine started anew gives the same ones.

        Raises:
            RunError: The engine failed too often, or it does not hold the policy's weights.
        """
        while True:
            engine = self.synchronize(module, clock)
            if not self._warm:
                self._announce("sampler warms up")
            try:
                completions = sample(engine, prompts, group_size, settings, seed_of)
            except EngineError as error:
                if self._restarts >= self._max_restarts:
                    raise
                self._restarts += 1
                say(f"{error} It is started anew.")
                self.close()
                continue
            clock.lap("gen")
            if not self._warm:
                self._announce("")
            self._restarts, self._warm = 0, True
            if not engine.keeps_weights:
                self._version = None
            self._check_logprobs(module, prompts, completions, settings)
            clock.lap("canary")
            return completions

    def close(self) -> None:
        """Shut the engine down. Safe to call twice."""
        if self._engine is not None:
            self._engine.close()
            self._engine = self._version = None
            self._warm = False

    def _check_digest(self, engine: RolloutEngine, module: Any) -> None:
        """Compare the weights the engine holds with the policy's, bit by bit."""
        if not self._canary.digest or self._digests_agreed is False:
            return
        version, policy = module.weight_version, module.policy
        found = engine.digest(version)
        if found is None:
            return
        dtype = getattr(torch, self._dtype)
        expected = policy_digest(named_weights(policy), *linear_weights(policy), dtype, version)
        if self._digests_agreed is None:
            self._digests_agreed = found == expected
            if not self._digests_agreed:
                # Some architectures are stored in another form (merged experts, say): only log-probabilities tell.
                say(
                    "The weights of this architecture cannot be compared one to one with the sampler's: "
                    "rollout.canary checks log-probabilities alone."
                )
                return
        check_digest(expected, found, module.completed_steps)

    def _check_logprobs(
        self,
        module: Any,
        prompts: Sequence[EncodedPrompt],
        completions: Sequence[Completion],
        settings: SamplingSettings,
    ) -> None:
        """After a push of weights, score a few completions with the policy and compare."""
        number = min(self._canary.completions, len(completions))
        # Where the sampler cuts its distribution (greedy, top-p), its log-probabilities are others by design.
        if not (self._unproven and number) or settings.cuts:
            return
        places = [index * len(completions) // number for index in range(number)]
        group_size = len(completions) // len(prompts)
        sequences = [TokenSequence(prompts[i // group_size].token_ids, completions[i].token_ids) for i in places]
        check_logprobs(
            module.score_sequences(sequences, settings.temperature),
            [torch.tensor(completions[i].logprobs) for i in places],
            self._canary.limit(self._dtype),
            module.completed_steps,
        )
        self._unproven = False
