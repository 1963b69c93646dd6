"""Training from fixed completions, to compare gradients however a step is cut. Also a script for several processes.

python -m tests.support.two_processes tests.support.recorded_training OUT_FOLDER STRATEGY=CASE,CASE... STRATEGY=...
trains each case with each strategy, in bf16-mixed or compiled where its name begins so, and leaves OUT_FOLDER/STRATEGY
CASE.pt.
"""

import os
import sys
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import Callback, Trainer

from asymgrpo_app.algorithm.clipped import ClippedObjective
from asymgrpo_app.algorithm.covariance import ClipCov, KLCov
from asymgrpo_app.algorithm.gspo import GSPO
from asymgrpo_app.datamodule import PromptDataModule
from asymgrpo_app.module import AsymGRPOModule
from asymgrpo_app.parallel.sharding import whole, whole_weights
from asymgrpo_app.parallel.strategy import FSDP2Strategy
from asymgrpo_app.prompts import Countdown
from asymgrpo_app.prompts.base import EncodedPrompt
from asymgrpo_app.rewards.base import Verdict
from asymgrpo_app.rollout.types import (
    AttachesRollouts,
    Completion,
    JudgedCompletion,
    RolloutBatch,
    SamplingSettings,
)
from asymgrpo_app.runtime.console import quiet_libraries
from asymgrpo_app.seeds import derive_seed
from asymgrpo_app.update.loss_config import LossConfig
from tests.support.paths import POLICY
from tests.support.two_processes import on_two_processes

GROUP_SIZE, MAX_TOKENS = 4, 12

LOW_PRECISION, COMPILED = "bf16-mixed ", "compiled "
"""What a case's name begins with if it is trained so on two processes."""

# Named settings of the module.
CASES: dict[str, Callable[[], dict[str, Any]]] = {
    "token": lambda: {"objective": ClippedObjective()},
    "sequence": lambda: {"objective": GSPO(), "loss": LossConfig(aggregation="sequence")},
    "constant with KL and entropy": lambda: {
        "loss": LossConfig(aggregation="constant", kl_coef=0.1, entropy_coef=0.01)
    },
    "everything left out": lambda: {"left_out": set(range(8)), "updates_per_step": 2},
    "two updates and passes": lambda: {"updates_per_step": 2, "passes_per_step": 2},
    "Clip-Cov": lambda: {"objective": ClipCov(share=0.1, cov_low=0.0)},
    "KL-Cov in two updates": lambda: {"objective": KLCov(share=0.2), "updates_per_step": 2},
    "three clipped steps": lambda: {"steps": 3, "lr": 0.005, "max_grad_norm": 0.5, "updates_per_step": 2},
    # With two processes the first one has a single short micro-batch where the second one has several.
    "uneven": lambda: {
        "loss": LossConfig(kl_coef=0.1),
        "updates_per_step": 2,
        "passes_per_step": 2,
        "left_out": {2, 4, 6},
        "micro_batch_tokens": 40,
        "gradient_checkpointing": True,
    },
    # Most micro-batches move nothing, the last one of a process among them.
    "mostly solved": lambda: {"solved": {0, 1, 2, 4, 5, 6, 7}, "left_out": set(), "micro_batch_tokens": 40},
    "all solved with KL and entropy": lambda: {
        "solved": set(range(8)),
        "left_out": set(),
        "loss": LossConfig(kl_coef=0.1, entropy_coef=0.01),
    },
    # With two processes the first one holds prompts 0 and 2, so in both updates it has nothing that counts.
    "nothing counts on one rank": lambda: {
        "objective": ClipCov(share=0.1, cov_low=0.0),
        "updates_per_step": 2,
        "prompts_per_step": 4,
        "left_out": {0, 2},
        "attention": "eager",
    },
}


class RecordedRollouts(Callback, AttachesRollouts):
    """Attaches completions that are a function of the prompt's place: lengths 1 to 12, any characters, any verdict.

    Args:
        left_out: Places of prompts whose completions are all cut at the limit and do not count.
        solved: Places of prompts whose completions are all right, so that their advantages are 0.
    """

    def on_train_batch_start(self, trainer: Trainer, pl_module: Any, batch: Any, batch_idx: int) -> None:
        groups = [[self._judged(prompt, number) for number in range(GROUP_SIZE)] for prompt in batch.prompts]
        settings = SamplingSettings(1.0, MAX_TOKENS, (1,))
        batch.rollouts = RolloutBatch(batch.prompts, groups, settings, truncated_are_wrong=False)

    def __init__(self, left_out: set[int], solved: set[int]) -> None:
        self.left_out, self.solved = left_out, solved
        self.gradients: list[torch.Tensor] = []

    def on_before_optimizer_step(self, trainer: Trainer, pl_module: Any, optimizer: Any) -> None:
        parts = [whole(own.grad) for own in pl_module.policy.parameters() if own.grad is not None]
        if parts and pl_module.completed_steps == 0:  # later ones are those of weights that rounding made others
            self.gradients.append(torch.cat([part.flatten() for part in parts]).clone())

    def _judged(self, prompt: EncodedPrompt, number: int) -> JudgedCompletion:
        generator = torch.Generator().manual_seed(derive_seed("recorded", prompt.index, number) % 2**62)
        length = int(torch.randint(1, MAX_TOKENS + 1, (), generator=generator))
        tokens = torch.randint(2, 16, (length,), generator=generator).tolist()
        correct = number == 0 or (bool(torch.randint(0, 2, (), generator=generator)) and number < GROUP_SIZE - 1)
        correct |= prompt.index in self.solved
        completion = Completion(tokens, [-2.0] * length, truncated=prompt.index in self.left_out)
        return JudgedCompletion(completion, "", Verdict(correct))


def trained(
    case: str, micro_batch_tokens: int, *, compiled: bool = False, **trainer_options: Any
) -> dict[str, torch.Tensor]:
    """The gradient of each update of the first step, and the final weights and metrics but for timings, by name."""
    options = CASES[case]()
    steps = options.pop("steps", 1)
    updates = options.get("updates_per_step", 1)
    prompts, left_out = options.pop("prompts_per_step", 8), options.pop("left_out", {0})
    solved = options.pop("solved", set())
    data = PromptDataModule(POLICY, train=Countdown(), prompts_per_step=prompts, updates_per_step=updates)
    module = AsymGRPOModule(
        POLICY,
        total_steps=steps,
        micro_batch_tokens=options.pop("micro_batch_tokens", micro_batch_tokens),
        max_grad_norm=options.pop("max_grad_norm", None),
        optimizer=partial(torch.optim.SGD, lr=options.pop("lr", 1e-4)),
        compile=compiled,
        **options,
    )
    recorded = RecordedRollouts(left_out, solved)
    trainer = Trainer(
        accelerator="cpu",
        max_epochs=-1,
        callbacks=[recorded],
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        use_distributed_sampler=False,
        limit_val_batches=0,
        log_every_n_steps=1,
        **trainer_options,
    )
    trainer.fit(module, data)
    assert module.completed_steps == steps
    metrics = {
        name: value for name, value in trainer.callback_metrics.items() if not name.startswith(("timing_s/", "perf/"))
    }
    gradients = {f"gradient {number}": gradient for number, gradient in enumerate(recorded.gradients)}
    weights = torch.cat([weight.flatten() for _, weight in whole_weights(module.policy)])
    return gradients | metrics | {"weights": weights}


def trained_on_two_processes(folder: Path, **cases: Sequence[str]) -> None:
    """Train cases by strategy on two processes; `result_of` reads what came of each."""
    given = [f"{strategy}={','.join(chosen)}" for strategy, chosen in cases.items()]
    done = on_two_processes("tests.support.recorded_training", str(folder), *given)
    assert done.returncode == 0, done.stderr[-8000:]


def result_of(folder: Path, strategy: str, case: str) -> dict[str, torch.Tensor]:
    """What `trained` returned on the first of two processes."""
    return torch.load(folder / f"{strategy} {case}.pt", weights_only=True)


def main() -> None:
    quiet_libraries()
    folder = Path(sys.argv[1])
    for strategy, _, cases in (given.partition("=") for given in sys.argv[2:]):
        for case in cases.split(","):
            options: dict[str, Any] = {"devices": int(os.environ["WORLD_SIZE"])}
            options["strategy"] = FSDP2Strategy() if strategy == "fsdp2" else strategy
            if case.startswith(LOW_PRECISION):
                options["precision"] = LOW_PRECISION.strip()
            plain = case.removeprefix(LOW_PRECISION).removeprefix(COMPILED)
            result = trained(plain, 200, compiled=case.startswith(COMPILED), **options)
            if torch.distributed.get_rank() == 0:
                torch.save(result, folder / f"{strategy} {case}.pt")


if __name__ == "__main__":
    main()
