"""Check the validation rows that a caller gives, and set up early stopping on held-out rows."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from convexprobe._arguments import shown
from convexprobe.activations.checks import check_activations, check_finite, check_layer
from convexprobe.activations.placement import place
from convexprobe.activations.source import Source
from convexprobe.activations.stored import StoredRows
from convexprobe.arrays.backend import Array, like
from convexprobe.arrays.ranks import Communicator
from convexprobe.probes.labels import Labels, concept_place, known_codes, split_concepts
from convexprobe.probes.splits import Split
from convexprobe.problem.objective import Problem
from convexprobe.solvers.early_stopping import ValidationLoss


@dataclass(frozen=True)
class Validation:
    """The validation rows of every layer.

    Attributes:
        layers: the rows by layer.
        codes: their class indices `(rows,)` by concept.
        weights: likewise, 0 where a concept does not know the label; None if it knows all.
    """

    layers: dict[str, Array | StoredRows]
    codes: list[np.ndarray]
    weights: list[np.ndarray | None]


@dataclass(frozen=True)
class ValidationRows:
    """The validation rows of one layer, where they are multiplied; see `Validation`."""

    rows: Source
    codes: list[np.ndarray]
    weights: list[np.ndarray | None]


def check_validation_rows(
    validation: Any, layers: Mapping[str, Array | StoredRows], **checks: Any
) -> dict[str, Array | StoredRows]:
    """The activations of a pair `(activations, labels)`, by layer.

    Args:
        validation: what the caller gives.
        layers: the layers that are fitted.
        **checks: as for `check_activations`.

    Raises:
        TypeError: not a pair.
        ValueError: a missing layer, another width, or activations refused.
    """
    if not isinstance(validation, (tuple, list)) or len(validation) != 2:
        raise TypeError(
            f"validation: expected a pair (activations, labels), found {shown(validation)}"
        )
    held = check_activations(validation[0], "validation", **checks)
    for name, x in layers.items():
        check_layer(name, held, "validation")
        if held[name].shape[1] != x.shape[1]:
            raise ValueError(
                f"validation[{name!r}]: expected {x.shape[1]} features, found {held[name].shape[1]}"
            )
    return held


def read_validation(
    validation: tuple[Any, Any] | None,
    layers: dict[str, Array | StoredRows],
    labels: Labels,
    communicator: Communicator,
) -> Validation | None:
    """The checked pair `(activations, labels)` that the caller gives, or None.

    Raises:
        TypeError: not a pair.
        ValueError: a missing layer or concept, another width, a label that is no class, values
            that are not finite, no rows on any rank.
    """
    if validation is None:
        return None
    with communicator.raise_together():
        held = check_validation_rows(validation, layers, min_rows=communicator.min_rows)
        for name, x in held.items():
            check_finite(place(x, None, 0.0), f"validation[{name!r}]")  # read in blocks, not loaded
        rows = next(iter(held.values())).shape[0]
        concepts = split_concepts(validation[1], rows, "validation")
        if set(concepts) != set(labels.names):
            raise ValueError(
                f"validation: expected labels of concepts {list(labels.names)}, "
                f"found {list(concepts)}"
            )
        pairs = [
            known_codes(concept, concepts[concept], order, concept_place("validation", concept))
            for concept, order in zip(labels.names, labels.classes, strict=True)
        ]
    codes, weights = (list(part) for part in zip(*pairs, strict=True))
    for concept, own in zip(labels.names, weights, strict=True):
        counted = rows if own is None else int(own.sum())
        if communicator.span(counted)[1] == 0:
            where = "validation" if own is None else concept_place("validation", concept)
            raise ValueError(f"{where}: expected rows on one rank at least, found none")
    return Validation(held, codes, weights)


def validation_loss(
    problem: Problem,
    splits: list[Split],
    weights: list[np.ndarray | None],
    validation: ValidationRows | None,
) -> ValidationLoss:
    """The loss on the validation rows given, or on what each split holds out.

    `weights` are those of this rank's rows, host `(rows,)` or None, for every concept.
    """
    if validation is not None:
        rows, reference = validation.rows, problem.rows.reference
        stacked = np.stack([validation.codes[s.concept] for s in splits])
        counted: Array | None = None
        if any(own is not None for own in validation.weights):
            each = [validation.weights[s.concept] for s in splits]
            whole = np.stack([np.ones(rows.n) if own is None else own for own in each])
            counted = like(whole, reference, problem.dtype)
        return ValidationLoss(problem, rows, like(stacked, reference), counted)
    held = np.zeros((len(splits), problem.rows.n))
    for i, split in enumerate(splits):
        own = weights[split.concept]
        held[i, split.held] = 1.0 if own is None else own[split.held]
    rows, labels = problem.rows, problem.labels
    if len(splits) == 1:
        index = np.flatnonzero(held[0])
        rows, labels, held = rows.subset(index), problem.labels_at(index), held[:, index]
    return ValidationLoss(problem, rows, labels, like(held, rows.reference, problem.dtype))
