"""The figure: gaps against passes (upper half) and CPU seconds (lower half), a column a layer."""

from __future__ import annotations

from pathlib import Path

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import SubFigure
from matplotlib.lines import Line2D

from benchmarks.future_work.methods import SCALED, TEXTBOOK
from benchmarks.future_work.report import Runs, certified, true
from benchmarks.harness.table import Row

FLOOR, CEILING = 2e-5, 1.5

LEAST = {"passes": 0.5, "seconds": 3e-3}
"""Where the axes begin; a start from the constant classifier has cost nothing."""

# Okabe and Ito's colours; the marks tell the methods apart without them.
LOOKS = {
    "SAG, scikit-learn": ("#0072B2", "o"),
    "SAGA, scikit-learn": ("#56B4E9", "s"),
    "SVRG, cyanure": ("#D55E00", "^"),
    "SAG, Identity()": ("#009E73", "D"),
    "SVRG, Identity()": ("#E69F00", "v"),
    "Adam": ("#CC79A7", "P"),
    "RMSProp": ("#000000", "X"),
    "SAG": ("#0072B2", "o"),
    "SVRG": ("#D55E00", "^"),
    "Katyusha": ("#E69F00", "v"),
    "Newton-CG": ("#000000", "X"),
    "L-BFGS": ("#009E73", "D"),
}


def draw(axes: Axes, run: list[Row], name: str, measure: str) -> None:
    """The certified gap as a line with marks, the true one dashed."""
    colour, mark = LOOKS[name]
    where = [max(getattr(row, measure), LEAST[measure]) for row in run]
    for gap, dash in ((certified, "-"), (true, "--")):
        values = np.clip([gap(row) for row in run], FLOOR, None)
        line = gap is certified
        axes.plot(
            where, values, dash, color=colour, linewidth=1.3 if line else 0.9,
            marker=mark if line else None, markersize=3.5, markevery=0.2, alpha=1 if line else 0.9,
        )  # fmt: skip


def half(part: SubFigure, runs: Runs, titles: dict[str, str], measure: str) -> None:
    """One half: cold and warm, textbook and preconditioned, below each other, against a measure."""
    kinds = [(s, m) for s in ("cold", "warm") for m in (TEXTBOOK, SCALED)]
    grid = part.subplots(len(kinds), len(titles), sharex="col", sharey=True, squeeze=False)
    for i, (start, methods) in enumerate(kinds):
        for j, (layer, title) in enumerate(titles.items()):
            axes = grid[i, j]
            for name in methods:
                if run := runs.get((layer, start, name)):
                    draw(axes, run, name, measure)
            axes.axhline(1e-3, color="0.5", linewidth=0.8, zorder=0)
            axes.set(xscale="log", yscale="log", ylim=(FLOOR, CEILING))
            axes.set_yticks([1e-4, 1e-3, 1e-2, 1e-1, 1], ["", "0.001", "", "0.1", ""])
            axes.minorticks_off()
            axes.tick_params(labelsize=8, pad=2)
            axes.grid(color="0.92", linewidth=0.5)
            if i == 0:
                axes.set_title(title, fontsize=10)
        kind = "textbook" if methods is TEXTBOOK else "preconditioned"
        grid[i, 0].set_ylabel(f"{start}\n{kind}", fontsize=9)
    for j, layer in enumerate(titles):
        spans = [getattr(row, measure) for key in runs if key[0] == layer for row in runs[key]]
        grid[0, j].set_xlim(LEAST[measure], 1.2 * max(spans, default=1.0))
        ticks = [t for t in (0.01, 0.1, 1, 10, 100, 1000) if LEAST[measure] <= t <= max(spans)]
        grid[-1, j].set_xticks(ticks, [f"{t:g}" for t in ticks])
    part.supxlabel({"passes": "passes", "seconds": "CPU seconds"}[measure], fontsize=10)


def figure(runs: Runs, titles: dict[str, str], file: Path) -> None:
    """Draw all runs into a PNG file.

    Args:
        runs: of the layers in `titles`.
        titles: of the columns, by layer.
        file: where to.
    """
    drawn = plt.figure(figsize=(2.35 * len(titles) + 0.7, 13.4), layout="constrained")
    top, upper, lower = drawn.subfigures(3, 1, height_ratios=[0.16, 1, 1])
    for part, measure in ((upper, "passes"), (lower, "seconds")):
        half(part, runs, titles, measure)
    for methods, title, where in (
        (TEXTBOOK, "textbook, and usual practice", "center left"),
        (SCALED, "preconditioned", "center right"),
    ):
        handles = [
            Line2D([], [], color=LOOKS[n][0], marker=LOOKS[n][1], markersize=5, label=n)
            for n in methods
        ]
        top.legend(handles=handles, title=title, loc=where, ncols=2, fontsize=8, title_fontsize=9,
                   frameon=False)  # fmt: skip
    styles = [
        Line2D([], [], color="0.3", marker="o", markersize=4, label="certified"),
        Line2D([], [], color="0.3", linestyle="--", label="true"),
    ]
    top.legend(handles=styles, title="gap / H(Y)", loc="center", fontsize=8, title_fontsize=9,
               frameon=False)  # fmt: skip
    drawn.savefig(file, dpi=100)
    plt.close(drawn)
