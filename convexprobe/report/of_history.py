"""The sections of a report about a training run."""

from __future__ import annotations

from collections.abc import Sequence
from math import isfinite, log
from typing import Any

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
from convexprobe.report.of_probes import GAP_WORDS
from convexprobe.report.page import MOST_ROWS, data, notes, table
from convexprobe.training.history import ProbeHistory
from convexprobe.training.results import WORDS, Entry, LayerResult

MOST_CELLS = 15_000
"""Steps times layers that figures show at most; of more, steps are left out evenly."""

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
    layers = list(history.layers)[:MOST_CELLS]
    entries = _thinned(history.entries, max(MOST_CELLS // len(layers), 2))
    names = {"test_error": "test error", "train_error": "training error"}
    held = all(r.test_error is not None for e in history.entries for r in e.layers)
    column = "test_error" if held else "train_error"
    series = {
        key: [[_number(rows.get(layer), key) for layer in layers] for rows in map(_rows, entries)]
        for key in (*(("test_error",) if held else ()), "train_error", "information", "gap")
    }
    steps = [entry.step for entry in entries]
    what = f"{names[column]} of the optimal linear classifier"
    heat = heat_map(
        "heat-map", f"{names[column].capitalize()} by layer and step",
        f"The {what} at each layer, the first at the top, and each step of the training.",
        steps, layers, series[column], unit=f"% {names[column]}", factor=100,
    )  # fmt: skip
    left_out = len(history.entries) - len(entries)
    note = f"Figures show {len(entries)} of {len(history.entries)} steps." if left_out else ""
    shown = {"steps": steps, "left": LEFT, "series": _drawn(series)}
    return (
        f"Probes of {len(history.layers)} layers at {len(history)} checkpoints",
        str(history).split("\n"),
        [
            (
                "The training, layer by layer",
                (notes(note) if note else "")
                + heat
                + _SLIDER.format(last=len(steps) - 1, step=steps[-1])
                + _movie(layers, series, names)
                + data("movie-data", shown),
            ),
            ("Each layer over the steps", _curves(layers, steps, series[column], names[column])),
            ("All results", _table(history)),
            ("What could not be probed", _failures(history)),
            ("How to read it", notes(f"Objective: {OBJECTIVE}.", *GAP_WORDS)),
        ],
    )


def _rows(entry: Entry) -> dict[str, LayerResult]:
    return {result.layer: result for result in entry.layers}


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


def _drawn(series: dict[str, list[list[float | None]]]) -> dict[str, Any]:
    return {key: values for key, values in series.items() if key != "gap"}


def _thinned(entries: Sequence[Entry], most: int) -> list[Entry]:
    """At most so many entries, evenly chosen, the first and the last among them."""
    if len(entries) <= most:
        return list(entries)
    last = len(entries) - 1
    return [entries[round(i * last / (most - 1))] for i in range(most)]


def _movie(
    layers: Sequence[str], series: dict[str, list[list[float | None]]], names: dict[str, str]
) -> str:
    """The figures of one step, which the slider redraws; at first of the last step."""
    axis, at = layer_axis(layers), list(map(float, range(len(layers))))
    errors = [key for key in names if key in series]
    curves = [Curve(names[key], at, series[key][-1], key=key) for key in errors]
    every = [v for key in errors for row in series[key] for v in row if v is not None]
    error = line_chart(
        "movie-error", "Error by layer at one step",
        "The error of the optimal linear classifier at each layer, at the step of the slider; "
        "without one, at the last step.",
        curves, axis, unit="error, %", factor=100, cover=every,
    )  # fmt: skip
    information = Curve("", at, series["information"][-1], key="information")
    gap = max((v for row in series["gap"] for v in row if v is not None), default=0.0)
    every = [v for row in series["information"] for v in row if v is not None]
    told = line_chart(
        "movie-information", "Usable information by layer at one step",
        "H(Y) less the loss on the rows that were fitted to: what a linear classifier of this norm "
        f"can tell about the label. The gap of no step adds more than {gap:.2g} bits.",
        [information], axis, unit="bits", cover=every,
    )  # fmt: skip
    return error + told


def _curves(
    layers: Sequence[str], steps: Sequence[int], values: Sequence[Sequence[float | None]], name: str
) -> str:
    if len(steps) < 2:
        return ""
    at = list(map(float, steps))
    curves = [Curve(layer, at, [row[i] for row in values]) for i, layer in enumerate(layers)]
    words = f"The {name} of each layer over the steps of the training."
    if len(layers) > LEGEND:
        words += " Colours go from blue, the first layer, to red, the last."
    return line_chart(
        "curves", f"{name.capitalize()} by step", words, curves, number_axis(at, "step"),
        unit="error, %", factor=100,
    )  # fmt: skip


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
