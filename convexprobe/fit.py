"""`fit_probes`: the main job, a certified probe for every layer."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import numpy as np

from convexprobe._array import Array, cast, compute_dtype, like, namespace, to_numpy
from convexprobe._progress import progress_bar
from convexprobe.folds import Group, plan
from convexprobe.inputs import (
    Labels,
    check_activations,
    check_finite,
    check_folds,
    check_l2,
    check_layer,
    check_solver,
    check_weights,
    encode,
    probe_name,
    read_labels,
    split_concepts,
)
from convexprobe.measures import score
from convexprobe.objective import Problem
from convexprobe.path import Fitted, solve_path
from convexprobe.probes import PathPoint, Probe, ProbeSet
from convexprobe.remembered import Remembered
from convexprobe.solve import Record
from convexprobe.solvers import Solver
from convexprobe.sources import Rows
from convexprobe.validation import validation_loss
from convexprobe.warm_start import Previous

GRID = tuple(float(10.0**e) for e in range(-6, 1))
"""The grid of `l2="auto"`, in units of the layer's mean feature variance."""


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
    progress: bool | None = None,
) -> ProbeSet:
    """Fit the optimal linear classifier of every layer, certified to `tol`.

    Minimises `F(W, b) = mean cross-entropy + l2/2 ||W||^2` (bias free) for each layer and stops
    when a rigorous bound says `F - F* <= tol * H(Y)`, `H(Y)` the entropy of the labels. A budget
    that runs out is a status with its gap, never an exception.

    Args:
        activations: layer name -> `(n, d)`, or one such array; NumPy, torch, CuPy or DLPack. What
            goes in decides where the work runs and what comes out.
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
        progress: show a bar; None shows it on a terminal.

    Returns:
        The probes, in the order of `activations`.

    Raises:
        TypeError, ValueError: input refused; the message says what was expected, what was found
            and where (the layer, the first bad row).
    """
    layers = check_activations(activations)
    rows = next(iter(layers.values())).shape[0]
    targets = read_labels(labels, rows, classes)
    grid = check_l2(l2)
    algorithm = check_solver(solver)
    check_folds(cv, validation, stopping)
    if not tol > 0:
        raise ValueError(f"tol: expected a positive number, found {tol}")
    names = [probe_name(layer, concept) for layer in layers for concept in targets.names]
    if len(set(names)) < len(names):
        raise ValueError(f"labels: two of layer/concept have the same name, in {names}")
    held_layers, held_codes = _check_validation(validation, layers, targets)
    early = stopping == "validation"
    hold = cv is None and held_codes is None and (early or grid is None or len(grid) > 1)
    groups = plan(targets, check_weights(sample_weight, rows), seed, folds=cv, hold=hold)

    out: dict[str, Probe] = {}
    with progress_bar(total=len(layers), desc="probes", show=progress) as bar:
        for name, x in layers.items():
            where = f"activations[{name!r}]"
            with np.errstate(over="ignore", invalid="ignore"):
                variance = _feature_variance(x, where) if grid is None else 1.0
                problem = _problem(x, targets, groups)
            if not np.isfinite(to_numpy(problem.moment)).all():
                check_finite(x, where)
            given = None if held_codes is None else (held_layers[name], held_codes)
            penalties = np.asarray(GRID) * variance if grid is None else grid
            solutions = solve_path(
                problem,
                penalties,
                algorithm,
                _start_from(warm_start, name, targets, groups, problem),
                tol=tol,
                max_passes=max_passes,
                max_seconds=max_seconds,
                callbacks=[partial(_show, bar, name)],
                stopping=validation_loss(problem, groups, given) if early else None,
            )
            fit = _LayerFit(problem, targets, groups, penalties, solutions)
            for concept, label in enumerate(targets.names):
                held = None if given is None else (given[0], given[1][concept])
                out[probe_name(name, label)] = fit.choose(concept, held)
            bar.update()
    return ProbeSet(out)


def _show(bar: Any, layer: str, record: Record) -> None:
    """Progress of the layer at hand, behind the bar."""
    bar.set_postfix_str(f"{layer}: {record.passes:.0f} passes, gap {record.gap.max():.1e}")


def _problem(x: Array, labels: Labels, groups: list[Group]) -> Problem:
    """A task for each group; labels and weights that all groups share are kept once."""
    codes, weights = labels.codes, [g.weights for g in groups]
    if len(codes) > 1:
        codes = codes[[g.concept for g in groups]]
    shared: np.ndarray | None = weights[0]
    if any(w is not shared for w in weights):
        shared = np.stack([np.ones(x.shape[0]) if w is None else w for w in weights])
    return Problem(
        Rows(x),
        like(codes, x),
        np.zeros(len(groups)),
        classes=max(len(c) for c in labels.classes),
        weights=None if shared is None else like(shared, x, compute_dtype(x)),
    )


@dataclass(frozen=True)
class _LayerFit:
    """The solutions of one layer, `solutions[group][penalty]`, from which probes are chosen."""

    problem: Problem
    labels: Labels
    groups: list[Group]
    penalties: np.ndarray
    solutions: list[list[Fitted]]

    def choose(self, concept: int, held: tuple[Array, np.ndarray] | None) -> Probe:
        """The concept's probe of the penalty that does best on held-out rows, with the path.

        `held`: validation rows and their classes; the groups' own held-out rows when None.
        """
        mine = [i for i, group in enumerate(self.groups) if group.concept == concept]
        scores = []  # of each set of held-out rows, (penalties, 2): error and loss
        for i in mine:
            rows = self.groups[i].held
            if held is not None:
                x, codes = held
            elif rows is not None:
                x, codes = self.problem.rows.take(rows), self.labels.codes[concept][rows]
            else:
                continue
            probes = [self._probe(i, v) for v in range(len(self.penalties))]
            found = [score(to_numpy(probe.log_proba(x)), codes) for probe in probes]
            scores.append([(s.error, s.loss) for s in found])
        if not scores:
            return self._probe(mine[-1], 0)
        mean = np.mean(scores, axis=0).tolist()
        best = min(range(len(mean)), key=lambda v: tuple(mean[v]))
        path = tuple(
            PathPoint(float(l2), s.loss, s.gap, s.status, error, loss)
            for l2, s, (error, loss) in zip(
                self.penalties, self.solutions[mine[-1]], mean, strict=True
            )
        )
        return replace(
            self._probe(mine[-1], best),
            validation_error=mean[best][0],
            passes=max(s.passes for i in mine for s in self.solutions[i]),
            seconds=max(s.seconds for i in mine for s in self.solutions[i]),
            path=path if len(path) > 1 else (),
        )

    def _probe(self, group: int, penalty: int) -> Probe:
        """One task's solution; classes that only other concepts have are left out."""
        problem, found = self.problem, self.solutions[group][penalty]
        xp, classes = problem.xp, self.labels.classes[self.groups[group].concept]
        weights, bias = problem.split(cast(found.w, problem.dtype)[None, :])
        bias = xp.where(problem.frequency[group, :] > 0, bias[0, :], -xp.inf)
        k = len(classes)
        return Probe(
            weights=xp.asarray(weights[0, :k, :], copy=True),
            bias=xp.asarray(bias[:k], copy=True),
            classes=classes,
            l2=float(self.penalties[penalty]),
            loss=found.loss,
            objective=found.value,
            gap=found.gap,
            status=found.status,
            passes=found.passes,
            seconds=found.seconds,
            train_error=found.error,
            start=found.start,
            validation_error=None,
            rows=float(problem.total[group if problem.total.shape[0] > 1 else 0]),
        )


def _check_validation(
    validation: tuple[Any, Any] | None, layers: dict[str, Array], labels: Labels
) -> tuple[dict[str, Array], list[np.ndarray] | None]:
    """Validation layers of the same names and widths, and class indices of every concept."""
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
    for name, x in held.items():
        if not bool(namespace(x).all(namespace(x).isfinite(x))):
            check_finite(x, f"validation[{name!r}]")
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
    groups: list[Group],
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
    if memory is not None and memory.rows[-1] >= problem.n:
        raise ValueError(
            f"warm_start: it remembers row {memory.rows[-1]}, found {problem.n} rows in {layer!r}"
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
    index, x = [group.concept for group in groups], problem.rows.matrix
    return Previous(
        like(np.stack(starts)[index], x),
        like(np.stack(logits)[index], x) if memory is not None else None,
        None if memory is None else memory.rows,
    )


def _feature_variance(x: Array, where: str) -> float:
    """Mean variance of the features, from at most 4 096 evenly spaced rows; 1 if constant."""
    xp = namespace(x)
    rows = Rows(x).take(np.arange(0, x.shape[0], max(1, x.shape[0] // 4096)))
    value = float(xp.mean(xp.var(cast(rows, xp.float64), axis=0)))
    if not np.isfinite(value):
        check_finite(x, where)
    return value if value > 0 else 1.0
