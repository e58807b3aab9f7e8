"""What the command prints: a table for each layer, what a start is worth, and the arithmetic."""

from __future__ import annotations

from collections.abc import Callable
from math import inf
from statistics import geometric_mean

from benchmarks.future_work.methods import METHODS
from benchmarks.harness.table import Row

TARGET = 1e-3
"""Gap, relative to `H(Y)`, that the tables are about."""

PASS, PROBES, CHECKPOINTS, RATE = 5.1e12, 20, 400, 30e12
"""From docs/scale.md: flop of a pass of one probe, 1 281 167 x 1 000 with 1 000 classes; probes;
hourly checkpoints; flop a second, an assumption to scale by."""

FORWARD = 294.0
"""Seconds of a forward pass of Inception v3 over ImageNet on one GPU, of docs/scale.md."""

Runs = dict[tuple[str, str, str], list[Row]]
"""Points by layer, start ("cold", "copied" or "warm") and method."""


def by_run(rows: list[Row]) -> Runs:
    """Sort the table's rows into runs."""
    runs: Runs = {}
    for row in rows:
        layer, start = row.case.split(", ")
        runs.setdefault((layer, start, row.peer), []).append(row)
    return runs


def certified(row: Row) -> float:
    """The certified gap of a point."""
    return row.gap


def true(row: Row) -> float:
    """The true gap of a point."""
    return row.suboptimality


def spent(run: list[Row] | None, gap: Callable[[Row], float]) -> tuple[float, float]:
    """Passes and CPU seconds of a run's first point within the target; infinite if none is."""
    for row in run or []:
        if gap(row) <= TARGET:
            return row.passes, row.seconds
    return inf, inf


def cell(passes: float, seconds: float) -> str:
    """The pair as a table has it."""
    return "-" if passes == inf else f"{passes:.1f} / {seconds:.2f}"


def layer_table(runs: Runs, layer: str) -> str:
    """Markdown: passes and CPU seconds of every method to the target, cold and warm."""
    lines = [
        "| | cold, certified | cold, true | warm, certified | warm, true |",
        "|---|---|---|---|---|",
    ]
    for name in METHODS:
        if (layer, "cold", name) not in runs:
            continue
        cells = [
            cell(*spent(runs.get((layer, start, name)), gap))
            for start in ("cold", "warm")
            for gap in (certified, true)
        ]
        lines.append(f"| {name} | {' | '.join(cells)} |")
    return "\n".join(lines)


def savings(runs: Runs, gap: Callable[[Row], float], measure: int) -> list[tuple[str, int, float]]:
    """By method: in how many layers both starts arrived, and warm over cold, geometric mean.

    Args:
        runs: all runs.
        gap: `certified` or `true`.
        measure: 0 for passes, 1 for seconds.
    """
    found = []
    for name in METHODS:
        ratios = []
        for layer, start, method in runs:
            if (start, method) == ("cold", name):
                cold, warm = (
                    spent(runs.get((layer, which, name)), gap)[measure]
                    for which in ("cold", "warm")
                )
                if max(cold, warm) < inf:
                    ratios.append(warm / cold)
        if ratios:
            found.append((name, len(ratios), geometric_mean(ratios)))
    return found


def start_table(runs: Runs) -> str:
    """Markdown: how far each start is from the optimum, and what L-BFGS needs from there."""
    lines = [
        "| layer | gap at the start: constant / copied / transferred "
        "| L-BFGS, certified: constant / copied / transferred |",
        "|---|---|---|",
    ]
    for layer in dict.fromkeys(layer for layer, _, _ in runs):
        each = [runs.get((layer, start, "L-BFGS")) for start in ("cold", "copied", "warm")]
        gaps = " / ".join("-" if run is None else f"{run[0].suboptimality:.4f}" for run in each)
        needs = ", ".join(cell(*spent(run, certified)) for run in each)
        lines.append(f"| {layer} | {gaps} | {needs} |")
    return "\n".join(lines)


def arithmetic(passes: float) -> tuple[float, float]:
    """Seconds of 20 probes at one checkpoint, and hours of 400 checkpoints, at so many passes."""
    seconds = PROBES * passes * PASS / RATE
    return seconds, CHECKPOINTS * seconds / 3600


def arithmetic_table(runs: Runs) -> str:
    """Markdown: Inception on ImageNet, at passes from docs/scale.md and from this run."""
    lines = [
        "| passes of a probe | seconds for 20 probes | hours for 400 checkpoints |",
        "|---|---|---|",
    ]
    given = [("many rows, docs/scale.md", 10.0)]
    for name in ("L-BFGS", "Newton-CG", "SVRG", "SAG", "SVRG, cyanure", "SAG, scikit-learn",
                 "Adam"):  # fmt: skip
        for start in ("cold", "warm"):
            passes, _ = spent(runs.get(("classes", start, name)), certified)
            if passes < inf:
                given.append((f"{name}, {start}, classes", passes))
    for what, passes in given:
        seconds, hours = arithmetic(passes)
        lines.append(f"| {passes:.1f} ({what}) | {seconds:.0f} | {hours:.1f} |")
    return "\n".join(lines)


def report(runs: Runs) -> str:
    """Everything, as the command prints it."""
    parts = []
    for layer in dict.fromkeys(layer for layer, _, _ in runs):
        one = next(run for key, run in runs.items() if key[0] == layer)[0]
        parts.append(
            f"{layer}: {one.n} x {one.d}, {one.k} classes; passes / CPU seconds to {TARGET:g}\n\n"
            + layer_table(runs, layer)
        )
    parts.append("what a start is worth\n\n" + start_table(runs))
    for gap in (certified, true):
        for measure, unit in enumerate(("passes", "seconds")):
            each = "; ".join(f"{n} {r:.2f} ({c})" for n, c, r in savings(runs, gap, measure))
            parts.append(f"warm / cold, {unit} to {gap.__name__} {TARGET:g} (layers): {each}")
    parts.append(
        f"arithmetic: {PROBES} probes x passes x {PASS / 1e12:g} TFLOP at {RATE / 1e12:g} TFLOP/s"
        f" (an assumption); a forward pass takes {FORWARD:g} s\n\n" + arithmetic_table(runs)
    )
    return "\n\n".join(parts)
