"""Control tasks: labels that say nothing but which word type a row is of."""

from __future__ import annotations

from typing import Any

import numpy as np

from convexprobe._arguments import check_integer
from convexprobe.arrays.backend import generator
from convexprobe.probes.classes import distinct, in_order, is_missing, unknown_labels
from convexprobe.probes.columns import host_vector
from convexprobe.probes.labels import check_labels


def control_labels(types: Any, labels: Any, *, seed: int = 0) -> np.ndarray:
    """The labels of a control task (Hewitt & Liang 2019): one random label for each word type.

    The label of a type is drawn from the empirical distribution of the task's labels, that is, it
    is the label of a random row; all rows of the type have it. A probe can only learn it by heart,
    so what it reaches on held-out rows tells its capacity. Fit the task and its control as one
    family, which shares the readings of the rows, and compare them:

        probes = fit_probes(x, {"tag": tags, "control": control_labels(words, tags)})
        probes.evaluate(x_held, held).selectivity("tag", "control")

    Labels of rows that are held out are drawn together with those of the fitted rows: call this
    with all rows, and divide afterwards.

    Args:
        types: the word type of each row, `(n,)` hashable values.
        labels: the task's labels, `(n,)`.
        seed: of the draw.

    Returns:
        Labels `(n,)`, of the classes of the task; unknown where those of the task are (None, NaN
        or -100), so that both are scored on the same rows.

    Raises:
        TypeError, ValueError: not one hashable value a row, a word type that is missing, or no
            rows with a label.
    """
    words = host_vector(types, "types")
    if words.ndim != 1 or not len(words):
        raise ValueError(f"types: expected a word type for each row, found shape {words.shape}")
    truth = check_labels(labels, len(words))
    unknown = unknown_labels(truth)
    if unknown.all():
        raise ValueError("labels: expected rows with a label, found none")
    distinct(truth, unknown=unknown)  # refuses what is no label
    items = words.tolist()
    order = in_order(items)
    if any(map(is_missing, order)):
        row = next(i for i, word in enumerate(items) if is_missing(word))
        raise ValueError(f"types: row {row} has {items[row]!r}, expected a word type")
    number = {word: i for i, word in enumerate(order)}
    known = truth[~unknown]
    drawn = generator(check_integer("seed", seed)).integers(0, len(known), len(order))
    control = known[drawn[[number[word] for word in items]]]
    control[unknown] = truth[unknown]
    return control
