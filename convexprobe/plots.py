"""The paper's figure: error of the probe at every layer."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from matplotlib.axes import Axes


def plot_errors(
    curves: Mapping[str, Mapping[str, float]], *, ax: Axes | None = None, ylabel: str = "error"
) -> Axes:
    """Draw error against layer, in the order of the network, one curve a name.

    Args:
        curves: curve name -> layer name -> error in [0, 1]; an empty name draws no legend.
        ax: axes to draw on; new ones when None.
        ylabel: what the error is of ("test error", say).

    Returns:
        The axes.
    """
    import matplotlib.pyplot as plt  # here: importing the package must not choose a backend

    layers = list(dict.fromkeys(layer for curve in curves.values() for layer in curve))
    if ax is None:
        width = max(4.0, 0.55 * len(layers) + 1.5)
        _, ax = plt.subplots(figsize=(width, 3.6), layout="constrained")
    for name, curve in curves.items():
        at = [layers.index(layer) for layer in curve]
        (line,) = ax.plot(at, [100.0 * e for e in curve.values()], "o-", markersize=4, label=name)
        if len(layers) <= 12:
            for x, e in zip(at, curve.values(), strict=True):
                ax.annotate(
                    f"{100 * e:.1f}" if e >= 0.01 else f"{100 * e:.2f}",
                    (x, 100 * e),
                    xytext=(0, 5),
                    textcoords="offset points",
                    ha="center",
                    fontsize=7,
                    color=line.get_color(),
                )
    ax.set_xticks(range(len(layers)), layers, rotation=45, ha="right", rotation_mode="anchor")
    ax.set_ylabel(f"{ylabel} (%)")
    highest = max((e for curve in curves.values() for e in curve.values()), default=0.0)
    ax.set_ylim(0, 114.0 * highest if highest > 0 else 1.0)  # room for the labels of the top
    ax.grid(axis="y", alpha=0.3)
    if any(curves):
        ax.legend(frameon=False)
    return ax
