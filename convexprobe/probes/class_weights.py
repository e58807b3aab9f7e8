"""Weights of classes: checked, and made weights of rows."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from convexprobe._arguments import check_real, shown
from convexprobe.probes.labels import Labels
from convexprobe.probes.options import WEIGHTS


def check_class_weight(class_weight: Any) -> str | dict[Any, float] | None:
    """None, "balanced", or the weight of each class named.

    Raises:
        TypeError, ValueError: anything else, or a weight that is neither 0 nor in `WEIGHTS`.
    """
    if class_weight is None or (isinstance(class_weight, str) and class_weight == "balanced"):
        return class_weight
    if not isinstance(class_weight, Mapping):
        raise TypeError(
            'class_weight: expected None, "balanced" or a mapping class -> weight, found '
            f"{shown(class_weight)}"
        )
    weights, (low, high) = {}, WEIGHTS
    for name, value in class_weight.items():
        weight = check_real(f"class_weight[{name!r}]", value)
        if weight != 0 and not low <= weight <= high:
            raise ValueError(
                f"class_weight[{name!r}]: expected 0 or a number from {low:g} to {high:g}, found "
                f"{weight:g}; weights count relative to each other"
            )
        weights[name] = weight
    return weights


def row_weights(
    labels: Labels, weights: np.ndarray | None, class_weight: str | dict[Any, float] | None
) -> list[np.ndarray | None]:
    """Each concept's weights of all ranks' rows, host `(n,)` or None: the rows' times the classes'.

    Rows whose label a concept does not know have the weight 0 in it.

    Args:
        labels: of all concepts.
        weights: of the rows, host `(n,)`, or None.
        class_weight: "balanced" gives a class `c` the weight `S / (k S_c)`, where `S_c` is the
            weight of its rows, `S` that of all and `k` the number of classes that have any: then
            all classes weigh the same (scikit-learn's `compute_class_weight`). A class that a
            mapping does not name has the weight 1.

    Raises:
        ValueError: a mapping names a class that no concept has, or leaves no weight.
    """
    own = [
        weights if known is None else known * (1.0 if weights is None else weights)
        for known in labels.known
    ]
    if class_weight is None:
        return own
    if isinstance(class_weight, dict):
        for name in class_weight:
            if not any(name in classes for classes in labels.classes):
                raise ValueError(
                    f"class_weight: {name!r} is no class of the labels; the classes are "
                    f"{labels.classes[0]!r}"
                )
    out: list[np.ndarray | None] = []
    for classes, codes, counted in zip(labels.classes, labels.codes, own, strict=True):
        if isinstance(class_weight, dict):
            factors = np.array([class_weight.get(c, 1.0) for c in classes])
        else:
            counts = np.bincount(codes, counted, minlength=len(classes))
            present = counts > 0
            mean = counts.sum() / present.sum()
            factors = np.where(present, mean / np.where(present, counts, 1.0), 0.0)
        out.append(factors[codes] * (1.0 if counted is None else counted))
    return out
