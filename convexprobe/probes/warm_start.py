"""What a later checkpoint starts from: the probes of this one, with the logits they had here."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from convexprobe.activations.checks import check_activations
from convexprobe.activations.placement import place
from convexprobe.arrays.backend import to_numpy
from convexprobe.probes.probe_set import ProbeSet

LARGEST = 1 << 26
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


def remember(probes: ProbeSet, activations: Any) -> Remembered:
    """The probes' logits on activations of the rows to come: half a pass, `4 n k` bytes a probe.

    Args:
        probes: of one label a row; with concepts, named "layer/concept".
        activations: layer name -> `(n, d)`; the same rows will follow, in the same order. Where
            rows are dealt out over ranks, each remembers its own.

    Raises:
        ValueError: activations of another width, or none of a probe.
    """
    layers = check_activations(activations, min_rows=0)
    n = next(iter(layers.values())).shape[0]
    most = max(len(probe.classes) for probe in probes.values())
    rows = np.arange(0, n, max(-(-4 * n * most // LARGEST), 1))
    logits = {}
    for name, probe in probes.items():
        layer = name if name in layers else name.rpartition("/")[0]
        if layer not in layers:
            raise ValueError(f"activations: expected layer {name!r}, found {list(layers)}")
        found = to_numpy(probe.logits(place(layers[layer], None, None).take(rows)))
        with np.errstate(over="ignore"):  # what is not finite is ignored later
            logits[name] = np.ascontiguousarray(found.T, dtype=np.float32)
    return Remembered(probes, logits, rows)
