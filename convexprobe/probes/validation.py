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
from convexprobe.probes.classes import encode
from convexprobe.probes.labels import Labels, concept_place, split_concepts
from convexprobe.probes.splits import Split
from convexprobe.problem.objective import Problem
from convexprobe.solvers.early_stopping import ValidationLoss


@dataclass(frozen=True)
class Validation:
    """The validation rows of every layer, and their class indices `(rows,)` by concept."""

    layers: dict[str, Array | StoredRows]
    codes: list[np.ndarray]


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
        codes = [
            encode(concepts[concept], order, concept_place("validation", concept))
            for concept, order in zip(labels.names, labels.classes, strict=True)
        ]
    if communicator.span(rows)[1] == 0:
        raise ValueError("validation: expected rows on one rank at least, found none")
    return Validation(held, codes)


def validation_loss(
    problem: Problem,
    splits: list[Split],
    weights: list[np.ndarray | None],
    validation: tuple[Source, list[np.ndarray]] | None,
) -> ValidationLoss:
    """The loss on the validation rows and class indices given, or on what each split holds out.

    `weights` are those of this rank's rows, host `(rows,)` or None, for every concept.
    """
    if validation is not None:
        rows, codes = validation
        stacked = np.stack([codes[s.concept] for s in splits])
        return ValidationLoss(problem, rows, like(stacked, problem.rows.reference), None)
    held = np.zeros((len(splits), problem.rows.n))
    for i, split in enumerate(splits):
        own = weights[split.concept]
        held[i, split.held] = 1.0 if own is None else own[split.held]
    rows, labels = problem.rows, problem.labels
    if len(splits) == 1:
        index = np.flatnonzero(held[0])
        rows, labels, held = rows.subset(index), problem.labels_at(index), held[:, index]
    return ValidationLoss(problem, rows, labels, like(held, rows.reference, problem.dtype))
