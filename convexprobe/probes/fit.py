"""`fit_probes`: the main job, a certified probe for every layer."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import is_dataclass, replace
from functools import partial
from typing import Any

import numpy as np

from convexprobe._progress import progress_bar
from convexprobe.activations.checks import (
    check_activations,
    check_finite,
    check_layer,
    check_memory,
)
from convexprobe.activations.placement import place, reference
from convexprobe.activations.source import Source
from convexprobe.activations.stored import StoredRows
from convexprobe.arrays.backend import Array, cast, compute_dtype, like, to_numpy
from convexprobe.arrays.linalg import arithmetic
from convexprobe.arrays.ranks import Communicator, local
from convexprobe.probes.labels import Labels, encode, probe_name, read_labels, split_concepts
from convexprobe.probes.options import GRID, check_folds, check_l2, check_weights
from convexprobe.probes.probe import Probe
from convexprobe.probes.probe_set import ProbeSet
from convexprobe.probes.selection import LayerFit
from convexprobe.probes.splits import Split, on_rank, plan
from convexprobe.probes.warm_start import Remembered
from convexprobe.problem.objective import Problem
from convexprobe.solvers import Solver, by_name
from convexprobe.solvers.early_stopping import ValidationLoss
from convexprobe.solvers.path import solve_path
from convexprobe.solvers.solution import Record
from convexprobe.solvers.starts import Previous


def validation_loss(
    problem: Problem, groups: list[Split], validation: tuple[Source, list[np.ndarray]] | None
) -> ValidationLoss:
    """Judged on the validation rows and classes given, or on what each group holds out."""
    if validation is not None:
        rows, codes = validation
        stacked = np.stack([codes[g.concept] for g in groups])
        return ValidationLoss(problem, rows, like(stacked, problem.rows.reference), None)
    held = np.zeros((len(groups), problem.rows.n))
    for i, group in enumerate(groups):
        held[i, group.held] = 1.0
    if len(groups) > 1:
        weights = like(held, problem.rows.reference, problem.dtype)
        return ValidationLoss(problem, problem.rows, problem.labels, weights)
    index = np.flatnonzero(held[0])
    labels = problem.xp.take(problem.labels, like(index, problem.labels), axis=1)
    return ValidationLoss(problem, problem.rows.subset(index), labels, None)


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
        grid = check_l2(l2)
        algorithm = by_name(solver)
        check_folds(cv, validation, stopping)
        check_memory(device, memory_limit)
        if not tol > 0:
            raise ValueError(f"tol: expected a positive number, found {tol}")
    if communicator.process_group is not None:
        places = {name: reference(x, device) for name, x in layers.items()}
        communicator.check_same(
            activations={name: (x.shape[1], x.dtype) for name, x in places.items()},
            arithmetic=sorted({arithmetic(x) for x in places.values()}),
            solver=algorithm if is_dataclass(algorithm) else type(algorithm),
            l2=grid,
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
    own, total = communicator.span(rows)
    if total == 0:
        raise ValueError("activations: expected rows on one rank at least, found none")
    targets = read_labels(labels, rows, classes, communicator)
    names = [probe_name(layer, concept) for layer in layers for concept in targets.names]
    if len(set(names)) < len(names):
        raise ValueError(f"labels: two of layer/concept have the same name, in {names}")
    at = partial(place, device=device, limit=memory_limit)
    with communicator.raise_together():
        held_layers, held_codes = _check_validation(
            validation, layers, targets, communicator.min_rows
        )
    if held_codes is not None and communicator.span(held_codes[0].size)[1] == 0:
        raise ValueError("validation: expected rows on one rank at least, found none")
    early = stopping == "validation"
    hold = cv is None and held_codes is None and (early or grid is None or len(grid) > 1)
    weights = check_weights(sample_weight, rows, communicator)
    groups = on_rank(plan(targets, weights, seed, folds=cv, hold=hold), own)
    targets = replace(targets, codes=targets.codes[:, own])
    progress = progress if communicator.rank == 0 else False

    out: dict[str, Probe] = {}
    with progress_bar(total=len(layers), desc="probes", show=progress) as bar:
        for name, found in layers.items():
            where = f"activations[{name!r}]"
            with communicator.raise_together():
                x = at(found)
                given = None
                if held_codes is not None:
                    given = at(held_layers[name]), held_codes
            with np.errstate(over="ignore", invalid="ignore"):
                problem = _problem(x, targets, groups, communicator)
                variance = _feature_variance(problem) if grid is None else 1.0
            if not (np.isfinite(to_numpy(problem.moment)).all() and np.isfinite(variance)):
                with communicator.raise_together():
                    check_finite(x, where)
                raise ValueError(
                    f"{where}: values so large that their sum overflows; scale them down"
                )
            penalties = np.asarray(GRID) * variance if grid is None else grid
            with communicator.raise_together():
                start = _start_from(warm_start, name, targets, groups, problem)
            solutions = solve_path(
                problem,
                penalties,
                algorithm,
                start,
                tol=tol,
                max_passes=max_passes,
                max_seconds=max_seconds,
                callbacks=[partial(_show, bar, name)],
                stopping=validation_loss(problem, groups, given) if early else None,
            )
            fit = LayerFit(problem, targets, groups, penalties, solutions)
            for concept, label in enumerate(targets.names):
                held = None if given is None else (given[0], given[1][concept])
                out[probe_name(name, label)] = fit.choose(concept, held)
            del x, problem, start, given, held, solutions, fit  # before the next layer is loaded
            bar.update()
    return ProbeSet(out)


def _show(bar: Any, layer: str, record: Record) -> None:
    """Progress of the layer at hand, behind the bar."""
    bar.set_postfix_str(f"{layer}: {record.passes:.0f} passes, gap {record.gap.max():.1e}")


def _problem(x: Source, labels: Labels, groups: list[Split], communicator: Communicator) -> Problem:
    """A task for each group; labels and weights that all groups share are kept once."""
    codes, weights = labels.codes, [g.weights for g in groups]
    if len(codes) > 1:
        codes = codes[[g.concept for g in groups]]
    shared: np.ndarray | None = weights[0]
    if any(w is not shared for w in weights):
        shared = np.stack([np.ones(x.n) if w is None else w for w in weights])
    return Problem(
        x,
        like(codes, x.reference),
        np.zeros(len(groups)),
        classes=max(len(c) for c in labels.classes),
        weights=None if shared is None else like(shared, x.reference, compute_dtype(x.reference)),
        communicator=communicator,
    )


def _check_validation(
    validation: tuple[Any, Any] | None,
    layers: dict[str, Array | StoredRows],
    labels: Labels,
    min_rows: int,
) -> tuple[dict[str, Array | StoredRows], list[np.ndarray] | None]:
    """Validation layers of the same names and widths, and class indices of every concept."""
    if validation is None:
        return {}, None
    held = check_activations(validation[0], "validation", min_rows=min_rows)
    for name, x in layers.items():
        if name not in held:
            check_layer(name, held, "validation")
        if held[name].shape[1] != x.shape[1]:
            raise ValueError(
                f"validation[{name!r}]: expected {x.shape[1]} features, found {held[name].shape[1]}"
            )
    for name, x in held.items():
        check_finite(place(x, None, 0.0), f"validation[{name!r}]")  # not loaded
    count = held[next(iter(layers))].shape[0]
    concepts = split_concepts(validation[1], count, "validation")
    if set(concepts) != set(labels.names):
        raise ValueError(
            f"validation: expected labels of concepts {list(labels.names)}, found {list(concepts)}"
        )
    codes = []
    for concept, order in zip(labels.names, labels.classes, strict=True):
        where = "validation" if concept is None else f"validation[{concept!r}]"
        codes.append(encode(concepts[concept], order, where)[0])
    return held, codes


def _start_from(
    warm_start: Probe | ProbeSet | Remembered | None,
    layer: str,
    labels: Labels,
    groups: list[Split],
    problem: Problem,
) -> Previous | None:
    """The earlier probes of this layer's groups, if there are any."""
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
    index, x = [group.concept for group in groups], problem.rows.reference
    return Previous(
        like(np.stack(starts)[index], x),
        like(np.stack(logits)[index], x) if memory is not None else None,
        None if memory is None else memory.rows,
    )


def _feature_variance(problem: Problem) -> float:
    """Mean variance of the features, from at most 4 096 evenly spaced rows; 1 if constant."""
    xp = problem.xp
    index = np.arange(0, problem.n, max(1, problem.n // 4096))
    part = problem.rows.subset(local(index, problem.own))
    total: Array = 0.0
    for _, x in part.blocks():
        total = total + xp.sum(cast(x, xp.float64), axis=0)
    mean = problem.all_reduce(total)[0] / len(index)
    square: Array = 0.0
    for _, x in part.blocks():
        square = square + xp.sum((cast(x, xp.float64) - mean) ** 2)
    value = float(problem.all_reduce(square)[0]) / (len(index) * problem.d)
    return 1.0 if value == 0 else value
