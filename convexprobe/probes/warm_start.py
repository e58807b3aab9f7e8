"""What a later checkpoint starts from: the probes of this one, with the logits they had here."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from convexprobe.activations.checks import check_activations
from convexprobe.activations.placement import place
from convexprobe.arrays.backend import like, to_numpy
from convexprobe.probes.labels import Labels, probe_name
from convexprobe.probes.probe import Probe
from convexprobe.probes.probe_set import ProbeSet
from convexprobe.probes.splits import Split
from convexprobe.problem.objective import Problem
from convexprobe.solvers.starts import Previous

MAX_BYTES = 1 << 26
"""Bytes that the logits of one probe may take; beyond, evenly spaced rows stand for all."""


@dataclass(frozen=True)
class Remembered:
    """Probes and their logits on the rows they were fitted to; `fit_probes(warm_start=...)`.

    Attributes:
        probes: the probes.
        logits: of each probe, host `(k, r)` float32; minus infinity for a class without rows.
        rows: which rows those are, host `(r,)`; on a rank, its own, counted from its first.
    """

    probes: ProbeSet
    logits: Mapping[str, np.ndarray]
    rows: np.ndarray


def remember(probes: ProbeSet, activations: Any, *, max_bytes: int = MAX_BYTES) -> Remembered:
    """The probes' logits on activations of the rows to come: half a pass, `4 n k` bytes a probe.

    Args:
        probes: of one label a row; with concepts, named "layer/concept".
        activations: layer name -> `(n, d)`; the same rows will follow, in the same order. Where
            rows are dealt out over ranks, each remembers its own.
        max_bytes: of one probe's logits; beyond, evenly spaced rows stand for all.

    Raises:
        ValueError: activations of another width, or none of a probe.
    """
    layers = check_activations(activations, min_rows=0)
    n = next(iter(layers.values())).shape[0]
    most = max(len(probe.classes) for probe in probes.values())
    rows = np.arange(0, n, max(-(-4 * n * most // max_bytes), 1))
    logits = {}
    for name, probe in probes.items():
        layer = name if name in layers else name.rpartition("/")[0]
        if layer not in layers:
            raise ValueError(f"activations: expected layer {name!r}, found {list(layers)}")
        found = to_numpy(probe.logits(place(layers[layer], None, None).take(rows)))
        with np.errstate(over="ignore"):  # what is not finite is ignored later
            logits[name] = np.ascontiguousarray(found.T, dtype=np.float32)
    return Remembered(probes, logits, rows)


def start_from(
    warm_start: Probe | ProbeSet | Remembered | None,
    layer: str,
    labels: Labels,
    splits: list[Split],
    problem: Problem,
) -> Previous | None:
    """The earlier probes of this layer's splits, if there are any."""
    if warm_start is None:
        return None
    probes: Probe | ProbeSet
    memory, probes = (
        (warm_start, warm_start.probes)
        if isinstance(warm_start, Remembered)
        else (None, warm_start)
    )
    n = problem.rows.n
    if memory is not None and memory.rows.max(initial=-1) >= n:
        raise ValueError(
            f"warm_start: it remembers row {memory.rows[-1]}, found {n} rows in {layer!r}"
        )
    starts, logits = [], []
    for concept, classes in zip(labels.names, labels.classes, strict=True):
        name = probe_name(layer, concept)
        probe = probes if isinstance(probes, Probe) else probes[name]
        if probe.classes != classes or probe.weights.shape[1] != problem.d:
            raise ValueError(
                f"warm_start[{name!r}]: expected {problem.d} features and classes {classes!r}, "
                f"found {probe.weights.shape[1]} and {probe.classes!r}"
            )
        absent = problem.k - len(classes)
        weights = np.pad(to_numpy(probe.weights), ((0, absent), (0, 0)))
        bias = np.pad(to_numpy(probe.bias), (0, absent))
        starts.append(np.concatenate([weights.ravel(), bias]))
        if memory is not None:
            logits.append(np.pad(memory.logits[name], ((0, absent), (0, 0))))
    index, x = [split.concept for split in splits], problem.rows.reference
    return Previous(
        like(np.stack(starts)[index], x),
        like(np.stack(logits)[index], x) if memory is not None else None,
        None if memory is None else memory.rows,
    )
