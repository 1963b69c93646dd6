"""What a run wrote for TensorBoard."""

from pathlib import Path

from tensorboard.backend.event_processing import plugin_event_accumulator
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

CLOCK = ("timing_s/", "perf/")
"""Beginnings of the tags that no two runs share: seconds and memory."""


def events_of(run_dir: Path) -> EventAccumulator:
    """All events of a run."""
    return EventAccumulator(str(run_dir / "tensorboard"), size_guidance={"scalars": 0}).Reload()


def scalars(run_dir: Path) -> dict[str, list[tuple[int, float]]]:
    """Step and value of all scalars, by tag."""
    events = events_of(run_dir)
    return {tag: [(event.step, event.value) for event in events.Scalars(tag)] for tag in events.Tags()["scalars"]}


def repeated_scalars(run_dir: Path) -> dict[str, list[tuple[int, float]]]:
    """Those that a resumed run has in common with the undisturbed one: hparam/ is written whenever a run ends."""
    return {tag: points for tag, points in scalars(run_dir).items() if not tag.startswith((*CLOCK, "hparam/"))}


def values(run_dir: Path) -> dict[str, list[float]]:
    """The values of all scalars in the order of their steps, by tag."""
    return {tag: [value for _, value in points] for tag, points in scalars(run_dir).items()}


def steps_of_details(run_dir: Path) -> dict[str, list[int]]:
    """The steps of texts and histograms by tag, as TensorBoard's own reader has them."""
    events = plugin_event_accumulator.EventAccumulator(str(run_dir / "tensorboard")).Reload()
    tags = [tag for tag in events.Tags()["tensors"] if tag.startswith(("samples", "histograms/", "config"))]
    return {tag: [event.step for event in events.Tensors(tag)] for tag in tags}
