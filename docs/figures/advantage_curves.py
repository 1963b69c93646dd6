"""Draws advantage_curves.png beside this file: run `.venv/bin/python docs/figures/advantage_curves.py`."""

from dataclasses import dataclass
from pathlib import Path

import matplotlib as mpl

mpl.use("Agg")

import matplotlib.pyplot as plt
import numpy as np
import torch
from matplotlib.axes import Axes

from asymgrpo_app.algorithm.advantages import asym_advantages

GROUP_SIZE = 8


@dataclass(frozen=True)
class Curve:
    """A pair of exponents and how it is drawn."""

    name: str
    beta_pos: float
    beta_neg: float
    color: str
    style: str
    width: float = 1.8


CURVES = [
    Curve("REINFORCE (0, 0)", 0.0, 0.0, "#8a8a8a", ":"),
    Curve("GRPO (0.5, 0.5)", 0.5, 0.5, "#222222", "-"),
    Curve("symmetric (0.7, 0.7)", 0.7, 0.7, "#2b6cb0", "--"),
    Curve("AsymGRPO (0.9, 0.4)", 0.9, 0.4, "#d1495b", "-", 2.6),
]


def draw_side(axes: Axes, *, right: bool) -> None:
    """One side's curves: lines by the formula, dots by the package, at the accuracies that a group can have."""
    p = np.linspace(0.5 / GROUP_SIZE, 1 - 0.5 / GROUP_SIZE, 200)
    counts = range(1, GROUP_SIZE)
    rewards = torch.tensor([[1.0] * k + [0.0] * (GROUP_SIZE - k) for k in counts])
    column = 0 if right else -1
    for curve in CURVES:
        line = ((1 - p) / p) ** curve.beta_pos if right else -((p / (1 - p)) ** curve.beta_neg)
        axes.plot(p, line, curve.style, color=curve.color, linewidth=curve.width, label=curve.name)
        dots = asym_advantages(rewards, curve.beta_pos, curve.beta_neg)[:, column]
        axes.plot([k / GROUP_SIZE for k in counts], dots, "o", color=curve.color, markersize=curve.width * 2)
    axes.axhline(0, color="#bbbbbb", linewidth=0.8, zorder=0)
    axes.set_xlim(0, 1)
    axes.set_ylim((-0.35, 6.2) if right else (-6.2, 0.35))
    axes.set_xticks([k / GROUP_SIZE for k in range(GROUP_SIZE + 1)], [f"{k}/8" for k in range(GROUP_SIZE + 1)])
    axes.set_xlabel("group accuracy p")
    axes.set_title("right completions" if right else "wrong completions")
    axes.grid(axis="y", color="#eeeeee")
    axes.spines[["top", "right"]].set_visible(False)


def main() -> None:
    """Draw both sides and write the picture."""
    plt.rcParams.update({"font.size": 12, "axes.titlesize": 13, "legend.fontsize": 11})
    figure, (left, right) = plt.subplots(1, 2, figsize=(10, 4.4), layout="constrained")
    draw_side(left, right=True)
    draw_side(right, right=False)
    left.set_ylabel("advantage A")
    left.legend(frameon=False, loc="upper right")
    left.text(0.22, 3.3, "hard prompt, few right:\nmore weight than GRPO", color="#d1495b")
    right.text(0.3, -3.4, "easy prompt, few wrong:\nless weight than GRPO", color="#d1495b")
    figure.savefig(Path(__file__).with_suffix(".png"), dpi=120)


if __name__ == "__main__":
    main()
