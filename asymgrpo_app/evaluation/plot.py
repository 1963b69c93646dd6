"""The plot of a comparison."""

from io import BytesIO
from typing import TYPE_CHECKING

import numpy as np

from asymgrpo_app.evaluation.compare import Comparison
from asymgrpo_app.evaluation.outcomes import UNITS
from asymgrpo_app.runtime.console import printable

if TYPE_CHECKING:
    from matplotlib.axes import Axes


def comparison_png(content: Comparison) -> bytes:
    """Differences with their intervals, one line per set and evaluation, as a PNG file."""
    from matplotlib import rc_context  # a second to import, and not needed for the table

    with rc_context({"text.parse_math": False}):  # names of sets and files may hold dollars
        return _png(content)


def _png(content: Comparison) -> bytes:
    from matplotlib.figure import Figure

    labels = list(dict.fromkeys(difference.label for difference in content.differences))
    sets = list(dict.fromkeys(difference.set for difference in content.differences))
    figure = Figure(figsize=(8.0, 1.7 + 0.42 * len(sets) * max(1.0, 0.55 * len(labels))), layout="constrained")
    _draw(figure.add_subplot(), content, labels, sets)
    buffer = BytesIO()
    figure.savefig(buffer, format="png", dpi=150)
    return buffer.getvalue()


def _draw(axes: "Axes", content: Comparison, labels: list[str], sets: list[str]) -> None:
    metric = content.differences[0].metric
    scale = 1.0 if metric in UNITS else 100.0
    for number, label in enumerate(labels):
        differences = [difference for difference in content.differences if difference.label == label]
        values, low, high = scale * np.array([difference.difference[:3] for difference in differences]).T
        lengths = np.stack([values - low, high - values])
        lengths[np.isinf(lengths)] = np.nan  # an interval without an end is not drawn
        shift = 0.22 * (number - (len(labels) - 1) / 2)
        places = [sets.index(difference.set) + shift for difference in differences]
        axes.errorbar(
            values, places, xerr=lengths, fmt="o", capsize=3, markersize=5, linewidth=1.6, label=printable(label)
        )
    axes.axvline(0.0, color="black", linewidth=1.0)
    axes.set_yticks(range(len(sets)), [printable(name) for name in sets])
    axes.set_ylim(len(sets) - 0.5, -0.5)  # the first set at the top
    if len(sets) > 1:
        axes.axhline(len(sets) - 1.5, color="silver", linewidth=0.8, linestyle="--")  # above the mean
    axes.grid(axis="x", color="gainsboro", linewidth=0.8)
    axes.set_axisbelow(True)
    axes.set_xlabel(
        printable(f"difference in {content.metric} ({UNITS.get(metric, 'percentage points')}), 95 % interval")
    )
    axes.set_title(printable(f"against {content.baseline}"), fontsize=11)
    axes.legend(frameon=False, fontsize=9, loc="center left", bbox_to_anchor=(1.0, 0.5))
