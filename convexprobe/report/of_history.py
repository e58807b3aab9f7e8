"""The sections of a report about a training run."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from math import isfinite, log

from convexprobe.probes.labels import layer_of, probe_name
from convexprobe.probes.probe import OBJECTIVE
from convexprobe.report.charts import (
    LEFT,
    LEGEND,
    Curve,
    heat_map,
    layer_axis,
    line_chart,
    number_axis,
)
from convexprobe.report.of_probes import GAP_WORDS, measures
from convexprobe.report.page import MOST_ROWS, data, notes, table
from convexprobe.training.history import ProbeHistory
from convexprobe.training.results import WORDS, Entry, LayerResult

MOST_CELLS = 15_000
"""Steps times layers that figures show at most; of more, steps are left out evenly."""

MOST_FIGURES = 12
"""Concepts that have a figure of their own."""

NAMES = {"test_error": "test error", "train_error": "training error"}
"""What figures call the errors."""

Grid = list[list[float | None]]
"""Values by step and layer."""

_SLIDER = (
    '<div class="movie" hidden><button type="button" id="movie-play">Play</button>'
    '<label for="movie-step">Step</label><input type="range" id="movie-step" min="0" max="{last}" '
    'value="{last}"><output id="movie-shown" for="movie-step">step {step}</output></div>\n'
)


def sections_of_history(history: ProbeHistory) -> tuple[str, list[str], list[tuple[str, str]]]:
    """Title, summary, and sections by heading.

    Raises:
        ValueError: no checkpoints.
    """
    if not history.entries:
        raise ValueError("results: expected at least one checkpoint, found none")
    results = [result for entry in history.entries for result in entry.layers]
    concepts = list(dict.fromkeys(r.concept or "" for r in results))[:MOST_CELLS]
    layers = list(dict.fromkeys(layer_of(r.layer, r.concept) for r in results))
    layers = layers[: max(MOST_CELLS // len(concepts), 1)]
    entries = _thinned(history.entries, max(MOST_CELLS // (len(layers) * len(concepts)), 2))
    held = all(result.test_error is not None for result in results)
    column = "test_error" if held else "train_error"
    steps = [entry.step for entry in entries]
    series = {
        key: _by_concept(entries, layers, concepts, key)
        for key in (*(("test_error",) if held else ()), "train_error", "information", "gap")
    }
    left_out = len(history.entries) - len(entries)
    note = f"Figures show {len(entries)} of {len(history.entries)} steps." if left_out else ""
    last = history.entries[-1]
    return (
        f"Probes of {len(history.layers)} layers at {len(history)} checkpoints"
        if len(concepts) == 1
        else f"Probes of {len(layers)} layers and {len(concepts)} concepts at {len(history)} "
        "checkpoints",
        str(history).split("\n"),
        [
            (
                "The training, layer by layer",
                (notes(note) if note else "")
                + _heat(layers, steps, series[column], NAMES[column])
                + _SLIDER.format(last=len(steps) - 1, step=steps[-1])
                + _movie(layers, steps, series, column),
            ),
            ("Each layer over the steps", _curves(layers, steps, series[column], NAMES[column])),
            (
                f"Measures on held-out rows at step {last.step}",
                measures({name: score.to_row() for name, score in last.scores.items()}),
            ),
            ("All results", _table(history)),
            ("What could not be probed", _failures(history)),
            ("How to read it", notes(f"Objective: {OBJECTIVE}.", *GAP_WORDS)),
        ],
    )


def _by_concept(
    entries: Sequence[Entry], layers: Sequence[str], concepts: Sequence[str], key: str
) -> dict[str, Grid]:
    """Values of one kind: by concept, step and layer."""
    steps = [
        {(layer_of(r.layer, r.concept), r.concept or ""): r for r in entry.layers}
        for entry in entries
    ]
    return {
        concept: [[_number(rows.get((layer, concept)), key) for layer in layers] for rows in steps]
        for concept in concepts
    }


def _number(result: LayerResult | None, key: str) -> float | None:
    if result is None:
        return None
    value: float | None
    if key == "information":
        value = (result.label_entropy - result.loss) / log(2)
    elif key == "gap":
        value = result.gap / log(2)
    else:
        value = getattr(result, key)
    return None if value is None or not isfinite(value) else float(f"{value:.5g}")


def _thinned(entries: Sequence[Entry], most: int) -> list[Entry]:
    """At most so many entries, evenly chosen, the first and the last among them."""
    if len(entries) <= most:
        return list(entries)
    last = len(entries) - 1
    return [entries[round(i * last / (most - 1))] for i in range(most)]


def _heat(
    layers: Sequence[str], steps: Sequence[int], series: Mapping[str, Grid], name: str
) -> str:
    """Layers by steps, one concept's layers below another's."""
    rows = [probe_name(layer, concept or None) for concept in series for layer in layers]
    values = [[v for grid in series.values() for v in grid[i]] for i in range(len(steps))]
    below = ", and one concept's layers below another's" if len(series) > 1 else ""
    return heat_map(
        "heat-map", f"{name.capitalize()} by layer and step",
        f"The {name} of the optimal linear classifier at each layer, the first at the top{below}, "
        "and each step of the training.",
        steps, rows, values, unit=f"% {name}", factor=100,
    )  # fmt: skip


def _movie(
    layers: Sequence[str],
    steps: Sequence[int],
    series: Mapping[str, Mapping[str, Grid]],
    column: str,
) -> str:
    """The figures of one step, which the slider redraws; at first of the last step.

    Plain labels have a curve for held-out and one for fitted rows, and concepts have one each.
    """
    axis, at = layer_axis(layers), list(map(float, range(len(layers))))
    concepts = list(series[column])
    several = len(concepts) > 1
    drawn = {column, "information"} if several else {*series} - {"gap"}
    grids = {
        f"{key}/{concept}" if several else key: grid
        for key in series
        if key in drawn
        for concept, grid in series[key].items()
    }

    def curves(key: str, name: str) -> list[Curve]:
        keys = {f"{key}/{c}": c for c in concepts} if several else {key: name}
        return [Curve(name, at, grids[k][-1], key=k) for k, name in keys.items()]

    def heights(key: str) -> list[float]:
        grids = series[key].values()
        return [v for grid in grids for row in grid for v in row if v is not None]

    each = ", a curve a concept," if several else ""
    if len(concepts) > LEGEND:
        each += " from blue, the first, to red, the last,"
    errors = [key for key in NAMES if key in drawn and key in series]
    error = line_chart(
        "movie-error", f"{NAMES[column].capitalize() if several else 'Error'} by layer at one step",
        f"The {NAMES[column] if several else 'error'} of the optimal linear classifier at each "
        f"layer{each} at the step of the slider; without one, at the last step.",
        [curve for key in errors for curve in curves(key, NAMES[key])],
        axis, unit="error, %", factor=100, cover=[v for key in errors for v in heights(key)],
    )  # fmt: skip
    gap = max(heights("gap"), default=0.0)
    told = line_chart(
        "movie-information", "Usable information by layer at one step",
        "H(Y) less the loss on the rows that were fitted to: what a linear classifier of this norm "
        f"can tell about the label. The gap of no step adds more than {gap:.2g} bits.",
        curves("information", ""), axis, unit="bits", cover=heights("information"),
    )  # fmt: skip
    return error + told + data("movie-data", {"steps": steps, "left": LEFT, "series": grids})


def _curves(
    layers: Sequence[str], steps: Sequence[int], series: Mapping[str, Grid], name: str
) -> str:
    """A curve a layer over the steps, and a figure a concept."""
    if len(steps) < 2:
        return ""
    at = list(map(float, steps))
    words = f"The {name} of each layer over the steps of the training."
    if len(layers) > LEGEND:
        words += " Colours go from blue, the first layer, to red, the last."
    figures = []
    for i, (concept, values) in enumerate(series.items()):
        if i == MOST_FIGURES:
            figures.append(notes(f"The first {i} of {len(series)} concepts are shown."))
            break
        curves = [Curve(layer, at, [row[j] for row in values]) for j, layer in enumerate(layers)]
        title = f"{name.capitalize()} by step{f': {concept}' if len(series) > 1 else ''}"
        ident = f"curves-{i}" if len(series) > 1 else "curves"
        axis = number_axis(at, "step")
        figures.append(line_chart(ident, title, words, curves, axis, unit="error, %", factor=100))
    return "".join(figures)


def _table(history: ProbeHistory) -> str:
    """The results of all steps that fit, evenly chosen."""
    each = max(len(history.layers), 1)
    entries = _thinned(history.entries, max(MOST_ROWS // each, 2))
    rows: list[list[str]] = []
    for entry in entries:
        head, *cells = entry.cells()
        rows = rows or [["step", *head]]
        rows += [[str(entry.step), *row] for row in cells]
    some = "" if len(entries) == len(history.entries) else f", of {len(entries)} of the steps"
    left = (1, *(place + 1 for place in WORDS))
    return table(rows, f"the results{some}; a header sorts by its column", left)


def _failures(history: ProbeHistory) -> str:
    rows = [["source", "why"], *map(list, history.failures)]
    return table(rows, "checkpoints that are not among the results", (0, 1)) if rows[1:] else ""
