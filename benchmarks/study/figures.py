"""Figures of a study, after the paper's: mean and 95 % interval over seeds."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure

from asymgrpo_app.evaluation.intervals import Estimate, mean_interval
from benchmarks.study.definitions import BASELINE, LABELS, Study
from benchmarks.study.records import BINS, Record

# Okabe and Ito's colours, which those who cannot tell red from green can tell apart; the baseline is black.
_COLOURS = ("#D55E00", "#E69F00", "#009E73", "#0072B2", "#CC79A7", "#56B4E9")
_SMOOTHED = 9
_EXPONENTS = ("asymgrpo", "symmetric", "reinforce", "pos_only", "neg_only")

Points = list[tuple[float, Estimate]]


def write_figures(study: Study, records: Sequence[Record], folder: Path) -> list[Path]:
    """Draw all figures as PNG; the same records give the same bytes."""
    folder.mkdir(parents=True, exist_ok=True)
    drawing = _Drawing(study, records)
    accuracy, passed = (f"val/{study.set}/{name}" for name in study.metrics)
    shown = {
        "accuracy": [(accuracy, f"validation {study.metrics[0]}"), (passed, f"validation {study.metrics[1]}")],
        "entropy": [("actor/entropy", "entropy of the policy / nats per token")],
        "entropy_by_sign": [
            ("actor/entropy_pos", "entropy, right completions / nats per token"),
            ("actor/entropy_neg", "entropy, wrong completions / nats per token"),
        ],
        "groups": [
            ("reward/solved_none", "share of groups with none right"),
            ("reward/solved_all", "share of groups with all right"),
        ],
        "logprob_change": [("method/logprob_change_pos", "change of log π, right completions / nats per token")],
    }
    figures = {name: drawing.curves(rows) for name, rows in shown.items()}
    figures["covariance"] = drawing.covariance()
    paths = []
    for name, figure in figures.items():
        paths.append(folder / f"{name}.png")
        figure.savefig(paths[-1], dpi=110, metadata={"Software": None})
    return paths


class _Drawing:
    def __init__(self, study: Study, records: Sequence[Record]) -> None:
        self.study = study
        self.records = records

    def curves(self, rows: Sequence[tuple[str, str]]) -> Figure:
        """One row of panels per tag, over RL steps."""

        def points(method: str, tag: str) -> Points:
            runs = [_smoothed(own.curves[tag]) for own in self._of(method)]
            steps = sorted(set.intersection(*(set(run) for run in runs)))
            return [(step, mean_interval([run[step] for run in runs])) for step in steps]

        panels = [(label, "RL step", lambda method, tag=tag: points(method, tag)) for tag, label in rows]
        return self._panels(panels)

    def covariance(self) -> Figure:
        """Covariance of log-probability and advantage by group accuracy, mean over the run."""

        def points(method: str) -> Points:
            runs = [[own.last(f"method/cov_{name}", self.study.steps) for name in BINS] for own in self._of(method)]
            return [(place, mean_interval([run[place] for run in runs])) for place in range(len(BINS))]

        figure = self._panels([("Cov(log π, A), mean over the run / nats", "group accuracy p", points)])
        for axes in figure.axes:
            axes.set_xticks(range(len(BINS)), ["< 0.25", "0.25–0.5", "0.5–0.75", "≥ 0.75"])
        return figure

    def _panels(self, rows: Sequence[tuple[str, str, Callable[[str], Points]]]) -> Figure:
        columns = self._columns()
        figure = Figure(figsize=(5.6 * len(columns), 0.7 + 3.5 * len(rows)), layout="constrained")
        grid: Any = figure.subplots(len(rows), len(columns), squeeze=False, sharex=True, sharey="row")
        for place, (label, below, points) in enumerate(rows):
            for axes, methods in zip(grid[place], columns, strict=True):
                for method, colour in zip(methods, ("#000000", *_COLOURS), strict=False):
                    _line(axes, points(method), colour, LABELS[method])
                axes.grid(color="#dddddd", linewidth=0.6)
                axes.spines[["top", "right"]].set_visible(False)
                axes.set_xlabel(below)
                axes.tick_params(labelbottom=True, labelleft=True)
            grid[place][0].set_ylabel(label)
        for axes in grid[0]:
            axes.legend(fontsize=8, frameon=False)
        number = len(self.study.seeds)
        figure.suptitle(f"{self.study.name}: mean and 95 % interval over {number} seeds", fontsize=10)
        return figure

    def _columns(self) -> list[tuple[str, ...]]:
        """The baseline with methods that differ in their exponents, and with the others."""
        exponents = tuple(name for name in self.study.methods if name in _EXPONENTS)
        others = tuple(name for name in self.study.methods if name not in (*_EXPONENTS, BASELINE))
        return [(BASELINE, *group) for group in (exponents, others) if group]

    def _of(self, method: str) -> list[Record]:
        return [own for own in self.records if own.method == method]


def _line(axes: Any, points: Points, colour: str, label: str) -> None:
    steps = [step for step, _ in points]
    style = {"marker": "o", "markersize": 3} if len(points) < 20 else {}
    axes.plot(steps, [own.value for _, own in points], color=colour, label=label, linewidth=1.4, **style)
    axes.fill_between(
        steps, [own.low for _, own in points], [own.high for _, own in points], color=colour, alpha=0.12, linewidth=0
    )


def _smoothed(curve: Sequence[tuple[int, float]]) -> dict[int, float]:
    """Centred means over up to nine steps, of a curve that has a value in nearly every step; others stay."""
    if len(curve) < 5 * _SMOOTHED:
        return dict(curve)
    half = _SMOOTHED // 2
    means = {}
    for place in range(half, len(curve) - half):
        window = [value for _, value in curve[place - half : place + half + 1]]
        means[curve[place][0]] = sum(window) / len(window)
    return means
