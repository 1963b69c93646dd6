"""What logging costs: the quick start's steps with TensorBoard on and off.

    .venv/bin/python benchmarks/logging_cost.py --pairs 5 --steps 60   # pairs of runs, each in a fresh process
    .venv/bin/python benchmarks/logging_cost.py --within --pairs 10    # pairs of ten steps within one run

*On* is configs/quickstart.yaml as it stands: scalars every step; histograms, samples and the extra forward pass over
changed completions every tenth. *Off* is the same with `trainer.logger: false`. Both without validation, which either
would have. Seconds are from the end of one step to the end of another, over whole tens of steps, without the first
ones. Which of the two goes first changes from pair to pair of runs. Where other programs disturb the machine, runs
differ by more than logging costs; `--within` compares neighbouring tens of steps instead.

A second figure is the time spent inside the calls that log. It does not suffer from such noise, and leaves out what the
writing thread takes.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from statistics import mean, median, quantiles
from time import perf_counter
from typing import Any

from lightning.pytorch import Callback, Trainer

REPOSITORY = Path(__file__).resolve().parent.parent
BLOCK = 10
"""Steps that are timed together: `tensorboard.every_n_steps` of the quick start."""


class StepClock(Callback):
    """Writes down seconds per step of each ten steps, and those of them that were spent in calls that log.

    Args:
        path: A JSON file.
        skip: Steps before the clock starts, a multiple of ten.
        alternate: Turn the loggers off after ten steps, on after the next ten, and so forth.
    """

    def __init__(self, path: str, skip: int, alternate: bool = False) -> None:
        self.path, self.skip, self.alternate = path, skip, alternate
        self.blocks: list[dict[str, float]] = []
        self.started = self.logging = 0.0

    def on_train_start(self, trainer: Trainer, pl_module: Any) -> None:
        from asymgrpo_app.callbacks.tensorboard import TensorBoardDetails

        self.loggers = trainer.loggers
        pl_module.publish = self._timed(pl_module.publish)
        for callback in trainer.callbacks:  # type: ignore[attr-defined]
            if isinstance(callback, TensorBoardDetails):
                callback.on_train_batch_end = self._timed(callback.on_train_batch_end)  # type: ignore[method-assign]

    def on_train_batch_end(self, trainer: Trainer, pl_module: Any, *_: Any) -> None:
        step = pl_module.completed_steps
        if step % BLOCK or step < self.skip:
            return
        now = perf_counter()
        if step > self.skip:
            self.blocks.append({"step": (now - self.started) / BLOCK, "logging": self.logging / BLOCK})
            if self.alternate:
                trainer.loggers = [] if trainer.loggers else self.loggers
        self.started, self.logging = now, 0.0

    def on_train_end(self, trainer: Trainer, pl_module: Any) -> None:
        trainer.loggers = self.loggers
        Path(self.path).write_text(json.dumps(self.blocks))

    def _timed(self, call: Callable[..., Any]) -> Callable[..., Any]:
        """The call, which adds its seconds; one within another is counted once."""

        def timed(*arguments: Any, **named: Any) -> Any:
            before, begun = self.logging, perf_counter()
            result = call(*arguments, **named)
            self.logging = before + perf_counter() - begun
            return result

        return timed


def measure(skip: int, steps: int, *arguments: str) -> list[dict[str, float]]:
    """Seconds per step of each ten steps of one run, in a process of its own."""
    with tempfile.TemporaryDirectory() as folder:
        result = Path(folder) / "seconds.json"
        command = [
            *(sys.executable, "-m", "asymgrpo_app", "fit", "--config=configs/quickstart.yaml"),
            *(f"--steps={steps}", f"--run_dir={folder}/run", "--trainer.limit_val_batches=0"),
            *("--trainer.callbacks=logging_cost.StepClock", f"--trainer.callbacks.path={result}"),
            *(f"--trainer.callbacks.skip={skip}", f"--checkpoint.every_n_steps={steps}", *arguments),
        ]
        environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parent)}
        done = subprocess.run(command, cwd=REPOSITORY, env=environment, capture_output=True, text=True)
        if done.returncode:
            sys.exit(done.stderr)
        blocks: list[dict[str, float]] = json.loads(result.read_text())
        return blocks


def pairs_of_runs(pairs: int, steps: int, skip: int) -> Sequence[tuple[dict[str, float], dict[str, float]]]:
    """A run with logging and one without, again and again; the mean of each."""
    found = []
    for number in range(pairs):
        runs = {}
        for kind in ("on", "off") if number % 2 == 0 else ("off", "on"):
            blocks = measure(skip, steps, *(["--trainer.logger=false"] if kind == "off" else []))
            runs[kind] = {name: mean(block[name] for block in blocks) for name in blocks[0]}
        found.append((runs["on"], runs["off"]))
    return found


def pairs_within(pairs: int, skip: int) -> Sequence[tuple[dict[str, float], dict[str, float]]]:
    """Ten steps with logging and the next ten without, in one run."""
    blocks = measure(skip, skip + 2 * pairs * BLOCK, "--trainer.callbacks.alternate=true")
    return list(zip(blocks[::2], blocks[1::2], strict=True))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pairs", type=int, default=5, help="of runs, or of tens of steps")
    parser.add_argument("--steps", type=int, default=60, help="RL steps of each run, a multiple of 10")
    parser.add_argument("--skip", type=int, default=10, help="first steps that are not counted, a multiple of 10")
    parser.add_argument("--within", action="store_true", help="one run that turns logging on and off")
    options = parser.parse_args()
    if options.pairs < 2 or options.skip % BLOCK or options.steps % BLOCK or not 0 < options.skip < options.steps:
        parser.error("give at least 2 pairs, and multiples of 10 with more steps than are skipped")

    found = (
        pairs_within(options.pairs, options.skip)
        if options.within
        else pairs_of_runs(options.pairs, options.steps, options.skip)
    )
    print("| pair | on, s/step | off, s/step | on / off | in calls that log |")
    print("|---|---|---|---|---|")
    ratios = [on["step"] / off["step"] for on, off in found]
    shares = [on["logging"] / on["step"] for on, _ in found]
    for number, ((on, off), ratio, share) in enumerate(zip(found, ratios, shares, strict=True), start=1):
        print(f"| {number} | {on['step']:.3f} | {off['step']:.3f} | {ratio:.3f} | {share:.2%} |")
    low, middle, high = quantiles(ratios, n=4, method="inclusive")
    of_medians = median(on["step"] for on, _ in found) / median(off["step"] for _, off in found)
    print(
        f"\non / off: median {middle:.3f}, quartiles {low:.3f} and {high:.3f}; median of on / median of off "
        f"{of_medians:.3f}; in calls that log: {mean(shares):.2%} of a step"
    )


if __name__ == "__main__":
    main()
