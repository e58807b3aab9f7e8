"""`fit_probes`: the main job, a certified probe for every layer."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import is_dataclass
from functools import partial
from typing import Any

import numpy as np

from convexprobe._progress import progress_bar
from convexprobe.activations.checks import check_activations, check_memory
from convexprobe.activations.placement import reference
from convexprobe.activations.stored import StoredRows
from convexprobe.arrays.backend import Array
from convexprobe.arrays.linalg import arithmetic
from convexprobe.arrays.ranks import Communicator
from convexprobe.probes.labels import check_probe_names, read_labels
from convexprobe.probes.layer import Job, fit_layer
from convexprobe.probes.options import check_folds, check_l2, check_tol, check_weights
from convexprobe.probes.probe import Probe
from convexprobe.probes.probe_set import ProbeSet
from convexprobe.probes.splits import plan
from convexprobe.probes.validation import read_validation
from convexprobe.probes.warm_start import Remembered
from convexprobe.solvers import Solver, by_name
from convexprobe.solvers.solution import Record


def fit_probes(
    activations: Any,
    labels: Any,
    solver: str | Solver = "auto",
    *,
    l2: float | Sequence[float] | str = "auto",
    tol: float = 1e-3,
    classes: Sequence[Any] | None = None,
    sample_weight: Any = None,
    warm_start: Probe | ProbeSet | Remembered | None = None,
    validation: tuple[Any, Any] | None = None,
    cv: int | None = None,
    stopping: str = "certificate",
    seed: int = 0,
    max_passes: float = 1000.0,
    max_seconds: float = np.inf,
    device: str | None = None,
    memory_limit: float | None = None,
    progress: bool | None = None,
    process_group: Any = None,
) -> ProbeSet:
    """Fit the optimal linear classifier of every layer, certified to `tol`.

    Minimises `F(W, b) = mean cross-entropy + l2/2 ||W||^2` (bias free) for each layer and stops
    when a rigorous bound says `F - F* <= tol * H(Y)`, `H(Y)` the entropy of the labels. A budget
    that runs out is a status with its gap, never an exception.

    Args:
        activations: layer name -> `(n, d)`, or one such array; NumPy, torch, CuPy or DLPack. What
            goes in decides where the work runs and what comes out. Also what `open_activations`
            returns: rows on disk.
        labels: `(n,)` integers or any hashable classes. An `(n, m)` array or a mapping name ->
            `(n,)` holds concepts, all fitted together: probes are then named "layer/concept"
            (column number or name) and each has its own classes and chooses its own `l2`.
        solver: a name of `SOLVERS` or a configured solver.
        l2: a penalty, a list of them (a path, solved as one family), or "auto": seven values from
            1e-6 to 1 times the layer's mean feature variance. For a path the probe returned is the
            one with the lowest error on validation rows (ties: the lowest loss there). Penalties
            are solved a few neighbours at a time, from large to small.
        tol: relative tolerance of the certificate.
        classes: the class list, so that a class without rows is no error.
        sample_weight: `(n,)` non-negative weights; a weight of two equals a repeated row.
        warm_start: probes to start from where that is better than zero; the answer is the same.
            What `remember` made of them is better: it follows activations that have changed.
        validation: `(activations, labels)` to choose and report on. When a path needs it and none
            is given, a fifth of each class is held out, and the probes are fitted to the rest.
        cv: number of cross-validation folds, stratified; `validation` is then refused. The probe
            returned is fitted to all rows, at the `l2` of the lowest error averaged over the
            held-out folds, which is its `validation_error`.
        stopping: "certificate", or "validation": the paper's early stopping. A fit then ends when
            the loss on validation rows (a held-out fifth without `validation`) has not fallen for
            five evaluations, and returns the point where it was lowest with that point's gap.
        seed: of the held-out rows and folds.
        max_passes: budget of passes for each layer.
        max_seconds: budget of seconds for each layer.
        device: where to work, a torch device; None is where the activations are, the CPU for rows
            on disk.
        memory_limit: bytes that the rows of a layer may take, on the device and on the host alike;
            None is half of what is free there. A layer that fits on the device is loaded there; one
            that does not is read in blocks, from the host's memory if it fits there, else from
            disk. The answer is the same. Logits, `4 m k n` bytes each, are not part of it. Ranks
            that share a host or a device share what is free there: give each its part.
        progress: show a bar; None shows it on a terminal.
        process_group: "world" or a `torch.distributed` process group whose ranks all call this with
            the same arguments but each with its own rows (activations, labels, weights,
            validation), as many as it has, none too. All get the same probes, those of one process
            to rounding. Never a default: an initialised group may be there for other work.

    Returns:
        The probes, in the order of `activations`.

    Raises:
        TypeError, ValueError: input refused; the message says what was expected, what was found
            and where (the layer, the first bad row, the rank it was on; every rank raises).
        RuntimeError: another rank is gone, or silent for longer than the group's timeout.
    """
    communicator = Communicator.of(process_group)
    with communicator.raise_together():
        layers = check_activations(activations, min_rows=communicator.min_rows)
        penalties, algorithm = check_l2(l2), by_name(solver)
        check_folds(cv, validation, stopping)
        check_memory(device, memory_limit)
        check_tol(tol)
    _check_same(
        communicator,
        layers,
        device,
        solver=algorithm if is_dataclass(algorithm) else type(algorithm),
        l2=penalties,
        tol=tol,
        classes=classes,
        sample_weight=sample_weight is None,
        warm_start=type(warm_start),
        validation=validation is None,
        cv=cv,
        stopping=stopping,
        seed=seed,
        budget=(max_passes, max_seconds),
    )
    rows = next(iter(layers.values())).shape[0]
    if communicator.span(rows)[1] == 0:
        raise ValueError("activations: expected rows on one rank at least, found none")
    targets = read_labels(labels, rows, classes, communicator)
    check_probe_names(layers, targets)
    held = read_validation(validation, layers, targets, communicator)
    early = stopping == "validation"
    chosen = early or penalties is None or len(penalties) > 1
    splits = plan(
        targets,
        check_weights(sample_weight, rows, communicator),
        seed,
        folds=cv,
        hold=chosen and cv is None and held is None,
    )
    job = Job(
        communicator,
        targets,
        splits,
        held,
        algorithm,
        penalties,
        early,
        warm_start,
        tol,
        max_passes,
        max_seconds,
        device,
        memory_limit,
    )
    probes: dict[str, Probe] = {}
    show = progress if communicator.rank == 0 else False
    with progress_bar(total=len(layers), desc="probes", show=show) as bar:
        for layer, activation in layers.items():
            with communicator.raise_together():
                probes |= fit_layer(job, layer, activation, partial(_show, bar, layer))
            bar.update()
    return ProbeSet(probes)


def _check_same(
    communicator: Communicator,
    layers: dict[str, Array | StoredRows],
    device: str | None,
    **settings: Any,
) -> None:
    """Refuse ranks that were called with other layers or settings, or calculate differently."""
    if communicator.process_group is None:
        return
    places = {name: reference(x, device) for name, x in layers.items()}
    communicator.check_same(
        activations={name: (x.shape[1], x.dtype) for name, x in places.items()},
        arithmetic=sorted({arithmetic(x) for x in places.values()}),
        **settings,
    )


def _show(bar: Any, layer: str, record: Record) -> None:
    """Progress of the layer at hand, behind the bar."""
    bar.set_postfix_str(f"{layer}: {record.passes:.0f} passes, gap {record.gap.max():.1e}")
