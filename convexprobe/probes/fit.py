"""`fit_probes`: the main job, a certified probe for every layer."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import is_dataclass
from functools import partial
from typing import Any

import numpy as np

from convexprobe._arguments import check_bool, check_choice, check_real
from convexprobe._progress import progress_bar
from convexprobe.activations.checks import check_activations, check_memory
from convexprobe.activations.placement import Neighbours, reference
from convexprobe.activations.stored import StoredRows
from convexprobe.arrays.backend import Array
from convexprobe.arrays.linalg import arithmetic
from convexprobe.arrays.precision import full_precision
from convexprobe.arrays.ranks import Communicator
from convexprobe.probes.class_weights import check_class_weight, row_weights
from convexprobe.probes.classes import check_classes
from convexprobe.probes.groups import example_groups, read_groups
from convexprobe.probes.labels import check_probe_names, read_labels
from convexprobe.probes.layer import Job, fit_layer
from convexprobe.probes.options import (
    SCORING,
    STOPPING,
    Options,
    check_folds,
    check_l2,
    check_seeds,
    read_weights,
)
from convexprobe.probes.probe import Probe
from convexprobe.probes.probe_set import ProbeSet
from convexprobe.probes.splits import plan
from convexprobe.probes.validation import read_validation
from convexprobe.probes.warm_start import Remembered, check_warm_start, fingerprint_of
from convexprobe.solvers import Solver, by_name
from convexprobe.solvers.solution import Record


@full_precision()
def fit_probes(
    activations: Any,
    labels: Any,
    solver: str | Solver = "auto",
    *,
    l2: float | Sequence[float] | str = "auto",
    bias: bool = True,
    tol: float = 1e-3,
    classes: Sequence[Any] | None = None,
    sample_weight: Any = None,
    class_weight: str | Mapping[Any, float] | None = None,
    groups: Any = None,
    warm_start: Probe | ProbeSet | Remembered | None = None,
    validation: tuple[Any, Any] | None = None,
    cv: int | None = None,
    stopping: str = "certificate",
    scoring: str = "error",
    refit: bool = True,
    standardize: bool = False,
    seed: int | Sequence[int] = 0,
    max_passes: float = 1000.0,
    max_seconds: float = np.inf,
    device: str | None = None,
    memory_limit: float | None = None,
    progress: bool | None = None,
    process_group: Any = None,
) -> ProbeSet:
    """Fit the optimal linear classifier of every layer, certified to `tol`.

    Minimises `F(W, b) = mean cross-entropy + l2/2 ||W||^2` (the bias is free) for each layer. A fit
    stops when a rigorous bound says `F - F* <= tol * H(Y)`, where `H(Y)` is the entropy of the
    labels. A budget that runs out is a status with its gap, never an exception.

    Args:
        activations: layer name -> `(n, d)`, or one such array: NumPy, torch, CuPy or DLPack, or
            rows on disk as `open_activations` returns them. The work runs in the library and on the
            device of what is given, and the weights come back there.
        labels: `(n,)` integers or any hashable classes. An `(n, m)` array or a mapping name ->
            `(n,)` holds concepts, which are fitted together: each has its own classes, chooses its
            own `l2`, and its probe is named "layer/concept" (by column number or name). A concept
            may not know the label of every row: one that is None, NaN or -100, and not among
            `classes`, leaves the row out of that concept's fit and scores.
        solver: a name in `SOLVERS` or a configured solver.
        l2: a penalty, a list of them, or "auto". Of several, the probe has the one that does best
            on held-out rows. "auto" walks down by factors of ten from the layer's typical feature
            variance, until the loss on held-out rows has risen twice in a row or 1e-6 is reached,
            and below that while the loss still falls.
        bias: whether there are biases. False holds them at 0, and `F` is minimised over the weights
            alone; with `standardize`, they are 0 in the coordinates of the standardized features. A
            class without rows stays out of the softmax.
        tol: relative tolerance of the certificate.
        classes: the class list; it may have classes without rows.
        sample_weight: `(n,)` non-negative weights; a weight of two equals a repeated row.
        class_weight: "balanced" for classes of equal total weight, or class -> weight, 1 for those
            not named: a factor of the rows' weights, in the fit and in the scores on held-out rows.
        groups: `(n,)` values, one for the rows that belong together: the tokens of a sentence, the
            frames of a film. No draw of held-out rows or folds divides a group, and classes are
            balanced as far as the groups allow. A group that has every row of a class is fitted to
            and never held out. None takes the examples of rows that are tokens.
        warm_start: earlier probes, to start from where they are better than zero; the answer is the
            same. `remember` makes a better start of them, which follows activations that changed.
        validation: `(activations, labels)` to choose and report on. Without it, a fifth of each
            class is held out where a choice has to be made.
        cv: number of stratified cross-validation folds, instead of `validation`. The probe is
            fitted to all rows, at the `l2` whose error is lowest averaged over the held-out folds.
        stopping: "certificate", or "validation" for the paper's early stopping: a fit ends when the
            loss on held-out rows has not fallen for five evaluations, and returns the point where
            it was lowest, with that point's gap.
        scoring: how a penalty is chosen: by the lowest "error" on held-out rows, by the lowest
            "loss", or by any other measure of a `Score` there, such as "balanced_accuracy", "f1"
            or "auroc"; ties, and values that the rows do not define, by the error and then by the
            loss.
        refit: whether a probe whose penalty was chosen on a held-out fifth is fitted again to all
            rows, starting from what it was. `train_error` is then of all rows, and
            `validation_error` and `path` are of the fits before.
        standardize: fit to features shifted to mean 0 and scaled to deviation 1, weighted over all
            rows, those held out as well. What is solved is then `F` with the penalty
            `l2/2 ||W sigma||^2`, and the certificate is of that. The weights that come back are in
            the coordinates of the activations, `Probe.scale` has `sigma`, and what a probe says of
            itself is measured on the weights that come back.
        seed: of the draw of held-out rows and folds. Of several seeds each holds out a fifth of its
            own, and all are fitted as one family: a penalty is chosen by the mean of their scores,
            and `Probe.validation_errors` tells how much the draw matters. Without `refit` the probe
            is that of the last seed.
        max_passes: budget of passes for each penalty.
        max_seconds: budget of seconds for each layer.
        device: a torch device to work on; None works where the activations are, for rows on disk on
            the CPU.
        memory_limit: bytes that the rows of a layer may take, on the device and on the host alike,
            and on the device the logits that a solve keeps of them; None takes half of what is
            free. A layer that fits is loaded to the device; one that does not is read in blocks,
            from host memory if it fits there, else from disk, to the same answer. Logits, `8 m k n`
            bytes in float32, are kept if the rows leave room for them (at most 0.5 GB if there are
            many rows); if not, a sample of rows finds each step, to the same tolerance. Ranks that
            share a host or a device divide what None takes there; a number is for each of them.
        progress: show a bar; None shows it on a terminal.
        process_group: "world" or a `torch.distributed` process group. Its ranks all call this with
            the same arguments, but each with its own rows (activations, labels, weights,
            validation), of any number. All get the same probes, those of one process to rounding.
            It is never taken by default: a group may have been initialised for other work.

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
        order = check_classes(classes)
        stopping = check_choice("stopping", stopping, STOPPING)
        check_memory(device, memory_limit)
        check_warm_start(warm_start)
        if progress is not None:
            check_bool("progress", progress)
        check_bool("bias", bias)
        check_bool("refit", refit)
        check_bool("standardize", standardize)
        options = Options(
            solver=by_name(solver),
            l2=check_l2(l2),
            bias=bias,
            class_weight=check_class_weight(class_weight),
            tol=check_real("tol", tol, above=0.0),
            cv=check_folds(cv, stopping=stopping, validation=validation is not None),
            stopping=stopping,
            scoring=check_choice("scoring", scoring, SCORING),
            refit=refit,
            standardize=standardize,
            seeds=check_seeds(seed, draws=cv is None and validation is None),
            max_passes=check_real("max_passes", max_passes, least=0.0),
            max_seconds=check_real("max_seconds", max_seconds, least=0.0),
            device=device,
            memory_limit=memory_limit,
        )
    _check_same(
        communicator,
        layers,
        options,
        classes=order,
        sample_weight=_given(sample_weight),
        groups=_given(groups),
        warm_start=warm_start,
        validation=_given(validation),
    )

    rows = next(iter(layers.values())).shape[0]
    if communicator.span(rows)[1] == 0:
        raise ValueError("activations: expected rows on one rank at least, found none")
    encoded = read_labels(labels, rows, order, communicator)
    check_probe_names(layers, encoded)
    weights = read_weights(sample_weight, rows, communicator)
    held = read_validation(validation, layers, encoded, communicator)

    hold = options.needs_validation and cv is None and held is None
    if groups is None and (hold or cv is not None):
        groups = example_groups(activations, communicator)
    together = read_groups(groups, rows, communicator)
    each = row_weights(encoded, weights, options.class_weight)
    splits = plan(encoded, each, options.seeds, folds=cv, hold=hold, groups=together)
    own = encoded.own
    job = Job(
        communicator,
        options,
        encoded,
        None if weights is None else weights[own],
        [None if w is None else w[own] for w in each],
        splits,
        held,
        warm_start,
        hold,
        Neighbours.of(layers.values(), device, communicator),
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
    options: Options,
    *,
    warm_start: Probe | ProbeSet | Remembered | None,
    **inputs: Any,
) -> None:
    """Refuse ranks that got other layers or arguments, or whose arithmetic differs in its bits."""
    if communicator.process_group is None:
        return
    places = {name: reference(x, options.device) for name, x in layers.items()}
    # Where a rank works, and in how much memory, is its own affair.
    shared = {k: v for k, v in vars(options).items() if k not in ("device", "memory_limit")}
    shared["l2"] = None if options.l2 is None else options.l2.tolist()
    if not is_dataclass(options.solver):
        shared["solver"] = type(options.solver)
    communicator.check_same(
        activations={name: (x.shape[1], x.dtype) for name, x in places.items()},
        arithmetic=sorted({arithmetic(x) for x in places.values()}),
        warm_start=fingerprint_of(warm_start),
        **shared,
        **inputs,
    )


def _given(value: Any) -> str:
    return "none" if value is None else "some"


def _show(bar: Any, layer: str, record: Record) -> None:
    """Show how far the layer at hand is, behind the bar."""
    bar.set_postfix_str(f"{layer}: {record.passes:.0f} passes, gap {record.gap.max():.1e}")
