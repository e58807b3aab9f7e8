"""Keep probes and their logits, for the fits to a later checkpoint to start from."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from convexprobe._arguments import check_integer, shown
from convexprobe._hashing import fingerprint
from convexprobe.activations.checks import check_activations
from convexprobe.activations.placement import place
from convexprobe.activations.source import Rows
from convexprobe.arrays.backend import like, to_numpy
from convexprobe.arrays.precision import full_precision
from convexprobe.probes.labels import Labels, layer_of, probe_name
from convexprobe.probes.logits import unchecked_logits
from convexprobe.probes.probe import Probe
from convexprobe.probes.probe_set import ProbeSet
from convexprobe.probes.splits import Split
from convexprobe.problem.objective import Problem
from convexprobe.solvers.starts import Previous


@dataclass(frozen=True)
class Remembered:
    """Probes and their logits on the rows they were fitted to, for `fit_probes(warm_start=...)`.

    Attributes:
        probes: the probes.
        logits: of each probe, host `(k, r)` float32; minus infinity for a class without rows.
        rows: the numbers of those rows, host `(r,)`; a rank counts its own from its first.
    """

    probes: ProbeSet
    logits: Mapping[str, np.ndarray]
    rows: np.ndarray


def check_warm_start(warm_start: Any) -> None:
    """Refuse what cannot be started from."""
    if not isinstance(warm_start, Probe | ProbeSet | Remembered | None):
        raise TypeError(
            "warm_start: expected a probe, a set of probes or what `remember` returned, "
            f"found {shown(warm_start)}"
        )


def fingerprint_of(warm_start: Probe | ProbeSet | Remembered | None) -> str:
    """The kind of a warm start, and a checksum of its probes, which all ranks have to share."""
    if warm_start is None:
        return "none"
    probes = warm_start.probes if isinstance(warm_start, Remembered) else warm_start
    named = {"": probes} if isinstance(probes, Probe) else probes
    arrays = [to_numpy(a) for p in named.values() for a in (p.weights, p.bias)]
    return f"{type(warm_start).__name__} of {[*named]}, SHA-256 {fingerprint(*arrays)[:16]}"


@full_precision()
def remember(probes: ProbeSet, activations: Any, *, max_bytes: int = 1 << 26) -> Remembered:
    """The probes with their logits on these activations: half a pass, `4 n k` bytes a probe.

    Args:
        probes: what `fit_probes` returned.
        activations: layer name -> `(n, d)`: the rows that later fits will have too, in the same
            order. A rank gives its own.
        max_bytes: bytes that one probe's logits may take; beyond, evenly spaced rows stand for all.

    Raises:
        ValueError: a layer that is missing or has another width.
    """
    if not isinstance(probes, ProbeSet):
        raise TypeError(f"probes: expected a set of probes, found {shown(probes)}")
    check_integer("max_bytes", max_bytes, least=1)
    layers = check_activations(activations, min_rows=0)
    n = next(iter(layers.values())).shape[0]
    most = max(len(probe.classes) for probe in probes.values())
    rows = np.arange(0, n, max(-(-4 * n * most // max_bytes), 1))
    logits = {}
    for name, probe in probes.items():
        layer = layer_of(name, probe.concept)
        if layer not in layers:
            raise ValueError(f"activations: expected layer {name!r}, found {list(layers)}")
        kept = Rows(place(layers[layer], None, None).take(rows))
        values = to_numpy(unchecked_logits(probe, kept))
        with np.errstate(over="ignore"):  # a start ignores what is not finite
            logits[name] = np.ascontiguousarray(values.T, dtype=np.float32)
    return Remembered(probes, logits, rows)


def start_from(
    warm_start: Probe | ProbeSet | Remembered | None,
    layer: str,
    labels: Labels,
    splits: list[Split],
    problem: Problem,
) -> Previous | None:
    """The earlier probe of each of this layer's splits, or None without a warm start.

    Raises:
        ValueError: a probe that is missing or has other features or classes, or too few rows.
    """
    if warm_start is None:
        return None
    memory = warm_start if isinstance(warm_start, Remembered) else None
    probes = warm_start.probes if isinstance(warm_start, Remembered) else warm_start
    if memory is not None and memory.rows.max(initial=-1) >= problem.rows.n:
        raise ValueError(
            f"warm_start: it remembers row {memory.rows[-1]}, "
            f"found {problem.rows.n} rows in {layer!r}"
        )
    weights, biases, logits = [], [], []
    for concept, classes in zip(labels.names, labels.classes, strict=True):
        name = probe_name(layer, concept)
        probe = probes if isinstance(probes, Probe) else probes[name]
        if probe.classes != classes or probe.weights.shape[1] != problem.d:
            raise ValueError(
                f"warm_start[{name!r}]: expected {problem.d} features and classes {classes!r}, "
                f"found {probe.weights.shape[1]} and {probe.classes!r}"
            )
        absent = problem.k - len(classes)
        weights.append(np.pad(to_numpy(probe.weights), ((0, absent), (0, 0))))
        biases.append(np.pad(to_numpy(probe.bias), (0, absent)))
        if memory is not None:
            logits.append(np.pad(memory.logits[name], ((0, absent), (0, 0))))
    index, x = [split.concept for split in splits], problem.rows.reference
    return Previous(
        problem.join(*(like(np.stack(part)[index], x) for part in (weights, biases))),
        like(np.stack(logits)[index], x) if memory is not None else None,
        None if memory is None else memory.rows,
    )
