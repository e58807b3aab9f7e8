"""The paper's movie: error by layer, a frame for every step."""

from __future__ import annotations

import os
from collections.abc import Mapping
from math import isfinite
from pathlib import Path
from typing import Any

from convexprobe._files import replacing
from convexprobe.plotting.figures import Curves, layer_order, plot_errors, scaled


def animate(
    curves: Mapping[Any, Curves],
    path: str | os.PathLike[str],
    *,
    label: str,
    percent: bool,
    fps: float,
    dpi: int,
) -> None:
    """Write a `.gif` or an `.mp4` with the same axes in every frame.

    Args:
        curves: step -> curve name -> layer -> value, such as a curve a concept; one whose name is
            empty is not in the legend.
        path: the file.
        label, percent: what the values are; see `plot_errors`.
        fps: frames a second.
        dpi: dots per inch of frames of 7.2 by 4 inches.

    Raises:
        ValueError: another suffix.
        RuntimeError: an `.mp4`, and ffmpeg is not installed.
    """
    from matplotlib.animation import FFMpegWriter, PillowWriter
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    path = Path(path)
    writers = {".gif": PillowWriter, ".mp4": FFMpegWriter}
    if path.suffix not in writers:
        raise ValueError(f"path: expected a .gif or an .mp4, found {str(path)!r}")
    if path.suffix == ".mp4" and not FFMpegWriter.isAvailable():
        raise RuntimeError("an .mp4 needs ffmpeg, which was not found; install it or write a .gif")
    figure = Figure(figsize=(7.2, 4.0), layout="constrained")
    FigureCanvasAgg(figure)  # not pyplot: a movie must not choose or need a display
    ax = figure.add_subplot()
    frames = list(curves.values())
    names = list(dict.fromkeys(name for frame in frames for name in frame))
    layers = layer_order(dict(enumerate(curve for frame in frames for curve in frame.values())))
    finite = [v for f in frames for c in f.values() for v in c.values() if isfinite(v)]
    top = max(finite, default=0.0)
    flat = {name: dict.fromkeys(layers, top) for name in names}
    plot_errors(flat, ax=ax, ylabel=label, percent=percent, values=False)
    lines = dict(zip(names, ax.lines, strict=True))
    scale, _ = scaled(label, percent)
    ax.set_ylim(0, 1.05 * scale * top if top > 0 else 1.0)
    title = ax.set_title("step", loc="left", fontsize=10)
    figure.draw_without_rendering()
    figure.set_layout_engine("none")  # laid out once: the axes stay where they are
    writer = writers[path.suffix](fps=fps)
    with replacing(path) as temporary, writer.saving(figure, str(temporary), dpi):
        for step, frame in curves.items():
            for name, line in lines.items():
                curve = frame.get(name, {})
                line.set_data(
                    [i for i, layer in enumerate(layers) if layer in curve],
                    [scale * curve[layer] for layer in layers if layer in curve],
                )
            title.set_text(f"step {step}")
            writer.grab_frame()
