"""Measures of predictions, for many weightings of the rows at once.

A bootstrap sample counts each group of rows as often as it was drawn, so a sample is a weighting,
and a measure of all samples is a matrix product with their counts. Each measure agrees with
scikit-learn's function on rows that are repeated as often, or weighted by `sample_weight`:

| measure | scikit-learn's | |
|---|---|---|
| `error` | `1 - accuracy_score` | |
| `loss` | `log_loss` | nats; infinite, not cut off, where a class has probability 0 |
| `top5_accuracy` | `top_k_accuracy_score` | of equal logits the first class comes first |
| `balanced_accuracy` | `balanced_accuracy_score` | the mean recall of the classes that occur |
| `f1` | `f1_score` | of two classes, of the second; of several, `average="macro"` |
| `auroc` | `roc_auc_score` | likewise; several are taken one against the rest |
| `recall_at_1pct_fpr` | `roc_curve` | the largest recall at a false positive rate of at most 1 % |

The `calibration_error` is the expected calibration error (Naeini et al. 2015, Guo et al. 2017):
rows are put in fifteen bins of equal width by their confidence, the largest probability, and

    ECE = sum_b (S_b / S) |accuracy_b - mean confidence_b|.

`usable_information` is `H(Y) - loss`, bits (Xu et al. 2020). A measure of rows that do not define
it, such as the AUROC of one class, is NaN.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy import sparse

from convexprobe.metrics.predictions import Predictions

BINS = 15
"""Bins of the calibration error, as Guo et al. (2017) have them."""

TOP_K = 5
"""Classes among which the true one counts as found."""

FALSE_POSITIVE_RATE = 0.01
"""The false positive rate at which recall is told."""

_AT_ONCE = 32
"""Weightings that are multiplied at once: rows of so many numbers stay in the cache."""


@dataclass(frozen=True)
class _Ranks:
    """How one class is told from the rest: the sums of groups' weights that its ROC curve needs.

    Its `u` distinct values of positive rows cut the negatives into `2 u + 1` segments: below the
    first value, equal to it, between it and the next, and so on.

    Attributes:
        positive: the positives' weights by value, sparse `(u, groups)`.
        negative: the negatives' weights by segment, sparse `(2 u + 1, groups)`.
    """

    positive: sparse.csr_array
    negative: sparse.csr_array

    def curve(self, counts: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """AUROC and recall at `FALSE_POSITIVE_RATE`, `(b,)` each, for counts `(groups, b)`."""
        weight, segments = self.positive @ counts, self.negative @ counts
        reached = np.cumsum(segments, axis=0)
        total, negatives = weight.sum(axis=0), reached[-1]
        # below a value, and half of those equal to it
        below = reached[:-1:2] + 0.5 * segments[1::2]
        area = (weight * below).sum(axis=0)
        rate = (negatives - reached[:-1:2]) / negatives  # of those at least as high as the value
        hit = (weight * (rate <= FALSE_POSITIVE_RATE)).sum(axis=0)
        return area / (total * negatives), np.where(negatives > 0, hit / total, np.nan)


class Measures:
    """Predictions that are measured under many weightings of their groups.

    Args:
        rows: the predictions.
        groups: the group of each row, `(n,)` integers from 0 on; None for rows that stand alone.
    """

    def __init__(self, rows: Predictions, groups: np.ndarray | None = None) -> None:
        counted = rows.weights > 0  # others may have an infinite loss
        self.k, s = rows.classes, rows.weights[counted]
        group = np.arange(len(rows.truth)) if groups is None else groups
        self.groups = int(group.max(initial=-1)) + 1
        group = group[counted]
        truth, predicted = rows.truth[counted], rows.predicted[counted]
        right = predicted == truth
        confidence = rows.confidence[counted]
        bins = np.clip(np.ceil(confidence * BINS).astype(np.int64) - 1, 0, BINS - 1)
        k, zero = self.k, np.zeros(len(s), dtype=np.int64)
        loss = rows.loss[counted]
        self._infinite = self._sums(zero, group, 1.0 * np.isinf(loss), 1)
        parts = {
            "truth": (truth, s, k),
            "predicted": (predicted, s, k),
            "right": (truth, s * right, k),
            "loss": (zero, s * np.where(np.isinf(loss), 0.0, loss), 1),
            "top": (zero, s * (rows.place[counted] < TOP_K), 1),
            "bins": (bins, s * (right - confidence), BINS),
        }
        ends = np.cumsum([size for _, _, size in parts.values()])
        self._slices = {
            name: slice(end - size, end)
            for (name, (_, _, size)), end in zip(parts.items(), ends, strict=True)
        }
        self._linear = sparse.vstack(
            [self._sums(row, group, value, size) for row, value, size in parts.values()], "csr"
        )
        self._ranks = []
        if rows.ranking is not None:
            for c in range(1, 2) if k == 2 else range(k):
                self._ranks.append(self._rank(rows.ranking[counted, c], truth == c, s, group))

    def _sums(
        self, row: np.ndarray, group: np.ndarray, value: np.ndarray, size: int
    ) -> sparse.csr_array:
        """The sums of values by row and group, sparse `(size, groups)`."""
        return sparse.csr_array(sparse.coo_array((value, (row, group)), shape=(size, self.groups)))

    def _rank(
        self, value: np.ndarray, positive: np.ndarray, s: np.ndarray, group: np.ndarray
    ) -> _Ranks:
        distinct, place = np.unique(value[positive], return_inverse=True)
        rest = value[~positive]
        segment = np.searchsorted(distinct, rest, "left") + np.searchsorted(distinct, rest, "right")
        return _Ranks(
            self._sums(place, group[positive], s[positive], len(distinct)),
            self._sums(segment, group[~positive], s[~positive], 2 * len(distinct) + 1),
        )

    @np.errstate(invalid="ignore", divide="ignore")  # what is not defined is NaN
    def __call__(self, counts: np.ndarray) -> dict[str, np.ndarray]:
        """Every measure by name, `(b,)` each, for how often each group counts, `(groups, b)`."""
        sums = self._linear @ counts
        part = {name: sums[rows] for name, rows in self._slices.items()}
        truth, predicted, right = part["truth"], part["predicted"], part["right"]
        total = truth.sum(axis=0)
        loss = part["loss"][0] / total
        loss = np.where((self._infinite @ counts)[0] > 0, np.inf, loss)
        share = truth / total
        entropy = 0.0 - np.sum(share * np.log(np.where(share > 0, share, 1.0)), axis=0)
        f1 = 2.0 * right / (truth + predicted)  # NaN for a class that does not occur
        out = {
            "error": (total - right.sum(axis=0)) / total,
            "loss": loss,
            "label_entropy": entropy,
            "usable_information": (entropy - loss) / np.log(2),
            "balanced_accuracy": _mean(right / truth),
            "f1": f1[1] if self.k == 2 else _mean(f1),
            "top5_accuracy": part["top"][0] / total,
            "calibration_error": np.abs(part["bins"]).sum(axis=0) / total,
        }
        if self._ranks:
            curves = np.array([ranks.curve(counts) for ranks in self._ranks])
            out["auroc"], out["recall_at_1pct_fpr"] = _mean(curves[:, 0]), _mean(curves[:, 1])
        return out


def _mean(values: np.ndarray) -> np.ndarray:
    """The mean over the first axis of what is defined; NaN where nothing is."""
    known = ~np.isnan(values)
    return np.where(known, values, 0.0).sum(axis=0) / known.sum(axis=0)


def bootstrap(measures: Measures, samples: int, rng: np.random.Generator) -> dict[str, np.ndarray]:
    """Every measure of bootstrap samples by name, `(samples,)` each.

    A sample draws as many groups as there are, with replacement, and each with all its rows: the
    cluster bootstrap (Davison & Hinkley 1997, section 3.8).
    """
    size, parts = measures.groups, []
    for start in range(0, samples, _AT_ONCE):
        counts = np.stack(
            [
                np.bincount(rng.integers(0, size, size), minlength=size)
                for _ in range(start, min(start + _AT_ONCE, samples))
            ],
            axis=1,
        )
        parts.append(measures(counts.astype(np.float64)))
    return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}
