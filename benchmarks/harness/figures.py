"""Draw the report's figures; each is returned as the bytes of a PNG file."""

from __future__ import annotations

from io import BytesIO
from math import isfinite

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from benchmarks.harness.summary import Runs, peer_names, profile
from benchmarks.harness.table import Row
from benchmarks.harness.targets import OURS

FLOOR = 1e-8
"""Lower suboptimalities are drawn at this value: F* is known to about 1e-7."""


def style(name: str, names: list[str]) -> dict[str, object]:
    """Return the line style of a peer: ours warm and thick, the others from blue to green."""
    ours = [n for n in names if n.startswith(OURS)]
    others = [n for n in names if not n.startswith(OURS)]
    group, colours = (ours, "autumn") if name in ours else (others, "viridis")
    shade = group.index(name) / max(1, len(group))
    marks = "osv^D<>pPX*hd"
    return {
        "color": plt.get_cmap(colours)(0.8 * shade),
        "linewidth": 1.6 if name in ours else 0.9,
        "marker": marks[group.index(name) % len(marks)],
        "markersize": 3,
        "markevery": 0.25,
    }


def legend(figure: Figure, axes: Axes) -> None:
    """Draw one legend below all axes."""
    lines, names = axes.get_legend_handles_labels()
    figure.legend(lines, names, loc="outside lower center", ncols=4, fontsize=7, frameon=False)


def data(figure: Figure, dpi: int = 110) -> bytes:
    """Return the figure as PNG bytes, and close it."""
    buffer = BytesIO()
    figure.savefig(buffer, format="png", dpi=dpi)
    plt.close(figure)
    return buffer.getvalue()


def draw_run(axes: Axes, run: list[Row], measure: str, name: str, names: list[str]) -> None:
    """Draw the lowest true suboptimality so far, and dashed the lowest certified gap so far."""
    last = [row for row in run if row.dtype == run[-1].dtype and row.repeat == run[-1].repeat]
    points = sorted((r for r in last if isfinite(r.seconds)), key=lambda r: r.seconds)
    if not points:
        return
    look = style(name, names)
    where = [max(getattr(row, measure), 1e-4) for row in points]
    true = np.minimum.accumulate([max(row.suboptimality, FLOOR) for row in points])
    axes.plot(where, true, label=name, **look)
    gaps = [row.gap for row in points]
    if np.isfinite(gaps).any():
        best = np.fmin.accumulate(np.maximum(gaps, FLOOR))
        axes.plot(where, best, color=look["color"], linewidth=0.8, linestyle="--")


def curves(runs: Runs, case: str, names: list[str]) -> bytes:
    """Draw suboptimality and gap against passes and against seconds, for one case."""
    figure, both = plt.subplots(1, 2, figsize=(9, 4.6), sharey=True, layout="constrained")
    for axes, measure in zip(both, ("passes", "seconds"), strict=True):
        for name in names:
            if (case, name) in runs:
                draw_run(axes, runs[case, name], measure, name, names)
        axes.set(xscale="log", yscale="log", xlabel=measure, ylim=(FLOOR, 3))
        axes.grid(alpha=0.3)
    both[0].set_ylabel("(F − F*) / H(Y); dashed: certified gap")
    legend(figure, both[0])
    return data(figure)


def draw_profile(axes: Axes, runs: Runs, target: float, measure: str, names: list[str]) -> None:
    """Draw the fraction of cases that each peer solves within a factor of the best peer."""
    ratios = profile(runs, target, measure)
    factors = np.geomspace(1, 100, 300)
    for name in names:
        values = np.sort(ratios[name])
        share = np.searchsorted(values, factors * (1 + 1e-12), side="right") / len(values)
        axes.step(factors, share, where="post", label=name, **style(name, names))
    axes.set(xscale="log", ylim=(-0.02, 1.02), xlabel=f"times the least {measure} to {target:g}")
    axes.grid(alpha=0.3)


def profiles(runs: Runs) -> bytes:
    """Draw the profiles of seconds and of passes, to 1e-3 and to 1e-5."""
    names = peer_names(runs)
    figure, grid = plt.subplots(2, 2, figsize=(9, 8), sharey=True, layout="constrained")
    for row, target in zip(grid, (1e-3, 1e-5), strict=True):
        for axes, measure in zip(row, ("seconds", "passes"), strict=True):
            draw_profile(axes, runs, target, measure, names)
        row[0].set_ylabel("fraction of cases")
    legend(figure, grid[0, 0])
    return data(figure)


def headline(runs: Runs, ours: str) -> bytes:
    """Draw the profile of seconds to 1e-5 of one solver of ours and of all other peers."""
    names = [n for n in peer_names(runs) if n == ours or not n.startswith(OURS)]
    figure, axes = plt.subplots(figsize=(6.4, 4.4), layout="constrained")
    draw_profile(axes, {k: v for k, v in runs.items() if k[1] in names}, 1e-5, "seconds", names)
    axes.set_ylabel("fraction of cases solved")
    legend(figure, axes)
    return data(figure, dpi=100)
