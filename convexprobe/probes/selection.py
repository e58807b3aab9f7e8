"""Choose a layer's probe: of all that were fitted, the one that does best on held-out rows."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np

from convexprobe.activations.source import Source
from convexprobe.arrays.backend import cast
from convexprobe.probes.labels import Labels
from convexprobe.probes.probe import PathPoint, Probe, tallies
from convexprobe.probes.splits import Split
from convexprobe.problem.objective import Problem
from convexprobe.solvers.path import Fitted


def choose(
    problem: Problem,
    labels: Labels,
    weights: np.ndarray | None,
    splits: list[Split],
    solutions: list[list[Fitted]],
    concept: int,
    validation: tuple[Source, np.ndarray] | None,
    where: str,
) -> Probe:
    """A concept's probe at the penalty that does best on held-out rows, with its path.

    Args:
        problem: a family with one task for each split; its own penalties are not used.
        labels: of all concepts.
        weights: of this rank's rows, host `(rows,)`, or None; held-out rows are scored by theirs.
        splits: the rows that each task was fitted to.
        solutions: of each split, at each penalty.
        concept: its number in `labels`.
        validation: rows to choose on and their class indices; None for the rows that the splits
            hold out, averaged over the splits. If those hold none out, there is one penalty.
        where: what messages call the layer.

    Raises:
        ValueError: on every rank, held-out rows whose logits overflow.
    """
    mine = [i for i, split in enumerate(splits) if split.concept == concept]
    scores = []  # one array for each set of held-out rows, (penalties, 2): error and loss
    for i in mine:
        held = splits[i].held
        if validation is not None:
            rows, codes, counted = *validation, None
        elif held is not None:
            rows, codes = problem.rows.subset(held), labels.own_codes[concept][held]
            counted = None if weights is None else weights[held]
        else:
            continue
        probes = [_probe(problem, labels.classes[concept], i, s) for s in solutions[i]]
        with problem.communicator.raise_together():
            sums = np.stack(tallies(probes, rows, codes, counted, where))
        (sums,) = problem.communicator.all_reduce(sums)
        scores.append(sums[:, :2] / sums[:, 2:].sum(axis=1, keepdims=True))
    last = solutions[mine[-1]]
    if not scores:
        return _probe(problem, labels.classes[concept], mine[-1], last[0])
    mean = np.mean(scores, axis=0).tolist()
    best = min(range(len(mean)), key=lambda v: tuple(mean[v]))
    path = tuple(
        PathPoint(**solution.known(), validation_error=error, validation_loss=loss)
        for solution, (error, loss) in zip(last, mean, strict=True)
    )
    return replace(
        _probe(problem, labels.classes[concept], mine[-1], last[best]),
        validation_error=mean[best][0],
        passes=max(s.passes for i in mine for s in solutions[i]),
        seconds=max(s.seconds for i in mine for s in solutions[i]),
        path=path if len(path) > 1 else (),
    )


def _probe(problem: Problem, classes: tuple[Any, ...], task: int, solution: Fitted) -> Probe:
    """The probe of one task's solution, without the classes that only other concepts have."""
    xp, k = problem.xp, len(classes)
    weights, bias = problem.split(cast(solution.w, problem.dtype)[None, :])
    bias = xp.where(problem.frequency[task, :] > 0, bias[0, :], -xp.inf)
    return Probe(
        **solution.known(),
        weights=xp.asarray(weights[0, :k, :], copy=True),
        bias=xp.asarray(bias[:k], copy=True),
        classes=classes,
        validation_error=None,
        rows=float(problem.total[task if problem.total.shape[0] > 1 else 0]),
    )
