"""The plot of a comparison."""

from io import BytesIO
from math import isfinite, nan
from typing import TYPE_CHECKING

from asymgrpo_app.evaluation.compare import Comparison
from asymgrpo_app.evaluation.outcomes import UNBOUNDED

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_COLORS = ("#d1495b", "#2b6cb0", "#3b8132", "#8a5fbf", "#c77d1a", "#4a4a4a")


def comparison_png(content: Comparison) -> bytes:
    """Differences with their intervals, one line per set and evaluation, as a PNG file."""
    from matplotlib.figure import Figure  # a second to import, and not needed for the table

    labels = list(dict.fromkeys(difference.label for difference in content.differences))
    sets = list(dict.fromkeys(difference.set for difference in content.differences))
    figure = Figure(figsize=(8.0, 1.7 + 0.42 * len(sets) * max(1.0, 0.55 * len(labels))), layout="constrained")
    axes = figure.add_subplot()
    _draw(axes, content, labels, sets)
    buffer = BytesIO()
    figure.savefig(buffer, format="png", dpi=150)
    return buffer.getvalue()


def _draw(axes: "Axes", content: Comparison, labels: list[str], sets: list[str]) -> None:
    metric = content.differences[0].metric
    unbounded = metric in UNBOUNDED
    scale = 1.0 if unbounded else 100.0
    unit = {"length": "tokens", "entropy_estimate": "nats"}.get(metric, "percentage points")
    for number, label in enumerate(labels):
        differences = [difference for difference in content.differences if difference.label == label]
        found = [difference.difference for difference in differences]
        values = [scale * estimate.value for estimate in found]
        # An interval without an end is not drawn.
        below = [scale * (estimate.value - estimate.low) if isfinite(estimate.low) else nan for estimate in found]
        above = [scale * (estimate.high - estimate.value) if isfinite(estimate.high) else nan for estimate in found]
        shift = 0.22 * (number - (len(labels) - 1) / 2)
        places = [sets.index(difference.set) + shift for difference in differences]
        color = _COLORS[number % len(_COLORS)]
        axes.errorbar(
            values,
            places,
            xerr=[below, above],
            fmt="o",
            color=color,
            capsize=3,
            markersize=5,
            linewidth=1.6,
            label=label,
        )
    axes.axvline(0.0, color="#222222", linewidth=1.0)
    axes.set_yticks(range(len(sets)), sets)
    axes.set_ylim(len(sets) - 0.5, -0.5)  # the first set at the top
    if len(sets) > 1:
        axes.axhline(len(sets) - 1.5, color="#bbbbbb", linewidth=0.8, linestyle="--")  # above the mean
    axes.grid(axis="x", color="#e4e4e4", linewidth=0.8)
    axes.set_axisbelow(True)
    for side in ("top", "right", "left"):
        axes.spines[side].set_visible(False)
    axes.tick_params(axis="y", length=0)
    axes.set_xlabel(f"difference in {content.metric} ({unit}), 95 % interval")
    if len(labels) > 1:
        axes.set_title(f"against {content.baseline}", fontsize=11)
        axes.legend(frameon=False, fontsize=9, loc="center left", bbox_to_anchor=(1.0, 0.5))
    else:
        axes.set_title(f"{labels[0]} against {content.baseline}", fontsize=11)
