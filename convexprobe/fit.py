"""`fit_probes`: the main job, a certified probe for every layer."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np

from convexprobe._array import Array, cast, compute_dtype, generator, like, namespace, to_numpy
from convexprobe._progress import progress_bar
from convexprobe.inputs import (
    check_activations,
    check_finite,
    check_l2,
    check_labels,
    check_layer,
    check_solver,
    check_two_classes,
    check_weights,
    encode,
)
from convexprobe.measures import Score
from convexprobe.objective import Problem
from convexprobe.probes import PathPoint, Probe, ProbeSet
from convexprobe.solve import Record, Solution, solve
from convexprobe.solvers import Solver
from convexprobe.sources import Rows
from convexprobe.warm_start import best_start, stack

GRID = tuple(float(10.0**e) for e in range(-6, 1))
"""The grid of `l2="auto"`, in units of the layer's mean feature variance."""

HELD_OUT = 0.2
"""Fraction of each class held out for validation when a choice has to be made without such rows."""


def fit_probes(
    activations: Any,
    labels: Any,
    solver: str | Solver = "newton-cg",
    *,
    l2: float | Sequence[float] | str = "auto",
    tol: float = 1e-3,
    classes: Sequence[Any] | None = None,
    sample_weight: Any = None,
    warm_start: Probe | ProbeSet | None = None,
    validation: tuple[Any, Any] | None = None,
    seed: int = 0,
    max_passes: float = 1000.0,
    max_seconds: float = np.inf,
    progress: bool | None = None,
) -> ProbeSet:
    """Fit the optimal linear classifier of every layer, certified to `tol`.

    Minimises `F(W, b) = mean cross-entropy + l2/2 ||W||^2` (bias free) for each layer and stops
    when a rigorous bound says `F - F* <= tol * H(Y)`, `H(Y)` the entropy of the labels. A budget
    that runs out is a status with its gap, never an exception.

    Args:
        activations: layer name -> `(n, d)`, or one such array; NumPy, torch, CuPy or DLPack. What
            goes in decides where the work runs and what comes out.
        labels: `(n,)` integers or any hashable classes.
        solver: a name ("newton-cg", "lbfgs", "adam") or a configured solver.
        l2: a penalty, a list of them (a path, solved as one family), or "auto": seven values from
            1e-6 to 1 times the layer's mean feature variance. For a path the probe returned is the
            one with the lowest error on validation rows (ties: the lowest loss there).
        tol: relative tolerance of the certificate.
        classes: the class list, so that a class without rows is no error.
        sample_weight: `(n,)` non-negative weights; a weight of two equals a repeated row.
        warm_start: probes to start from where that is better than zero; the answer is the same.
        validation: `(activations, labels)` to choose and report on. When a path needs it and none
            is given, a fifth of each class is held out, and the probes are fitted to the rest.
        seed: of the held-out rows.
        max_passes: budget of passes for each layer.
        max_seconds: budget of seconds for each layer.
        progress: show a bar; None shows it on a terminal.

    Returns:
        The probes, in the order of `activations`.

    Raises:
        TypeError, ValueError: input refused; the message says what was expected, what was found
            and where (the layer, the first bad row).
    """
    layers = check_activations(activations)
    rows = next(iter(layers.values())).shape[0]
    codes, order = encode(check_labels(labels, rows), classes)
    weights = check_weights(sample_weight, rows)
    grid = check_l2(l2)
    algorithm = check_solver(solver)
    if not tol > 0:
        raise ValueError(f"tol: expected a positive number, found {tol}")
    held_layers, held_codes = _check_validation(validation, layers, order)
    if held_codes is None and (grid is None or len(grid) > 1):
        held = _hold_out(codes, weights, seed)
        weights = np.where(held, 0.0, 1.0 if weights is None else weights)
        held_codes = codes[held]
    else:
        held = None
    check_two_classes(codes, weights)

    out: dict[str, Probe] = {}
    with progress_bar(total=len(layers), desc="probes", show=progress) as bar:
        for name, x in layers.items():
            where = f"activations[{name!r}]"
            with np.errstate(over="ignore", invalid="ignore"):
                variance = _feature_variance(x, where) if grid is None else 1.0
            penalties = np.asarray(GRID) * variance if grid is None else grid
            with np.errstate(over="ignore", invalid="ignore"):
                problem = Problem(
                    Rows(x),
                    like(codes, x),
                    penalties,
                    classes=len(order),
                    weights=None if weights is None else like(weights, x, compute_dtype(x)),
                )
            if not np.isfinite(to_numpy(problem.moment)).all():
                check_finite(x, where)
            start = best_start(problem, _start_from(warm_start, name, order, problem.d))
            solution = solve(
                problem,
                algorithm,
                start,
                tol=tol,
                max_passes=max_passes,
                max_seconds=max_seconds,
                callbacks=[partial(_show, bar, name)],
            )
            held_x = held_layers.get(name)
            if held is not None:
                held_x = Rows(x).take(np.flatnonzero(held))
            out[name] = _choose(problem, solution, order, held_x, held_codes)
            bar.update()
    return ProbeSet(out)


def _show(bar: Any, layer: str, record: Record) -> None:
    """Progress of the layer at hand, behind the bar."""
    bar.set_postfix_str(f"{layer}: {record.passes:.0f} passes, gap {record.gap.max():.1e}")


def _choose(
    problem: Problem,
    solution: Solution,
    classes: tuple[Any, ...],
    held_x: Array | None,
    held_codes: np.ndarray | None,
) -> Probe:
    """The probe of the penalty that does best on the held-out rows, with the whole path."""
    xp = problem.xp
    weights, bias = problem.split(cast(solution.w, problem.dtype))
    bias = xp.where(problem.frequency > 0, bias, -xp.inf)
    errors = problem.errors(solution.w)
    total = float(problem.total[0])
    probes, scores = [], []
    for t in range(problem.m):
        probe = Probe(
            weights=xp.asarray(weights[t, :, :], copy=True),
            bias=xp.asarray(bias[t, :], copy=True),
            classes=classes,
            l2=float(problem.host_l2[t]),
            loss=float(solution.loss[t]),
            objective=float(solution.value[t]),
            gap=float(solution.gap[t]),
            status=solution.status[t],
            passes=float(solution.passes[t]),
            seconds=float(solution.seconds[t]),
            train_error=float(errors[t]),
            validation_error=None,
            rows=total,
        )
        probes.append(probe)
        if held_x is not None and held_codes is not None:
            truth = [classes[c] for c in held_codes]
            scores.append(probe.evaluate(held_x, truth))
    if not scores:
        return probes[0]
    return _with_path(probes, scores)


def _with_path(probes: list[Probe], scores: list[Score]) -> Probe:
    """The best probe of a path, carrying the path if there is one."""
    best = min(range(len(probes)), key=lambda t: (scores[t].error, scores[t].loss))
    path = tuple(
        PathPoint(p.l2, p.loss, p.gap, p.status, s.error, s.loss)
        for p, s in zip(probes, scores, strict=True)
    )
    return replace(
        probes[best],
        validation_error=scores[best].error,
        passes=max(p.passes for p in probes),
        seconds=max(p.seconds for p in probes),
        path=path if len(path) > 1 else (),
    )


def _hold_out(codes: np.ndarray, weights: np.ndarray | None, seed: int) -> np.ndarray:
    """Mask `(n,)` of the validation rows: a fifth of each class, never all of one."""
    rng = generator(seed)
    held = np.zeros(len(codes), dtype=bool)
    usable = np.ones(len(codes), dtype=bool) if weights is None else weights > 0
    for c in np.unique(codes[usable]):
        rows = rng.permutation(np.flatnonzero(usable & (codes == c)))
        held[rows[: int(HELD_OUT * len(rows))]] = True
    if not held.any():
        raise ValueError(
            "choosing l2 needs validation rows, and every class has fewer than "
            f"{int(1 / HELD_OUT)} rows to hold some out: pass validation=, or one l2"
        )
    return held


def _check_validation(
    validation: tuple[Any, Any] | None, layers: dict[str, Array], order: tuple[Any, ...]
) -> tuple[dict[str, Array], np.ndarray | None]:
    """Validation layers of the same names and widths, and their class indices."""
    if validation is None:
        return {}, None
    held = check_activations(validation[0], "validation")
    for name, x in layers.items():
        if name not in held:
            check_layer(name, held, "validation")
        if held[name].shape[1] != x.shape[1]:
            raise ValueError(
                f"validation[{name!r}]: expected {x.shape[1]} features, found {held[name].shape[1]}"
            )
    count = held[next(iter(layers))].shape[0]
    for name, x in held.items():
        if not bool(namespace(x).all(namespace(x).isfinite(x))):
            check_finite(x, f"validation[{name!r}]")
    codes, _ = encode(check_labels(validation[1], count, "validation"), order, "validation")
    return held, codes


def _start_from(
    warm_start: Probe | ProbeSet | None, layer: str, classes: tuple[Any, ...], d: int
) -> np.ndarray | None:
    """Host parameters of the probe to start this layer from, if there is one."""
    probe = warm_start if isinstance(warm_start, Probe) or warm_start is None else None
    if isinstance(warm_start, ProbeSet):
        probe = warm_start[layer]
    if probe is None:
        return None
    if probe.classes != classes or probe.weights.shape[1] != d:
        raise ValueError(
            f"warm_start[{layer!r}]: expected {d} features and classes {classes!r}, found "
            f"{probe.weights.shape[1]} and {probe.classes!r}"
        )
    return stack(to_numpy(probe.weights), to_numpy(probe.bias))


def _feature_variance(x: Array, where: str) -> float:
    """Mean variance of the features, from at most 4 096 evenly spaced rows; 1 if constant."""
    xp = namespace(x)
    rows = Rows(x).take(np.arange(0, x.shape[0], max(1, x.shape[0] // 4096)))
    value = float(xp.mean(xp.var(cast(rows, xp.float64), axis=0)))
    if not np.isfinite(value):
        check_finite(x, where)
    return value if value > 0 else 1.0
