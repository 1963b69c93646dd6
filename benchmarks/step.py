"""What a step takes: seconds by phase, tokens a second, how far from the floor, and peak memory.

    .venv/bin/python benchmarks/step.py --model CHAT_MODEL_DIR             # sums in words, in the chat template
    .venv/bin/python benchmarks/step.py --countdown                        # the quick start's work and policy
    .venv/bin/python benchmarks/step.py --shape 0.5B                       # random weights, needs nothing else
    .venv/bin/python benchmarks/step.py --countdown --completions 64 128 256 512 1024
    .venv/bin/python benchmarks/step.py --model DIR --trl-python TRL_VENV/bin/python

Runs `asymgrpo fit` in a fresh process and reports medians over the steps after the first `--skip`. The floor is
measured in the same run, after every step: *generation alone* is the engine's call with the step's requests once more
(without what its prefix cache knows), *forward and backward alone* the passes of the step's own micro-batches, head
included, with no loss, metrics or optimizer around them; backward only where the step had something to learn. Peak
memory is the process's resident set without the floor's measurements, and torch's on a GPU; what the update adds is
the last step's resident set above what was held when sampling was done.

With `--trl-python`, TRL's GRPOTrainer does the same work in that Python (torch and trl 1.16.0 installed), before it.
"""

import argparse
import ctypes
import json
import os
import random
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from statistics import median
from time import perf_counter
from typing import Any

import torch
from lightning.pytorch import Callback, Trainer

from asymgrpo_app.algorithm.advantages import AdvantageEstimator, GroupRewards
from asymgrpo_app.runtime.allocator import return_freed_memory

REPOSITORY = Path(__file__).resolve().parent.parent
COUNTDOWN_POLICY = REPOSITORY / "data/countdown_base"
# As in Qwen2.5: layers, hidden, intermediate, heads, key heads, tied head.
SHAPES = {"0.5B": (24, 896, 4864, 14, 2, True), "1.5B": (28, 1536, 8960, 12, 2, True)}
PHASES = {
    "gen": "sampling",
    "reward": "verifying",
    "old_log_prob": "old log-probabilities",
    "update_actor": "policy update",
    "update_weights": "weights to the sampler",
    "canary": "canary: weights read back, completions scored once more",
    "step": "whole step",
}


class Alternating(AdvantageEstimator):
    """Every other completion is better: those of random weights are all wrong, and then no backward pass is made."""

    def __call__(self, groups: GroupRewards) -> torch.Tensor:
        advantages = torch.ones_like(groups.rewards)
        advantages[:, ::2] = -1.0
        return advantages


class FloorProbe(Callback):
    """Writes down each step's timings beside the floor's.

    Args:
        path: A JSON file.
        floor: Whether the floor is measured, which takes as long as the steps themselves.
    """

    def __init__(self, path: str, floor: bool = True) -> None:
        self.path = path
        self.floor = floor
        self.steps: list[dict[str, float]] = []
        self.peak_gib = 0.0
        self.update_gib = 0.0
        self.call: tuple[Any, ...] = ()
        self.micro_batches: list[Any] = []  # of the step's updates,
        self.learned: list[bool] = []  # and whether each had a backward pass

    def on_fit_start(self, trainer: Trainer, pl_module: Any) -> None:
        from asymgrpo_app.rollout.vllm_engine import VLLMEngine

        self.generate = VLLMEngine.generate

        def remembered(engine: Any, requests: Any, settings: Any) -> Any:
            self.call = (engine, requests, settings)
            return self.generate(engine, requests, settings)

        VLLMEngine.generate = remembered  # type: ignore[method-assign]
        logprobs, backward = pl_module.passes.logprobs, pl_module.manual_backward

        def counted(batch: Any, *arguments: Any, **named: Any) -> Any:
            if torch.is_grad_enabled():
                self.micro_batches.append(batch)
                self.learned.append(False)
            return logprobs(batch, *arguments, **named)

        def noted(*arguments: Any, **named: Any) -> None:
            self.learned[-1] = True
            backward(*arguments, **named)

        pl_module.passes.logprobs, pl_module.manual_backward = counted, noted
        training_step = pl_module.training_step

        def watched(*arguments: Any) -> None:
            if last := pl_module.completed_steps + 1 == pl_module.total_steps:
                self.peak_gib = max(self.peak_gib, _peak_gib())
                ctypes.CDLL(None).malloc_trim(0)  # freed memory must not serve as room, at the price of time
                Path("/proc/self/clear_refs").write_text("5")
                begin = _peak_gib()
            training_step(*arguments)
            if last:
                self.update_gib = _peak_gib() - begin

        pl_module.training_step = watched

    def on_train_batch_end(self, trainer: Trainer, pl_module: Any, *_: Any) -> None:
        values = {tag: float(value) for tag, value in trainer.callback_metrics.items()}
        step = {tag.removeprefix("timing_s/"): value for tag, value in values.items() if tag.startswith("timing_s/")}
        self.peak_gib = step["peak_gib"] = max(self.peak_gib, _peak_gib())
        step["update_gib"] = self.update_gib
        step["gpu_peak_gib"] = values.get("perf/max_memory_gb", 0.0)
        step["mfu"] = values.get("perf/mfu", 0.0)
        weights = list(pl_module.policy.parameters())
        flops = pl_module.passes.count.flops(
            parameters=sum(weight.numel() for weight in weights),
            trained=sum(weight.numel() for weight in weights if weight.requires_grad),
        )
        step["tflops"] = flops / step["update_actor"] / 1e12
        sequences = pl_module.last_step.experience.sequences
        step["completion_tokens"] = sum(len(sequence.completion) for sequence in sequences)
        step["tokens"] = sum(map(len, sequences))
        step["learned"] = sum(self.learned) / len(self.learned)
        if self.floor:
            step["gen_alone"] = self._generation_alone()
            step["passes_alone"] = self._passes_alone(trainer, pl_module)
            return_freed_memory()  # what the floor's passes leave behind would count as the next step's
            Path("/proc/self/clear_refs").write_text("5")
        self.micro_batches.clear()
        self.learned.clear()
        self.steps.append(step)
        Path(self.path).write_text(json.dumps(self.steps))

    def _generation_alone(self) -> float:
        engine, requests, settings = self.call
        engine._llm.reset_prefix_cache()
        begun = perf_counter()
        self.generate(engine, requests, settings)
        return perf_counter() - begun

    def _passes_alone(self, trainer: Trainer, pl_module: Any) -> float:
        from asymgrpo_app.policy.loading import token_logprobs

        _synchronize()
        begun = perf_counter()
        for micro_batch, learned in zip(self.micro_batches, self.learned, strict=True):
            with trainer.precision_plugin.forward_context():
                logprobs, _ = token_logprobs(pl_module.policy, micro_batch, temperature=1.0)
                if learned:
                    logprobs.sum().backward()
        _synchronize()
        seconds = perf_counter() - begun
        pl_module.policy.zero_grad()
        return seconds


def _peak_gib() -> float:
    """The largest resident set since the peak was last reset."""
    return int(Path("/proc/self/status").read_text().split("VmHWM:")[1].split()[0]) / 2**20


def _synchronize() -> None:
    if torch.cuda.is_available():
        torch.cuda.synchronize()


def write_problems(path: Path, number: int) -> None:
    """Sums of two numbers, in words."""
    rng = random.Random(0)
    with path.open("w") as file:
        for _ in range(number):
            a, b = rng.randint(10, 99), rng.randint(10, 99)
            problem = f"What is {a} + {b}? Think step by step, then give the answer."
            file.write(json.dumps({"problem": problem, "answer": str(a + b)}) + "\n")


def write_random_model(shape: str, folder: Path) -> None:
    """A model of a Qwen2.5-like shape with random weights, and the quick start's tokenizer."""
    from transformers import AutoModelForCausalLM, AutoTokenizer, Qwen2Config

    layers, hidden, intermediate, heads, key_heads, tied = SHAPES[shape]
    config = Qwen2Config(
        vocab_size=151_936,
        hidden_size=hidden,
        intermediate_size=intermediate,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        num_key_value_heads=key_heads,
        tie_word_embeddings=tied,
        max_position_embeddings=4096,
    )
    tokenizer = AutoTokenizer.from_pretrained(COUNTDOWN_POLICY)
    config.eos_token_id, config.pad_token_id = tokenizer.eos_token_id, tokenizer.pad_token_id
    AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16).save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def work_arguments(options: argparse.Namespace, folder: Path) -> list[str]:
    """What differs between the kinds of work."""
    if options.countdown:
        return [f"--model.policy={COUNTDOWN_POLICY}"]
    own = ["--data.validation=null", "--rollout.max_completion_tokens=160"]
    own += [f"--trainer.precision={'32-true' if options.float32 else 'bf16-mixed'}"]
    own += ["--rollout.engine.max_num_seqs=256", "--rollout.engine.kv_cache_gib=0.5", "--model.optimizer.lr=1e-6"]
    if options.shape:
        if not (folder / "model").exists():
            write_random_model(options.shape, folder / "model")
        return [*own, f"--model.policy={folder / 'model'}", "--model.advantage=step.Alternating"]
    write_problems(folder / "problems.jsonl", 10_000)
    return [
        *own,
        f"--model.policy={options.model}",
        "--data.train=asymgrpo_app.prompts.JsonLines",
        f"--data.train.path={folder / 'problems.jsonl'}",
        "--data.train.prompt_field=problem",
        "--data.train.answer_field=answer",
        "--data.train.verifier=asymgrpo_app.rewards.NumericMatch",
        "--data.template=asymgrpo_app.prompts.templates.ChatTemplate",
        "--data.max_prompt_tokens=128",
    ]


def measure(options: argparse.Namespace, completions: int, folder: Path) -> list[dict[str, float]]:
    """The steps of one run, without the first ones."""
    result, total = folder / f"{completions}.json", options.skip + options.steps
    command = [
        *(sys.executable, "-m", "asymgrpo_app", "fit", "--config=configs/quickstart.yaml"),
        *(f"--steps={total}", f"--run_dir={folder}/run-{completions}", "--trainer.limit_val_batches=0"),
        *(f"--data.prompts_per_step={completions // 8}", "--rollout.group_size=8", "--trainer.logger=false"),
        *(f"--checkpoint.every_n_steps={total}", "--trainer.enable_progress_bar=false"),
        *(f"--model.micro_batch_tokens={options.micro_batch_tokens}",),
        *("--trainer.callbacks=step.FloorProbe", f"--trainer.callbacks.path={result}"),
        f"--trainer.callbacks.floor={not options.without_floor}",
        *work_arguments(options, folder),
        *options.arguments,
    ]
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parent)}
    done = subprocess.run(command, cwd=REPOSITORY, env=environment, capture_output=True, text=True)
    if done.returncode:
        sys.exit(f"{done.stdout[-1000:]}\n{done.stderr}")
    steps: list[dict[str, float]] = json.loads(result.read_text())
    return steps[options.skip :]


def measure_trl(options: argparse.Namespace, completions: int, folder: Path) -> dict[str, float]:
    """Seconds per step and peak memory of TRL on the same work."""
    result, total = folder / "trl.json", options.skip + options.steps
    if options.countdown:
        script, model = "trl_countdown.py", COUNTDOWN_POLICY
    else:
        write_problems(folder / "problems.jsonl", 10_000)
        script, model = "trl_chat.py", options.model
    command = [options.trl_python, str(Path(__file__).parent / "peers" / script), str(model), str(folder)]
    command += [str(total), str(completions), str(result)]
    if options.float32 and not options.countdown:  # there both are float32 anyway
        command += ["float32"]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True)
    if done.returncode:
        sys.exit(done.stderr[-3000:])
    found = json.loads(result.read_text())
    pairs = list(zip(found["seconds"], found["generation"], strict=True))[options.skip :]
    return {
        "step": median(step for step, _ in pairs),
        "update": median(step - generation for step, generation in pairs),
        "peak_gib": found["peak_gib"],
    }


def table(steps: Sequence[dict[str, float]]) -> list[str]:
    """Medians of one run."""
    mid = {name: median(step.get(name, 0.0) for step in steps) for name in steps[0]}
    lines = ["| what | median | share of the step |", "|---|---|---|"]
    for name, label in PHASES.items():
        if name in mid:
            lines.append(f"| {label} | {mid[name]:.3f} s | {mid[name] / mid['step']:.1%} |")
    if "gen_alone" in mid:
        share = median(step["step"] / (step["gen_alone"] + step["passes_alone"]) for step in steps)
        lines += [
            f"| generation alone | {mid['gen_alone']:.3f} s | {mid['gen_alone'] / mid['step']:.1%} |",
            f"| forward and backward alone | {mid['passes_alone']:.3f} s | {mid['passes_alone'] / mid['step']:.1%} |",
            f"| step / (generation alone + forward and backward alone) | {share:.3f} | |",
        ]
    lines += [
        f"| tokens of completions (with prompts) | {mid['completion_tokens']:,.0f} ({mid['tokens']:,.0f}) | |",
        f"| micro-batches with something to learn | {mid['learned']:.0%} | |",
        f"| tokens of completions a second | {mid['completion_tokens'] / mid['step']:,.0f} | |",
        f"| model TFLOP/s in the policy update | {mid['tflops']:.3g} | |",
        f"| peak memory | {max(step['peak_gib'] for step in steps):.2f} GiB | |",
    ]
    if mid["gpu_peak_gib"]:
        lines.append(f"| MFU of the policy update (`perf/mfu`) | {mid['mfu']:.1%} | |")
        lines.append(f"| torch's peak on the GPU | {max(step['gpu_peak_gib'] for step in steps):.2f} GiB | |")
    return lines


def scaling(runs: dict[int, Sequence[dict[str, float]]]) -> list[str]:
    """What training adds to sampling, per token, by the number of completions in a step."""
    lines = [
        "| completions a step | beside sampling, s | microseconds per token | peak, GiB | added by the update, GiB |",
        "|---|---|---|---|---|",
    ]
    for completions, steps in runs.items():
        beside = [step["step"] - step["gen"] for step in steps]
        per_token = median(own / step["tokens"] for own, step in zip(beside, steps, strict=True))
        peak = max(step["peak_gib"] for step in steps)
        update = max(step["update_gib"] for step in steps)
        lines.append(f"| {completions} | {median(beside):.3f} | {1e6 * per_token:.1f} | {peak:.2f} | {update:.2f} |")
    return lines


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    kind = parser.add_mutually_exclusive_group(required=True)
    kind.add_argument("--model", type=Path, help="a chat model in Hugging Face format")
    kind.add_argument("--shape", choices=SHAPES, help="random weights of this shape")
    kind.add_argument("--countdown", action="store_true", help="the quick start's policy and problems")
    parser.add_argument("--completions", type=int, nargs="+", help="of a step; 64, with --countdown 512")
    parser.add_argument("--micro-batch-tokens", type=int, default=4096)
    parser.add_argument("--float32", action="store_true", help="both programs in float32, for CPUs without bfloat16")
    parser.add_argument("--steps", type=int, default=5, help="that count, at least 5")
    parser.add_argument("--skip", type=int, default=2, help="first steps that do not count, at least 1")
    parser.add_argument("--without-floor", action="store_true", help="half the time: phases and shares alone")
    parser.add_argument("--trl-python", help="a Python with trl 1.16.0 installed")
    parser.add_argument("arguments", nargs="*", help="further arguments of `asymgrpo fit`, after --")
    options = parser.parse_args()
    completions = options.completions or [512 if options.countdown else 64]
    if options.steps < 5 or options.skip < 1 or any(number < 8 or number % 8 for number in completions):
        parser.error("give at least 5 steps, skip at least 1, and completions in multiples of 8")
    if options.trl_python and options.shape:
        parser.error("--trl-python compares real work: use it with --model or --countdown")
    if options.trl_python and options.model and completions[0] % 16:
        parser.error("with --trl-python, completions are multiples of 16, TRL's micro-batch")
    if options.model:
        options.model = options.model.resolve()

    print(f"load average at the start: {os.getloadavg()[0]:.2f}; {os.cpu_count()} cores\n")
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        peer = measure_trl(options, completions[0], folder) if options.trl_python else None
        runs = {number: measure(options, number, folder) for number in completions}
    for number, steps in runs.items():
        print("\n".join([f"{number} completions a step, {len(steps)} steps:\n", *table(steps), ""]))
    if len(runs) > 1:
        print("\n".join([*scaling(runs), ""]))
    if peer is not None:
        own = median(step["step"] for step in runs[completions[0]])
        update = median(step["step"] - step["gen"] for step in runs[completions[0]])
        peak = max(step["peak_gib"] for step in runs[completions[0]])
        print(
            f"TRL: {peer['step']:.2f} s a step, {peer['peak_gib']:.2f} GiB at most; ours: {own:.2f} s, {peak:.2f} GiB."
        )
        print(
            f"Without generation: TRL {peer['update']:.2f} s, ours {update:.2f} s: {peer['update'] / update:.2f} times."
        )
        print(f"{peer['step'] / own:.2f} times as fast in {peak / peer['peak_gib']:.2f} of the memory.")
    print(f"load average at the end: {os.getloadavg()[0]:.2f}")


if __name__ == "__main__":
    main()
