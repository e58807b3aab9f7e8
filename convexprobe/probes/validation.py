"""Validation rows that the caller gives, and the loss on held-out rows as a rule to stop by."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from convexprobe.activations.checks import check_activations, check_finite, check_layer
from convexprobe.activations.placement import place
from convexprobe.activations.source import Source
from convexprobe.activations.stored import StoredRows
from convexprobe.arrays.backend import Array, like
from convexprobe.arrays.ranks import Communicator
from convexprobe.probes.labels import Labels, encode, split_concepts
from convexprobe.probes.splits import Split
from convexprobe.problem.objective import Problem
from convexprobe.solvers.early_stopping import ValidationLoss


@dataclass(frozen=True)
class Validation:
    """Validation rows of every layer, and their class indices `(rows,)` for every concept."""

    layers: dict[str, Array | StoredRows]
    codes: list[np.ndarray]


def read_validation(
    validation: tuple[Any, Any] | None,
    layers: dict[str, Array | StoredRows],
    labels: Labels,
    communicator: Communicator,
) -> Validation | None:
    """Check the pair `(activations, labels)` that the caller gives; None where there is none.

    Raises:
        ValueError: a layer or concept is missing or has another width; a label that is no class;
            values that are not finite; no rows on any rank.
    """
    if validation is None:
        return None
    with communicator.raise_together():
        checked = _check(validation, layers, labels, communicator.min_rows)
    if communicator.span(checked.codes[0].size)[1] == 0:
        raise ValueError("validation: expected rows on one rank at least, found none")
    return checked


def _check(
    validation: tuple[Any, Any],
    layers: dict[str, Array | StoredRows],
    labels: Labels,
    min_rows: int,
) -> Validation:
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
    return Validation(held, codes)


def validation_loss(
    problem: Problem, splits: list[Split], validation: tuple[Source, list[np.ndarray]] | None
) -> ValidationLoss:
    """Judged on the validation rows and classes given, or on what each split holds out."""
    if validation is not None:
        rows, codes = validation
        stacked = np.stack([codes[s.concept] for s in splits])
        return ValidationLoss(problem, rows, like(stacked, problem.rows.reference), None)
    held = np.zeros((len(splits), problem.rows.n))
    for i, split in enumerate(splits):
        held[i, split.held] = 1.0
    if len(splits) > 1:
        weights = like(held, problem.rows.reference, problem.dtype)
        return ValidationLoss(problem, problem.rows, problem.labels, weights)
    index = np.flatnonzero(held[0])
    return ValidationLoss(problem, problem.rows.subset(index), problem.labels_at(index), None)
