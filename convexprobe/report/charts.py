"""Charts as inline SVG, which takes its colours from the page, so that it is light and dark.

Every chart is a `<figure>` with a title and a description in words, for those who do not see it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from html import escape
from itertools import pairwise
from math import ceil, floor, isfinite, log10

from convexprobe._tables import shown_text

WIDTH, LEFT, RIGHT, TOP = 760, 64, 16, 18
"""Units of the drawing; its height depends on the names below the axis."""

_SPAN, _RISE = WIDTH - LEFT - RIGHT, 220
_LEVEL = TOP + _RISE
_NAMED = 32
"""Layers that are named on an axis; of more, every second, third ... is."""

_LONGEST = 18
"""Characters of a name on an axis."""

LEGEND = 12
"""Curves that a legend names."""

LEVELS = 64
"""Colours of a heat map."""


@dataclass(frozen=True)
class Curve:
    """One curve of a chart.

    Attributes:
        name: what the legend calls it.
        at: where its points are on the axis.
        values: their heights; None and what is not finite leaves a gap.
        low, high: the ends of an interval around each point; None for none.
        key: by which the slider finds it.
        missed: which points are of probes that are not certified, by place.
    """

    name: str
    at: Sequence[float]
    values: Sequence[float | None]
    low: Sequence[float | None] | None = None
    high: Sequence[float | None] | None = None
    key: str = ""
    missed: Sequence[int] = ()


@dataclass(frozen=True)
class Axis:
    """The horizontal axis: its ends, what is written at which places, and its name."""

    low: float
    high: float
    ticks: Sequence[tuple[float, str]]
    name: str = ""

    @property
    def tilted(self) -> bool:
        """Whether the writing would not fit side by side."""
        return len(self.ticks) * max((len(text) for _, text in self.ticks), default=0) > 90

    @property
    def bottom(self) -> float:
        """What the writing below takes."""
        longest = max((len(text) for _, text in self.ticks), default=0)
        return 26 + (4.8 * longest if self.tilted else 0) + (22 if self.name else 0)

    def place(self, value: float) -> float:
        """The coordinate of a value."""
        return LEFT + _SPAN * (value - self.low) / (self.high - self.low)


def layer_axis(layers: Sequence[str]) -> Axis:
    """An axis with a place for each layer, from 0 on."""
    every = -(-len(layers) // _NAMED)
    ticks = [(float(i), _short(layers[i])) for i in range(0, len(layers), every)]
    return Axis(-0.5, len(layers) - 0.5, ticks)


def number_axis(values: Sequence[float], name: str) -> Axis:
    """An axis of numbers that ends where they do."""
    low, high = min(values), max(values)
    low, high = (low, high) if low < high else (low - 0.5, high + 0.5)
    return Axis(low, high, [(t, f"{t:g}") for t in _round_numbers(low, high)], name)


def power_axis(exponents: Sequence[float], name: str) -> Axis:
    """An axis of powers of ten, given by their exponents."""
    low, high = min(exponents) - 0.2, max(exponents) + 0.2
    every = max(1, ceil((high - low) / 10))
    ticks = [(float(e), f"1e{e}") for e in range(ceil(low), floor(high) + 1, every)]
    return Axis(low, high, ticks, name)


def line_chart(
    ident: str,
    title: str,
    words: str,
    curves: Sequence[Curve],
    axis: Axis,
    *,
    unit: str,
    factor: float = 1.0,
    powers: bool = False,
    cover: Sequence[float] = (),
) -> str:
    """Curves over an axis.

    Args:
        ident: of the figure, unique on the page.
        title: one line.
        words: what it shows, for those who do not see it; also its caption.
        curves: at least one.
        axis: the horizontal axis.
        unit: of the heights.
        factor: of the heights before they are drawn: 100 for per cent.
        powers: whether the heights are drawn by their logarithm.
        cover: further heights for which there has to be room.
    """
    known = [
        factor * v
        for part in (cover, *(p for c in curves for p in (c.values, c.low or (), c.high or ())))
        for v in part
        if v is not None and isfinite(v) and (v > 0 or not powers)
    ]
    low: float
    high: float
    if powers:
        low = floor(log10(min(known, default=0.1)) - 1e-9)
        high = max(ceil(log10(max(known, default=1.0)) + 1e-9), low + 1)
        marks = [(float(e), f"1e{e}") for e in range(low, high + 1, max(1, (high - low) // 6))]
    else:
        low, high = min(0.0, *known, 0.0), 1.06 * max([*known, 1e-9])
        marks = [(t, f"{t:g}") for t in _round_numbers(low, high)]

    def height(value: float | None) -> float | None:
        if value is None or not isfinite(value) or (powers and value <= 0):
            return None
        scaled = log10(factor * value) if powers else factor * value
        return TOP + _RISE * (1 - (scaled - low) / (high - low))

    parts = [_frame(axis, [(TOP + _RISE * (1 - (m - low) / (high - low)), t) for m, t in marks])]
    parts.append(f'<text class="unit" x="{LEFT}" y="{TOP - 6}">{escape(unit)}</text>')
    for i, curve in enumerate(curves):
        points = [(axis.place(x), height(v)) for x, v in zip(curve.at, curve.values, strict=True)]
        key = f' data-key="{escape(curve.key)}"' if curve.key else ""
        parts.append(f'<g style="--c:{_colour(i, len(curves))}"{key}>')
        if curve.low is not None and curve.high is not None:
            ends = [
                (axis.place(x), height(a), height(b))
                for x, a, b in zip(curve.at, curve.low, curve.high, strict=True)
            ]
            parts.append(f'<path class="band" d="{_bars(ends)}"/>')
        parts.append(f'<path class="line" d="{_line(points)}"/>')
        if len(points) <= 2 * _NAMED or curve.missed:
            ring = [points[j] for j in curve.missed]
            parts.append(f'<path class="ring" d="{_dots(ring)}"/>' if ring else "")
            parts.append(f'<path class="dots" d="{_dots(points)}"/>')
        parts.append("</g>")
    scale = f'data-low="{low / factor:.9g}" data-high="{high / factor:.9g}"'
    legend = ""
    if 1 < len(curves) <= LEGEND:
        items = "".join(
            f'<li style="--c:{_colour(i, len(curves))}">{shown_text(c.name)}</li>'
            for i, c in enumerate(curves)
        )
        legend = f'<ul class="legend">{items}</ul>'
    geometry = f'data-top="{TOP}" data-rise="{_RISE}" data-left="{LEFT}" data-span="{_SPAN}"'
    inside = "".join(parts)
    return _figure(ident, title, words, inside, axis, f"{scale} {geometry}", legend)


def heat_map(
    ident: str,
    title: str,
    words: str,
    steps: Sequence[float],
    layers: Sequence[str],
    values: Sequence[Sequence[float | None]],
    *,
    unit: str,
    factor: float,
) -> str:
    """Values as colours: a row a layer, the first at the top, steps from left to right, to scale.

    Args:
        ident, title, words, unit, factor: as in `line_chart`.
        steps: increasing.
        layers: their names.
        values: of each step the values by layer.
    """
    from matplotlib import colormaps  # here: only reports need it

    known = [v for row in values for v in row if v is not None and isfinite(v)]
    low, high = min(known, default=0.0), max(known, default=1.0)
    middle = [(a + b) / 2 for a, b in pairwise(steps)]
    first = 2 * steps[0] - middle[0] if middle else steps[0] - 0.5
    last = 2 * steps[-1] - middle[-1] if middle else steps[-1] + 0.5
    edges = [first, *middle, last]
    axis = Axis(first, last, [(t, f"{t:g}") for t in _round_numbers(steps[0], steps[-1])], "step")
    x = [axis.place(edge) for edge in edges]
    tall = _RISE / len(layers)
    cells: dict[int, list[str]] = {}
    for j in range(len(layers)):
        start = 0
        levels = [_level(row[j], low, high) for row in values]
        for i in range(1, len(levels) + 1):
            if i == len(levels) or levels[i] != levels[start]:
                if (level := levels[start]) is not None:
                    wide = x[i] - x[start]
                    cell = (
                        f"M{x[start]:.1f} {TOP + j * tall:.1f}h{wide:.1f}v{tall:.1f}h{-wide:.1f}z"
                    )
                    cells.setdefault(level, []).append(cell)
                start = i
    colours = colormaps["viridis"].resampled(LEVELS)
    parts = []
    for level, shapes in sorted(cells.items()):
        red, green, blue = (round(255 * c) for c in colours(level)[:3])
        fill = f"#{red:02x}{green:02x}{blue:02x}"
        # a stroke of the same colour closes the seams between cells
        parts.append(
            f'<path fill="{fill}" stroke="{fill}" stroke-width=".5" d="{"".join(shapes)}"/>'
        )
    every = -(-len(layers) // 16)
    names = [(TOP + (j + 0.5) * tall, _short(layers[j])) for j in range(0, len(layers), every)]
    frame = _frame(axis, names, grid=False)
    mark = (
        f'<path class="mark" d="M{LEFT} {TOP}v{_RISE}" data-edges="'
        f'{" ".join(f"{(a + b) / 2:.1f}" for a, b in pairwise(x))}"/>'
    )
    ramp = ",".join(
        "#" + "".join(f"{round(255 * c):02x}" for c in colours(level)[:3])
        for level in range(0, LEVELS, 9)
    )
    scale = (
        f'<p class="ramp"><span>{factor * low:.3g}</span><span class="bar" '
        f'style="background:linear-gradient(90deg,{ramp})"></span><span>{factor * high:.3g} '
        f"{escape(unit)}</span></p>"
    )
    inside = "".join(parts) + frame + mark
    longest = max(len(text) for _, text in names)
    before = max(0.0, 7.0 * longest + 10 - LEFT)
    return _figure(ident, title, words, inside, axis, "", scale, before)


def _figure(
    ident: str,
    title: str,
    words: str,
    inside: str,
    axis: Axis,
    data: str,
    legend: str,
    before: float = 0.0,
) -> str:
    """The figure around a drawing; `before` is further room at its left, for long names."""
    box = f"{-before:.0f} 0 {WIDTH + before:.0f} {_LEVEL + axis.bottom:.0f}"
    return (
        f'<figure id="{ident}"><div class="wide" tabindex="0" role="region" '
        f'aria-label="{escape(title)}"><svg viewBox="{box}" role="img" '
        f'aria-labelledby="{ident}-title {ident}-words" {data}>'
        f'<title id="{ident}-title">{escape(title)}</title>'
        f'<desc id="{ident}-words">{escape(words)}</desc>{inside}</svg></div>'
        f"{legend}<figcaption><b>{escape(title)}.</b> {escape(words)}</figcaption></figure>\n"
    )


def _frame(axis: Axis, marks: Sequence[tuple[float, str]], *, grid: bool = True) -> str:
    """The lines and the writing around a chart; `marks` are heights and what stands there."""
    parts = []
    for y, text in marks:
        if grid:
            parts.append(f'<path class="grid" d="M{LEFT} {y:.1f}h{_SPAN}"/>')
        parts.append(f'<text class="y" x="{LEFT - 6}" y="{y + 4:.1f}">{escape(text)}</text>')
    level, tilted = _LEVEL, axis.tilted
    for value, text in axis.ticks:
        x = axis.place(value)
        parts.append(f'<path class="tick" d="M{x:.1f} {level}v4"/>')
        turn = f' transform="rotate(-40 {x:.1f} {level + 16})"' if tilted else ""
        side = "end" if tilted else "middle"
        parts.append(
            f'<text x="{x:.1f}" y="{level + 18}" text-anchor="{side}"{turn}>{escape(text)}</text>'
        )
    parts.append(f'<path class="tick" d="M{LEFT} {level}h{_SPAN}"/>')
    if axis.name:
        at = f'x="{LEFT + _SPAN / 2}" y="{level + axis.bottom - 6:.0f}"'
        parts.append(f'<text {at} text-anchor="middle">{escape(axis.name)}</text>')
    return "".join(parts)


def _line(points: Sequence[tuple[float, float | None]]) -> str:
    out, pen = [], "M"
    for x, y in points:
        if y is None:
            pen = "M"
            continue
        out.append(f"{pen}{x:.1f} {y:.1f}")
        pen = "L"
    return "".join(out)


def _dots(points: Sequence[tuple[float, float | None]]) -> str:
    """Lines of length 0, whose round ends are dots."""
    return "".join(f"M{x:.1f} {y:.1f}h0" for x, y in points if y is not None)


def _bars(ends: Sequence[tuple[float, float | None, float | None]]) -> str:
    return "".join(
        f"M{x:.1f} {a:.1f}V{b:.1f}M{x - 4:.1f} {a:.1f}h8M{x - 4:.1f} {b:.1f}h8"
        for x, a, b in ends
        if a is not None and b is not None
    )


def _colour(index: int, count: int) -> str:
    """One of the page's six colours; of more curves, hues from blue to red."""
    if count <= 6:
        return f"var(--c{index})"
    return f"hsl({250 - 250 * index / (count - 1):.0f} 65% 52%)"


def _level(value: float | None, low: float, high: float) -> int | None:
    if value is None or not isfinite(value):
        return None
    return min(int(LEVELS * (value - low) / (high - low)), LEVELS - 1) if high > low else 0


def _round_numbers(low: float, high: float) -> list[float]:
    """Four to eight round numbers from one end to the other."""
    span = high - low
    if not span > 0:
        return [low]
    power = 10.0 ** floor(log10(span))
    size = next(s * power for s in (0.1, 0.2, 0.25, 0.5, 1.0, 2.0) if span / (s * power) <= 8)
    first = ceil(low / size - 1e-9)
    return [i * size for i in range(first, floor(high / size + 1e-9) + 1)]


def _short(name: str) -> str:
    """The end of a long name, which tells layers apart."""
    return name if len(name) <= _LONGEST else "…" + name[1 - _LONGEST :]
