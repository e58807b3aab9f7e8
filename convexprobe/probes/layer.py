"""Fit one layer: its family of tasks, their penalties and starts, the solve and the choice."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial

import numpy as np
import torch

from convexprobe.activations.checks import check_finite
from convexprobe.activations.placement import Neighbours, place, reference
from convexprobe.activations.source import Rows, Source
from convexprobe.activations.stored import StoredRows
from convexprobe.activations.widened import Widened
from convexprobe.arrays.backend import Array, cast, epsilon, like, namespace, to_numpy
from convexprobe.arrays.products import combine_rows
from convexprobe.arrays.ranks import Communicator
from convexprobe.probes.labels import Labels, probe_name
from convexprobe.probes.options import GRID, Options
from convexprobe.probes.probe import Probe
from convexprobe.probes.probe_set import ProbeSet
from convexprobe.probes.selection import Judge, make_probe
from convexprobe.probes.splits import Split
from convexprobe.probes.standardize import standardized
from convexprobe.probes.validation import Validation, ValidationRows, validation_loss
from convexprobe.probes.warm_start import Remembered, start_from
from convexprobe.problem.objective import Problem
from convexprobe.solvers.path import Fitted, solve_from, solve_path
from convexprobe.solvers.solution import Record
from convexprobe.solvers.walk import Walk

FEW = 1e8
"""Features or logits of all rows up to which calls are a good part of a solve's time."""


@dataclass(frozen=True)
class Job:
    """What the fits of all layers share.

    Attributes:
        communicator: the ranks.
        options: what was asked for.
        labels: of all concepts.
        sample_weight: of this rank's rows, host `(rows,)`, or None.
        weights: likewise, for every concept, times the weights of its classes.
        splits: which rows every task is fitted to.
        validation: rows to choose on, if the caller gave some.
        warm_start: earlier probes, or None.
        held_out: whether the splits are those of the seeds, each with a fifth of the rows held out.
        neighbours: the ranks that share this one's memory.
    """

    communicator: Communicator
    options: Options
    labels: Labels
    sample_weight: np.ndarray | None
    weights: list[np.ndarray | None]
    splits: list[Split]
    validation: Validation | None
    warm_start: Probe | ProbeSet | Remembered | None
    held_out: bool
    neighbours: Neighbours


def fit_layer(
    job: Job, layer: str, rows: Array | StoredRows, callback: Callable[[Record], None]
) -> dict[str, Probe]:
    """The probes of one layer by name: one, or one for each concept.

    Raises:
        ValueError: values that are not finite or whose sum overflows, or a warm start that does
            not fit; on every rank.
    """
    options = job.options
    limit, neighbours = options.memory_limit, job.neighbours
    bring = partial(place, device=options.device, limit=limit, neighbours=neighbours)
    validation = None
    with job.communicator.raise_together():
        sources = [bring(rows)]
        if job.validation is not None:
            sources.append(bring(job.validation.layers[layer]))
        if job.communicator.process_group is None:  # ranks may differ in their number of rows
            logits = len(job.splits) * max(len(c) for c in job.labels.classes)
            sources = in_numpy(sources, max(sources[0].d, logits))
        x, *held = sources
        if job.validation is not None:
            validation = ValidationRows(held[0], job.validation.codes, job.validation.weights)
    where = f"activations[{layer!r}]"
    plain, standard = x, None
    if options.standardize:
        x = standard = standardized(plain, job.sample_weight, job.communicator, where)
        if validation is not None:
            validation = replace(validation, rows=standard.like(validation.rows))
    problem, variance = _problem(x, job, where)
    penalties = np.asarray(GRID) * variance if options.l2 is None else options.l2
    with job.communicator.raise_together():
        previous = start_from(job.warm_start, layer, job.labels, job.splits, problem)
    if standard is not None:
        previous = standard.start(problem, previous)
    judge = Judge(problem, job.labels, job.weights, job.splits, validation, where)
    early, walk = None, None
    if options.stops_early:
        early = validation_loss(problem, job.splits, job.weights, validation)
    if options.l2 is None:
        concepts = [split.concept for split in job.splits]
        notable = options.tol * float(problem.label_entropy.mean())
        walk = Walk(judge.loss, concepts, notable)
    solutions = solve_path(
        problem,
        penalties,
        options.solver,
        previous,
        tol=options.tol,
        max_passes=options.max_passes,
        max_seconds=options.max_seconds,
        callbacks=[callback],
        stopping=early,
        walk=walk,
    )
    count = len(job.labels.names)
    chosen = [judge.choose(concept, solutions, options.scoring) for concept in range(count)]
    probes = [probe for probe, _ in chosen]
    splits = [[s for s in job.splits if s.concept == concept][-1] for concept in range(count)]
    if job.held_out and options.refit and not options.stops_early:
        probes = _refit(job, x, chosen, callback)
        splits = _of_all_rows(job)
    if standard is not None:
        # products with rows far from 0 cancel: float64 tells what the probe is, not how it rounds
        # and what standardizing shifted comes back as a bias
        family = _family(Widened(plain), job.labels, splits, job.communicator, bias=True)
        probes = standard.hand_out(probes, family, options.tol)
    given = reference(rows, options.device)
    return {
        probe_name(layer, concept): _handed_out(replace(probe, concept=concept), given)
        for concept, probe in zip(job.labels.names, probes, strict=True)
    }


def in_numpy(sources: list[Source], columns: int) -> list[Source]:
    """Few rows of CPU tensors as NumPy views, the first being those that are fitted to.

    NumPy's calls cost half as much as torch's; more than that after a product, which empties the
    caches of code and data alike.
    `columns` are the features or the logits of a row, whichever are more.
    """
    if sources[0].n * columns > FEW:
        return sources
    found: list[Source] = []
    for source in sources:
        matrix = source.matrix if isinstance(source, Rows) else None
        exact = (torch.float32, torch.float64)
        if not isinstance(matrix, torch.Tensor) or matrix.dtype not in exact:
            return sources
        if matrix.device.type != "cpu":
            return sources
        found.append(Rows(matrix.numpy()))
        found[-1].room = source.room
    return found


def _handed_out(probe: Probe, given: Array) -> Probe:
    """The probe with its arrays in the library and on the device of the rows that were given."""
    if namespace(probe.weights) is namespace(given):
        return probe
    weights, bias = (like(to_numpy(a), given) for a in (probe.weights, probe.bias))
    scale = None if probe.scale is None else like(to_numpy(probe.scale), given)
    return replace(probe, weights=weights, bias=bias, scale=scale)


def _refit(
    job: Job, x: Source, chosen: list[tuple[Probe, Fitted]], callback: Callable[[Record], None]
) -> list[Probe]:
    """The chosen probes fitted to all rows, from where they are, in one family."""
    options = job.options
    family = _family(x, job.labels, _of_all_rows(job), job.communicator, bias=options.bias)
    family = family.take_tasks([*range(len(chosen))], np.array([p.l2 for p, _ in chosen]))
    solution = solve_from(
        family,
        options.solver,
        family.xp.stack([fitted.w for _, fitted in chosen]),
        tol=options.tol,
        max_passes=options.max_passes,
        max_seconds=max(options.max_seconds - max(p.seconds for p, _ in chosen), 0.0),
        callbacks=[callback],
    )
    probes = []
    for task, (probe, before) in enumerate(chosen):
        known = solution.task(task, start=before.start, waited=probe.seconds).known()
        known["passes"] += probe.passes
        fitted = Fitted(**known, w=solution.w[task, :], steps=int(solution.steps[task]))
        classes = job.labels.classes[task]
        probes.append(
            replace(
                make_probe(family, classes, task, fitted),
                validation_error=probe.validation_error,
                validation_errors=probe.validation_errors,
                path=probe.path,
            )
        )
    return probes


def _of_all_rows(job: Job) -> list[Split]:
    """A split for each concept that is fitted to all rows."""
    return [Split(concept, weights, None) for concept, weights in enumerate(job.weights)]


def _problem(x: Source, job: Job, where: str) -> tuple[Problem, float]:
    """A task for each split, and the typical feature variance where the grid needs it (else 1).

    Raises:
        ValueError: values that are not finite, or whose sums are not.
    """
    with np.errstate(over="ignore", invalid="ignore"):
        bias = job.options.bias
        problem = _family(x, job.labels, job.splits, job.communicator, bias=bias)
        variance = typical_variance(problem, job.sample_weight) if job.options.l2 is None else 1.0
    # squares of larger values, and penalties in their units, overflow in solvers
    largest = 0.01 * float(problem.xp.finfo(problem.dtype).max) ** 0.5
    moment = float(problem.xp.max(problem.xp.abs(problem.moment)))
    if not (moment < 0.1 * largest and variance * max(GRID) < largest**2):
        with job.communicator.raise_together():
            check_finite(x, where)
            check_finite(x, where, largest)
    if not np.isfinite([moment, variance]).all():
        raise ValueError(f"{where}: values so large that their sum overflows; scale them down")
    return problem, variance


def _family(
    x: Source, labels: Labels, splits: list[Split], communicator: Communicator, *, bias: bool
) -> Problem:
    """A task for each split; labels and weights that all splits share are kept once."""
    codes, weights = labels.own_codes, [s.weights for s in splits]
    concepts = [split.concept for split in splits]
    if len(codes) > 1 and concepts != list(range(len(codes))):
        codes = codes[concepts]
    shared: np.ndarray | None = weights[0]
    if any(w is not shared for w in weights):
        shared = np.stack([np.ones(x.n) if w is None else w for w in weights])
    return Problem(
        x,
        like(codes, x.reference),
        np.zeros(len(splits)),
        classes=max(len(c) for c in labels.classes),
        weights=None if shared is None else like(shared, x.reference),
        bias=bias,
        communicator=communicator,
    )


def typical_variance(problem: Problem, weights: np.ndarray | None) -> float:
    """A typical weighted variance of the features: their mean, none counted for more than ten times
    the median of those above 0; 1 if all are 0.

    A few massive dimensions would own a plain mean, and the grid would miss the others.
    """
    xp, rows = problem.xp, problem.rows
    centre = xp.mean(problem.mean, axis=0)  # near the mean, so that squares do not cancel
    if weights is None:
        s = xp.ones((1, rows.n), dtype=problem.dtype, device=centre.device)
    else:
        s = like(weights[None, :], rows.reference, problem.dtype)
    near = cast(centre, problem.dtype)
    first = second = xp.zeros_like(centre)
    for span, x in rows.blocks():
        x = x - near
        first = first + cast(combine_rows(s[:, span], x)[0, :], xp.float64)
        x *= x
        second = second + cast(combine_rows(s[:, span], x)[0, :], xp.float64)
    first, second, total = problem.all_reduce(first, second, xp.sum(s, dtype=xp.float64))
    shift = (first / total) ** 2
    variance = second / total - shift
    spacing = 4.0 * epsilon(problem.dtype, centre) * xp.abs(centre)  # of numbers, near the mean
    least = xp.maximum(1e-12 * shift, spacing * spacing)
    host = to_numpy(xp.where(variance > least, variance, 0.0))
    if not np.isfinite(host).all():
        return float(np.inf)
    return float(np.minimum(host, 10.0 * np.median(host[host > 0])).mean()) if host.any() else 1.0
