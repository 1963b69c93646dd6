"""The laptop recipe: accuracy on held-out sums against minutes, by seed.

    .venv/bin/python benchmarks/laptop.py --model SMOLLM2_135M --seeds 0 1 --folder runs/laptop

Runs configs/recipes/laptop_addition.yaml once per seed, one run after the other, and prints every validation with the
minutes since the command was started, loading and earlier validations included. A run that is in the folder already is
read and not made again. `--figure` draws the curves.
"""

import argparse
import subprocess
import sys
import time
from pathlib import Path
from statistics import median

from matplotlib.figure import Figure
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

REPOSITORY = Path(__file__).resolve().parent.parent
RECIPE = "configs/recipes/laptop_addition.yaml"
ACCURACY = "val/addition/greedy"


def train(run: Path, model: Path, seed: int, arguments: list[str]) -> None:
    """Make the run unless it is there."""
    begun = run.parent / f"{run.name}.begun"
    if begun.exists():
        return
    begun.write_text(str(time.time()))
    command = [sys.executable, "-m", "asymgrpo_app", "fit", f"--config={RECIPE}", f"--run_dir={run}"]
    command += [f"--model.policy={model}", f"--seed_everything={seed}", *arguments]
    done = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True)
    if done.returncode:
        begun.unlink()
        sys.exit(done.stderr)


def curve(run: Path) -> list[tuple[int, float, float]]:
    """Step, minutes and accuracy of each validation."""
    begun = float((run.parent / f"{run.name}.begun").read_text())
    return [(event.step, (event.wall_time - begun) / 60, event.value) for event in scalars(run)[ACCURACY]]


def scalars(run: Path) -> dict[str, list]:
    events = EventAccumulator(str(run / "tensorboard"), size_guidance={"scalars": 0})
    events.Reload()
    return {tag: events.Scalars(tag) for tag in (ACCURACY, "timing_s/step")}


def draw(curves: dict[int, list[tuple[int, float, float]]], path: Path) -> None:
    figure = Figure(figsize=(6, 3.6), layout="constrained")
    axes = figure.subplots()
    for seed, points in curves.items():
        axes.plot([minutes for _, minutes, _ in points], [value for *_, value in points], "o-", label=f"seed {seed}")
    axes.axhline(0.85, color="grey", linestyle=":", linewidth=1)
    axes.set(xlabel="minutes since the command was started", ylabel="held-out sums right, greedy", ylim=(0, 1))
    axes.set_xlim(left=0)
    axes.legend()
    figure.savefig(path, dpi=120)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, required=True, help="SmolLM2-135M-Instruct in Hugging Face format")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1])
    parser.add_argument("--folder", type=Path, default=REPOSITORY / "runs/laptop")
    parser.add_argument("--figure", type=Path, help="a PNG to draw")
    parser.add_argument("arguments", nargs="*", help="further arguments of `asymgrpo fit`, after --")
    options = parser.parse_args()
    folder, model = options.folder.resolve(), options.model.resolve()
    folder.mkdir(parents=True, exist_ok=True)
    runs = {seed: folder / f"seed-{seed}" for seed in options.seeds}
    for seed, run in runs.items():
        train(run, model, seed, options.arguments)
    curves = {seed: curve(run) for seed, run in runs.items()}
    print("| seed | " + " | ".join(f"step {step}" for step, *_ in curves[options.seeds[0]]) + " | seconds a step |")
    print("| --- |" + " --- |" * (len(curves[options.seeds[0]]) + 1))
    for seed, points in curves.items():
        cells = [f"{value:.3f} ({minutes:.1f} min)" for _, minutes, value in points]
        seconds = median(event.value for event in scalars(runs[seed])["timing_s/step"])
        print(f"| {seed} | {' | '.join(cells)} | {seconds:.1f} |")
    if options.figure:
        draw(curves, options.figure)


if __name__ == "__main__":
    main()
