"""The sections of a report about a set of probes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from math import isfinite, log, log10
from typing import Any

from convexprobe._tables import html_lines
from convexprobe.metrics.score import FORMATS
from convexprobe.probes.labels import layer_of
from convexprobe.probes.probe import Probe
from convexprobe.probes.probe_set import WORDS, ProbeSet
from convexprobe.report.charts import LEGEND, Curve, layer_axis, line_chart, power_axis
from convexprobe.report.page import notes, table
from convexprobe.solvers.solution import Status

MOST_POINTS = 4000
"""Probes that figures show at most."""

GAP_WORDS = (
    "The gap is a proof: no parameters whatever have an objective that is lower by more. It is in "
    "nats, like the loss. A probe is certified when its gap is at most tol times H(Y), the entropy "
    "of the labels, which is the loss of the best constant classifier. So a gap of 0.1 % says that "
    "all but a thousandth of what a linear classifier could learn at this penalty is learned.",
    "A kink in a curve is then of the network and its data, and not of an optimiser that stopped.",
)
"""How to read the certificate; the command's demo ends with it, too."""


def sections_of_probes(
    probes: ProbeSet, scores: Mapping[str, Mapping[str, Any]]
) -> tuple[str, list[str], list[tuple[str, str]]]:
    """Title, summary, and sections by heading.

    Args:
        probes: at least one.
        scores: `Score.to_row()` by probe, of other rows; may be empty.

    Raises:
        ValueError: no probes.
    """
    if not len(probes):
        raise ValueError("results: expected at least one probe, found none")
    some = dict(list(probes.items())[:MOST_POINTS])
    figures = [_errors(some, scores), _information(some, scores), _gaps(some)]
    if len(some) < len(probes):
        figures.append(notes(f"The figures show the first {len(some)} of {len(probes)} probes."))
    cells = probes.cells()
    return (
        f"{len(probes)} certified linear probe{'s' * (len(probes) > 1)}"
        if _certified(probes) == len(probes)
        else f"{len(probes)} linear probe{'s' * (len(probes) > 1)}",
        _summary(probes, scores),
        [
            ("Error and information by layer", "".join(figures)),
            ("The penalties that were tried", _paths(some)),
            ("All probes", table(cells, "the probes; a header sorts by its column", WORDS)),
            ("Measures on other rows", measures(scores)),
            ("How to read it", notes(*GAP_WORDS) + html_lines(probes.legend)),
        ],
    )


def _certified(probes: Mapping[str, Probe]) -> int:
    return sum(probe.status is Status.CERTIFIED for probe in probes.values())


def _summary(probes: ProbeSet, scores: Mapping[str, Mapping[str, Any]]) -> list[str]:
    worst = max(probe.gap / probe.label_entropy for probe in probes.values())
    out = [
        f"{_certified(probes)} of {len(probes)} probes are certified. The largest gap is "
        f"{worst:.3%} of H(Y): no linear classifier has an objective that is lower by more."
    ]
    kind, errors = _best_errors(probes, scores)
    best = min(errors, key=lambda name: errors[name])
    out.append(f"The lowest {kind} is {errors[best]:.2%}, of {_cut(best)}.")
    return out


def _best_errors(
    probes: Mapping[str, Probe], scores: Mapping[str, Mapping[str, Any]]
) -> tuple[str, dict[str, float]]:
    """The errors that say most, by probe, and what they are of."""
    if probes.keys() <= scores.keys():
        return "error on other rows", {name: scores[name]["error"] for name in probes}
    held = {n: p.validation_error for n, p in probes.items() if p.validation_error is not None}
    if len(held) == len(probes):
        return "validation error", held
    return "training error", {name: probe.train_error for name, probe in probes.items()}


def _by_concept(
    probes: Mapping[str, Probe],
) -> tuple[list[str], dict[str, list[tuple[float, str]]]]:
    """The layers on an axis, and by concept the place and the probe of each of its points."""
    places = {name: layer_of(name, probe.concept) for name, probe in probes.items()}
    layers = list(dict.fromkeys(places.values()))
    at = {layer: float(i) for i, layer in enumerate(layers)}
    curves: dict[str, list[tuple[float, str]]] = {}
    for name, probe in probes.items():
        curves.setdefault(probe.concept or "", []).append((at[places[name]], name))
    return layers, curves


def _errors(probes: Mapping[str, Probe], scores: Mapping[str, Mapping[str, Any]]) -> str:
    layers, concepts = _by_concept(probes)
    curves = []
    if len(concepts) > 1:
        kind, errors = _best_errors(probes, scores)
        words = f"The {kind} of the optimal linear classifier at each layer, a curve a concept."
        for concept, points in concepts.items():
            curves.append(_curve(concept, points, {n: errors[n] for _, n in points}, probes))
    else:
        words = "The error of the optimal linear classifier at each layer."
        (points,) = concepts.values()
        values = {name: row.get("error") for name, row in scores.items()}
        if values:
            low, high = (_ends(scores, f"error_{end}") for end in ("low", "high"))
            curves.append(_curve("other rows", points, values, probes, low, high))
            words += " Bars are 95 % intervals of bootstrap samples." if low else ""
        held = {name: probe.validation_error for name, probe in probes.items()}
        if any(value is not None for value in held.values()):
            curves.append(_curve("validation rows", points, held, probes))
        train = {name: probe.train_error for name, probe in probes.items()}
        curves.append(_curve("rows it was fitted to", points, train, probes))
    if any(curve.missed for curve in curves):
        words += " Ringed points are not certified."
    return line_chart(
        "errors", "Error by layer", words, curves, layer_axis(layers), unit="error, %", factor=100
    )


def _information(probes: Mapping[str, Probe], scores: Mapping[str, Mapping[str, Any]]) -> str:
    layers, concepts = _by_concept(probes)
    curves = []
    for concept, points in concepts.items():
        low = {name: probes[name].usable_information for _, name in points}
        high = {name: low[name] + probes[name].gap / log(2) for _, name in points}
        name = concept or "rows it was fitted to"
        curves.append(_curve(name, points, low, probes, low, high))
    if len(concepts) == 1 and scores:
        (points,) = concepts.values()
        values = {name: row.get("usable_information") for name, row in scores.items()}
        ends = (_ends(scores, f"usable_information_{end}") for end in ("low", "high"))
        curves.insert(0, _curve("other rows", points, values, probes, *ends))
    words = (
        "Usable information, H(Y) less the loss: what a linear classifier of this norm can tell "
        "about the label. On the rows it was fitted to, a bar reaches as far as the gap allows; it "
        "is often too short to be seen."
    )
    return line_chart(
        "information", "Usable information by layer", words, curves, layer_axis(layers), unit="bits"
    )


def _gaps(probes: Mapping[str, Probe]) -> str:
    layers, concepts = _by_concept(probes)
    curves = []
    for concept, points in concepts.items():
        values = {n: probes[n].gap / probes[n].label_entropy for _, n in points}
        curves.append(_curve(concept, points, values, probes))
    words = (
        "The certificate: how far above its optimum the objective of each probe is at most, as a "
        "part of H(Y)."
    )
    axis = layer_axis(layers)
    return line_chart("gaps", "Gap by layer", words, curves, axis, unit="gap / H(Y)", powers=True)


def _curve(
    name: str,
    points: Sequence[tuple[float, str]],
    values: Mapping[str, float | None],
    probes: Mapping[str, Probe],
    low: Mapping[str, float | None] | None = None,
    high: Mapping[str, float | None] | None = None,
) -> Curve:
    names = [probe for _, probe in points]
    return Curve(
        name,
        [x for x, _ in points],
        [values.get(probe) for probe in names],
        None if not low else [low.get(probe) for probe in names],
        None if not high else [high.get(probe) for probe in names],
        missed=[i for i, n in enumerate(names) if probes[n].status is not Status.CERTIFIED],
    )


def _ends(scores: Mapping[str, Mapping[str, Any]], column: str) -> dict[str, float | None]:
    return {name: row[column] for name, row in scores.items() if column in row}


def _paths(probes: Mapping[str, Probe]) -> str:
    curves: list[Curve] = []
    exponents: list[float] = []
    for name, probe in probes.items():
        points = sorted(
            (log10(point.l2), point.validation_error, point.status is not Status.CERTIFIED)
            for point in probe.path
            if point.l2 > 0 and isfinite(point.validation_error)
        )
        if points and len(exponents) < 4 * MOST_POINTS:
            at, values, missed = zip(*points, strict=True)
            exponents += at
            curves.append(
                Curve(_cut(name), at, values, missed=[i for i, m in enumerate(missed) if m])
            )
    if not curves:
        return ""
    words = (
        "The error on held-out rows at every penalty; the probe has the best one. Ringed points "
        "are not certified."
    )
    if len(curves) > LEGEND:
        words += " Colours go from blue, the first probe, to red, the last."
    axis = power_axis(exponents, "l2")
    return line_chart(
        "paths", "Validation error by l2", words, curves, axis, unit="error, %", factor=100
    )


def measures(scores: Mapping[str, Mapping[str, Any]]) -> str:
    """A table of scores, `Score.to_row()` by probe, with their intervals; nothing of none."""
    if not scores:
        return ""
    rows = [["probe", "rows", *FORMATS]]
    for name, row in scores.items():
        cells = [name, _written("{:g}", row.get("rows"))]
        for measure, form in FORMATS.items():
            text = _written(form, row.get(measure))
            if f"{measure}_low" in row:
                low, high = (_written(form, row[f"{measure}_{end}"]) for end in ("low", "high"))
                text = f"{text} ({low} to {high})"
            cells.append(text)
        rows.append(cells)
    return table(rows, "measures on rows that the probes were not fitted to", (0,))


def _written(form: str, value: float | None) -> str:
    return "" if value is None else form.format(value)


def _cut(name: str) -> str:
    return name if len(name) <= 60 else f"{name[:30]}…{name[-29:]}"
