"""The figures: the paper's, error by layer; and over a training, a heatmap and curves by step."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from matplotlib.axes import Axes

Curves = Mapping[Any, Mapping[str, float]]
"""Values by curve or step, and then by layer."""

_INSIDE = 6
"""Curves whose names fit into the axes; the legend of more stands beside them."""

_TICKS = 32
"""Layers whose names fit below an axis; of more, every second, third... is named."""


def plot_errors(
    curves: Curves,
    *,
    ax: Axes | None = None,
    ylabel: str = "error",
    percent: bool = True,
    values: bool = True,
    relative_depth: bool = False,
) -> Axes:
    """Draw error against layer, in the order of the network, one curve a name.

    Networks of other layers are compared over relative depth, all in one call or one after another
    on the same axes:

        plot_errors({"small": small_errors, "large": large_errors}, relative_depth=True)

    Args:
        curves: curve name -> layer name -> error in [0, 1], such as a curve a concept or a network;
            an empty name is not in the legend.
        ax: axes to draw on; new ones when None.
        ylabel: what the error is of ("test error", say).
        percent: whether to draw per cent; False draws the values as they are (losses, say).
        values: whether to write the values beside the points, of up to two curves of up to twelve
            layers: that of the higher point above it, that of the lower point below.
        relative_depth: whether the horizontal axis is the place of a layer in its own curve, from 0
            for the first to 1 for the last, and not its name.

    Returns:
        The axes.
    """
    layers = layer_order(curves)
    factor, label = scaled(ylabel, percent)
    legend = len(curves) if any(curves) else 0
    if ax is None:
        width = 5.6 if relative_depth else min(max(4.0, 0.55 * len(layers) + 1.5), 14.0)
        width += 1.8 if legend > _INSIDE else 0.0
        ax = _new_axes(width, 3.6)
    style = "o-" if len(layers) <= 2 * _TICKS else "-"
    colours = curve_colours(len(curves))
    values = values and len(layers) <= 12 and len(curves) <= 2 and not relative_depth
    for (name, curve), colour in zip(curves.items(), colours, strict=True):
        at: list[float] = [layers.index(layer) for layer in curve]
        if relative_depth:
            at = np.linspace(0.0, 1.0, len(curve)).tolist() if len(curve) > 1 else [1.0]
        heights = [factor * e for e in curve.values()]
        (line,) = ax.plot(at, heights, style, markersize=4, label=name, color=colour, clip_on=False)
        if values:
            _write_values(ax, name, curves, layers, factor, line.get_color())
    if relative_depth:
        ax.set_xlabel("relative depth")
    else:
        ax.set_xticks(*_layer_ticks(layers), rotation=45, ha="right", rotation_mode="anchor")
    ax.set_ylabel(label)
    drawn = _drawn(ax)  # also of what was there before
    highest = float(drawn.max(initial=0.0))
    below = 0.1 * highest if values and len(curves) == 2 else 0.0
    ax.set_ylim(-below, 1.14 * highest if highest > 0 else 1.0)  # room for values on both sides
    ax.grid(axis="y", alpha=0.3)
    if legend > _INSIDE:
        outside(ax)
    elif legend:
        ax.legend(frameon=False)
    return ax


def _write_values(
    ax: Axes, name: Any, curves: Curves, layers: list[str], factor: float, colour: Any
) -> None:
    """Write a curve's values on the side of its points that is away from the other curve."""
    from matplotlib.patheffects import withStroke

    others = [curve for other, curve in curves.items() if other != name]
    first = name == next(iter(curves))
    for layer, e in curves[name].items():
        facing = [curve[layer] for curve in others if layer in curve]
        above = all(e > other or (e == other and first) for other in facing)
        ax.annotate(
            f"{factor * e:.1f}" if e >= 0.01 else f"{factor * e:.2f}",
            (layers.index(layer), factor * e),
            xytext=(0, 6 if above else -6),
            textcoords="offset points",
            ha="center",
            va="bottom" if above else "top",
            fontsize=7,
            color=colour,
            path_effects=[withStroke(linewidth=2, foreground="white")],  # legible on a line
        )


def plot_heatmap(curves: Curves, *, label: str, percent: bool, ax: Axes | None = None) -> Axes:
    """Draw values as colours: layers from bottom to top, steps from left to right, to scale.

    A colour reaches half of the way to the next step; the axis goes from the first to the last one.
    Colours are on a logarithmic scale where values span more than a factor of ten.

    Args:
        curves: step -> layer -> value.
        label, percent: what the values are; see `plot_errors`.
        ax: axes to draw on; new ones when None.
    """
    from matplotlib.colors import LogNorm

    layers = layer_order(curves)
    steps = np.array(sorted(curves), dtype=float)
    factor, name = scaled(label, percent)
    grid = np.array([[factor * curves[int(s)].get(n, np.nan) for s in steps] for n in layers])
    if ax is None:
        ax = _new_axes(7.2, min(max(2.4, 0.28 * len(layers) + 1.2), 7.0))
    edges = np.array([steps[0] - 0.5, steps[0] + 0.5])
    if len(steps) > 1:
        edges = np.concatenate([steps[:1], (steps[1:] + steps[:-1]) / 2, steps[-1:]])
    low, high = np.nanmin(grid), np.nanmax(grid)
    norm = LogNorm(low, high) if 0 < 10 * low < high else None
    mesh = ax.pcolormesh(edges, np.arange(len(layers) + 1) - 0.5, grid, norm=norm, cmap="viridis")
    ax.set_yticks(*_layer_ticks(layers))
    ax.set_xlabel("step")
    bar = ax.figure.colorbar(mesh, ax=ax)
    bar.set_label(name)
    if norm is not None:
        _plain_numbers(bar.ax.yaxis)
    return ax


def plot_curves(
    concepts: Mapping[str, Curves], *, label: str, percent: bool, ax: Axes | None = None
) -> Axes:
    """Draw one curve a layer against step, coloured from the first layer to the last.

    Of several concepts each has a colour, and its deeper layers are darker.

    Args:
        concepts: concept -> step -> layer -> value; a name that is empty is not shown.
        label, percent: what the values are; see `plot_errors`.
        ax: axes to draw on; new ones when None.
    """
    if len(concepts) > 1:
        return _plot_concepts(concepts, label, percent, ax)
    (curves,) = concepts.values()
    from matplotlib import colormaps
    from matplotlib.cm import ScalarMappable
    from matplotlib.colors import Normalize

    layers = layer_order(curves)
    factor, name = scaled(label, percent)
    ax = _new_axes(7.2, 4.0) if ax is None else ax
    colours = colormaps["viridis"]
    for i, layer in enumerate(layers):
        colour = colours(0.9 * i / max(len(layers) - 1, 1))  # the last of the map is too pale
        _draw_steps(ax, curves, layer, factor, color=colour, label=layer)
    _finish_steps(ax, name)
    if len(layers) <= 12:
        outside(ax)
    else:
        norm = Normalize(0, len(layers) - 1)
        ax.figure.colorbar(ScalarMappable(norm, "viridis"), ax=ax, label="layer")
    return ax


def _plot_concepts(
    concepts: Mapping[str, Curves], label: str, percent: bool, ax: Axes | None
) -> Axes:
    """`plot_curves` of several concepts."""
    factor, name = scaled(label, percent)
    ax = _new_axes(7.2, 4.0) if ax is None else ax
    for i, (concept, curves) in enumerate(concepts.items()):
        layers = layer_order(curves)
        colour = curve_colours(len(concepts))[i] or f"C{i}"
        for depth, layer in enumerate(layers):
            alpha = 0.25 + 0.75 * (depth + 1) / len(layers)
            last = concept if depth == len(layers) - 1 else None
            _draw_steps(ax, curves, layer, factor, color=colour, alpha=alpha, label=last)
    _finish_steps(ax, name)
    outside(ax).set_title("darker: deeper", prop={"size": 8})
    return ax


def _draw_steps(ax: Axes, curves: Curves, layer: str, factor: float, **look: Any) -> None:
    """Draw one layer's values against the step."""
    steps = sorted(step for step, curve in curves.items() if layer in curve)
    values = [factor * curves[step][layer] for step in steps]
    style = ".-" if len(steps) < 2 * _TICKS else "-"
    ax.plot(steps, values, style, linewidth=1.2, clip_on=False, **look)


def _finish_steps(ax: Axes, name: str) -> None:
    """Label the axes of values against the step; values of several decades are logarithmic."""
    ax.set_xlabel("step")
    ax.set_ylabel(name)
    drawn = _drawn(ax)
    if len(drawn) and drawn.min() > 0 and drawn.max() > 10 * drawn.min():
        ax.set_yscale("log")
        _plain_numbers(ax.yaxis)
    else:
        ax.set_ylim(bottom=0)
    steps = np.concatenate([np.ravel(line.get_xdata()) for line in ax.lines])
    if len(steps) and steps.min() < steps.max():
        ax.set_xlim(steps.min(), steps.max())
    ax.grid(alpha=0.3)


def _drawn(ax: Axes) -> np.ndarray:
    """The finite values of all lines on the axes."""
    values = [np.ravel(np.asarray(line.get_ydata(), dtype=float)) for line in ax.lines]
    whole = np.concatenate(values) if values else np.zeros(0)
    return whole[np.isfinite(whole)]


def curve_colours(count: int) -> list[Any]:
    """A colour for each of so many curves; None takes the next of the axes' own ten."""
    from matplotlib import colormaps

    if count <= 10:
        return [None] * count
    return [colormaps["turbo"](0.03 + 0.94 * i / (count - 1)) for i in range(count)]


def outside(ax: Axes) -> Any:
    """A legend beside the axes, in two columns if it is long; in them where no room is made for it.

    A figure without a layout engine, as a caller's may be, would cut off what is beside its axes.
    """
    if ax.figure.get_layout_engine() is None:
        return ax.legend(frameon=False, fontsize=8)
    columns = 1 if len(ax.get_legend_handles_labels()[0]) <= 14 else 2
    return ax.legend(
        frameon=False, fontsize=8, ncols=columns, loc="center left", bbox_to_anchor=(1.0, 0.5)
    )


def layer_order(curves: Curves) -> list[str]:
    """The layers of all curves, in the order in which they first appear."""
    return list(dict.fromkeys(layer for curve in curves.values() for layer in curve))


def scaled(label: str, percent: bool) -> tuple[float, str]:
    """The factor of values on an axis, and the axis's label."""
    return (100.0, f"{label} (%)") if percent else (1.0, label)


def _new_axes(width: float, height: float) -> Axes:
    import matplotlib.pyplot as plt  # here: importing the package must not choose a backend

    return plt.subplots(figsize=(width, height), layout="constrained")[1]


def _layer_ticks(layers: list[str]) -> tuple[list[int], list[str]]:
    at = list(range(0, len(layers), -(-len(layers) // _TICKS)))
    return at, [layers[i] for i in at]


def _plain_numbers(axis: Any) -> None:
    """Write 4 on a logarithmic axis, not 4 x 10^0."""
    from matplotlib.ticker import LogFormatter

    plain = LogFormatter(labelOnlyBase=False, minor_thresholds=(3, 0.5))
    axis.set_major_formatter(plain)
    axis.set_minor_formatter(plain)
