"""The figures: the paper's, error by layer; and over a training, a heatmap and curves by step."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from matplotlib.axes import Axes


_TICKS = 32
"""Layers whose names fit below an axis; of more, every second, third... is named."""


def _new_axes(width: float, height: float) -> Axes:
    import matplotlib.pyplot as plt  # here: importing the package must not choose a backend

    return plt.subplots(figsize=(width, height), layout="constrained")[1]


def _scaled(label: str) -> tuple[float, str]:
    """Factor and axis label: errors are shown in per cent, losses as they are."""
    return (1.0, label) if "nats" in label else (100.0, f"{label} (%)")


def _layer_ticks(layers: list[str]) -> tuple[list[int], list[str]]:
    at = list(range(0, len(layers), -(-len(layers) // _TICKS)))
    return at, [layers[i] for i in at]


def plot_errors(
    curves: Mapping[str, Mapping[str, float]],
    *,
    ax: Axes | None = None,
    ylabel: str = "error",
    values: bool = True,
) -> Axes:
    """Draw error against layer, in the order of the network, one curve a name.

    Args:
        curves: curve name -> layer name -> error in [0, 1]; an empty name draws no legend.
        ax: axes to draw on; new ones when None.
        ylabel: what the error is of ("test error", say); with "nats" in it, losses are drawn.
        values: whether to write the values beside the points, of up to twelve layers.

    Returns:
        The axes.
    """
    layers = list(dict.fromkeys(layer for curve in curves.values() for layer in curve))
    factor, label = _scaled(ylabel)
    if ax is None:
        ax = _new_axes(min(max(4.0, 0.55 * len(layers) + 1.5), 14.0), 3.6)
    style = "o-" if len(layers) <= 2 * _TICKS else "-"
    for name, curve in curves.items():
        at = [layers.index(layer) for layer in curve]
        (line,) = ax.plot(at, [factor * e for e in curve.values()], style, markersize=4, label=name)
        if values and len(layers) <= 12:
            for x, e in zip(at, curve.values(), strict=True):
                ax.annotate(
                    f"{factor * e:.1f}" if e >= 0.01 else f"{factor * e:.2f}",
                    (x, factor * e),
                    xytext=(0, 5),
                    textcoords="offset points",
                    ha="center",
                    fontsize=7,
                    color=line.get_color(),
                )
    ax.set_xticks(*_layer_ticks(layers), rotation=45, ha="right", rotation_mode="anchor")
    ax.set_ylabel(label)
    highest = max((e for curve in curves.values() for e in curve.values()), default=0.0)
    ax.set_ylim(0, 1.14 * factor * highest if highest > 0 else 1.0)  # room for the top's label
    ax.grid(axis="y", alpha=0.3)
    if any(curves):
        ax.legend(frameon=False)
    return ax


def plot_heatmap(
    curves: Mapping[int, Mapping[str, float]], *, label: str, ax: Axes | None = None
) -> Axes:
    """Layers from bottom to top, steps from left to right on their own scale, value as colour.

    Colours are on a logarithmic scale where values span more than a factor of ten.

    Args:
        curves: step -> layer -> value.
        label: what the values are.
        ax: axes to draw on; new ones when None.
    """
    from matplotlib.colors import LogNorm
    from matplotlib.ticker import LogFormatter

    layers = list(dict.fromkeys(layer for curve in curves.values() for layer in curve))
    steps = np.array(sorted(curves), dtype=float)
    factor, name = _scaled(label)
    grid = np.array([[factor * curves[int(s)].get(n, np.nan) for s in steps] for n in layers])
    if ax is None:
        ax = _new_axes(7.2, min(max(2.4, 0.28 * len(layers) + 1.2), 7.0))
    middle = (steps[1:] + steps[:-1]) / 2
    first, last = (middle[0], middle[-1]) if len(steps) > 1 else (steps[0] + 0.5, steps[0] - 0.5)
    edges = np.concatenate([[2 * steps[0] - first], middle, [2 * steps[-1] - last]])
    if len(steps) == 1:
        edges = np.array([steps[0] - 0.5, steps[0] + 0.5])
    low, high = np.nanmin(grid), np.nanmax(grid)
    norm = LogNorm(low, high) if 0 < 10 * low < high else None
    mesh = ax.pcolormesh(edges, np.arange(len(layers) + 1) - 0.5, grid, norm=norm, cmap="viridis")
    ax.set_yticks(*_layer_ticks(layers))
    ax.set_xlabel("step")
    bar = ax.figure.colorbar(mesh, ax=ax)
    bar.set_label(name)
    if norm is not None:
        plain = LogFormatter(labelOnlyBase=False, minor_thresholds=(3, 0.5))
        bar.ax.yaxis.set_major_formatter(plain)
        bar.ax.yaxis.set_minor_formatter(plain)
    return ax


def plot_curves(
    curves: Mapping[int, Mapping[str, float]], *, label: str, ax: Axes | None = None
) -> Axes:
    """One curve a layer against step, coloured from the first layer to the last.

    Args:
        curves: step -> layer -> value.
        label: what the values are.
        ax: axes to draw on; new ones when None.
    """
    from matplotlib import colormaps
    from matplotlib.cm import ScalarMappable
    from matplotlib.colors import Normalize
    from matplotlib.ticker import LogFormatter

    layers = list(dict.fromkeys(layer for curve in curves.values() for layer in curve))
    factor, name = _scaled(label)
    ax = _new_axes(7.2, 4.0) if ax is None else ax
    colours = colormaps["viridis"]
    for i, layer in enumerate(layers):
        steps = sorted(step for step, curve in curves.items() if layer in curve)
        ax.plot(
            steps,
            [factor * curves[step][layer] for step in steps],
            ".-" if len(steps) < 2 * _TICKS else "-",
            color=colours(0.95 * i / max(len(layers) - 1, 1)),
            linewidth=1.2,
            label=layer,
        )
    ax.set_xlabel("step")
    ax.set_ylabel(name)
    drawn = [v for curve in curves.values() for v in curve.values()]
    if min(drawn) > 0 and max(drawn) > 10 * min(drawn):
        ax.set_yscale("log")
        plain = LogFormatter(labelOnlyBase=False, minor_thresholds=(3, 0.5))  # 4, not 4 x 10^0
        ax.yaxis.set_major_formatter(plain)
        ax.yaxis.set_minor_formatter(plain)
    else:
        ax.set_ylim(bottom=0)
    ax.grid(alpha=0.3)
    if len(layers) <= 12:
        ax.legend(frameon=False, fontsize=8, loc="center left", bbox_to_anchor=(1.0, 0.5))
    else:
        norm = Normalize(0, len(layers) - 1)
        bar = ax.figure.colorbar(ScalarMappable(norm, "viridis"), ax=ax)
        bar.set_label("layer")
    return ax
