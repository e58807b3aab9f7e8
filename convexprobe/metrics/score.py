"""Score predictions on labelled rows: every measure, and what bootstrap samples make of it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from math import log
from typing import Any

import numpy as np

from convexprobe._arguments import check_choice, check_real
from convexprobe._tables import html_table
from convexprobe.arrays.backend import Array, cast, generator, namespace
from convexprobe.arrays.elementwise import one_hot, pick
from convexprobe.metrics.measures import Measures, bootstrap
from convexprobe.metrics.predictions import Predictions

FORMATS = {
    "error": "{:.2%}", "balanced_accuracy": "{:.2%}", "f1": "{:.4f}", "auroc": "{:.4f}",
    "recall_at_1pct_fpr": "{:.2%}", "top5_accuracy": "{:.2%}", "loss": "{:.4f}",
    "label_entropy": "{:.4f}", "usable_information": "{:.4f}", "calibration_error": "{:.4f}",
}  # fmt: skip
"""The measures, in the order of a table, and how each is printed."""


@dataclass(frozen=True, kw_only=True, repr=False)
class Score:
    """A probe's performance on labelled rows, each counted by its weight. Prints as a table.

    `convexprobe.metrics.measures` has the formulas and their sources. A measure that the rows do
    not define is NaN, and so are `auroc` and `recall_at_1pct_fpr` where there are more than 2^24
    logits, rows times classes: they need all of them at once.

    Attributes:
        error: fraction of rows that are misclassified.
        loss: mean cross-entropy, nats; infinite if a row's class got probability 0.
        label_entropy: entropy of the labels, nats.
        rows: total weight of the rows, their number if unweighted.
        balanced_accuracy: mean recall of the classes that occur.
        f1: F1 of the second of two classes; of several the mean over the classes that occur.
        auroc: area under the ROC curve, of classes as `f1`, one against the rest.
        recall_at_1pct_fpr: recall at a false positive rate of at most 1 %, likewise.
        top5_accuracy: fraction of rows whose class is among the five most probable.
        calibration_error: expected calibration error in fifteen bins.
        confusion: weight of rows by true class and predicted class, host `(k, k)`; None where it
            was not recorded, see `LayerResult`.
        samples: the measures of bootstrap samples by name, host `(samples,)` each; samples of one
            seed are paired, so that differences of two scores on the same rows have intervals, too.
    """

    error: float
    loss: float
    label_entropy: float
    rows: float
    balanced_accuracy: float
    f1: float
    auroc: float
    recall_at_1pct_fpr: float
    top5_accuracy: float
    calibration_error: float
    confusion: np.ndarray | None = field(compare=False)
    samples: Mapping[str, np.ndarray] = field(default_factory=dict, compare=False)

    @property
    def bits(self) -> float:
        """Mean cross-entropy, bits."""
        return self.loss / log(2)

    @property
    def usable_information(self) -> float:
        """`H(Y) - loss`, bits: what the probe tells about the label (Xu et al. 2020).

        On rows that the probe was not fitted to it is an estimate; its error is that of the rows
        drawn, which `interval` tells. What the probe's gap bounds is the usable information of the
        rows that it was fitted to, `Probe.usable_information`.
        """
        return (self.label_entropy - self.loss) / log(2)

    def interval(self, measure: str, level: float = 0.95) -> tuple[float, float]:
        """The percentile interval of a measure over the bootstrap samples (Efron 1979).

        Samples that do not define the measure are left out.

        Args:
            measure: a name in `samples`.
            level: how much of the samples it holds, between 0 and 1.

        Raises:
            ValueError: there are no samples, no such measure, or another level.
        """
        if not self.samples:
            raise ValueError("interval: expected bootstrap samples, found none: pass bootstrap=")
        values = self.samples[check_choice("measure", measure, self.samples)]
        return percentiles(values, level)

    def to_row(self) -> dict[str, Any]:
        """The measures by name, and with samples their 95 % intervals as `_low` and `_high`."""
        row: dict[str, Any] = {"rows": self.rows}
        for name in FORMATS:
            row[name] = getattr(self, name)
            if name in self.samples:
                row[f"{name}_low"], row[f"{name}_high"] = self.interval(name)
        return row

    def _texts(self) -> dict[str, str]:
        """The measures as they are printed, with their intervals, by name."""
        out = {"rows": f"{self.rows:g}"}
        for name, form in FORMATS.items():
            out[name] = form.format(getattr(self, name))
            if name in self.samples:
                low, high = (form.format(v) for v in self.interval(name))
                out[name] += f"  {low} to {high}"
        return out

    def __str__(self) -> str:
        return "\n".join(f"{name:20} {text}" for name, text in self._texts().items())

    __repr__ = __str__

    def _repr_html_(self) -> str:
        return html_table([["measure", "value"], *map(list, self._texts().items())], left=(0, 1))


def percentiles(values: np.ndarray, level: float) -> tuple[float, float]:
    """The central interval that holds so much of the values, `(n,)`; of NaN alone, NaN."""
    if check_real("level", level, above=0.0) >= 1:
        raise ValueError(f"level: expected a number between 0 and 1, found {level}")
    known = values[~np.isnan(values)]
    if not len(known):
        return np.nan, np.nan
    ends = [(1 - level) / 2, (1 + level) / 2]
    # an order statistic: values may be infinite
    low, high = np.quantile(known, ends, method="inverted_cdf").tolist()
    return low, high


def score(
    rows: Predictions, groups: np.ndarray | None = None, *, samples: int = 0, seed: int = 0
) -> Score:
    """The score of predictions.

    Args:
        rows: the predictions.
        groups: the group of each row, `(n,)` integers from 0 on; None for rows that stand alone.
        samples: bootstrap samples of the groups.
        seed: of their draw.

    Raises:
        ValueError: no rows of positive weight.
    """
    if not (rows.weights > 0).any():
        raise ValueError("labels: expected at least one row to score, found none")
    measures = Measures(rows, groups)
    values = {n: float(v[0]) for n, v in measures(np.ones((measures.groups, 1))).items()}
    del values["usable_information"]
    cells = rows.truth * rows.classes + rows.predicted
    confusion = np.bincount(cells, rows.weights, minlength=rows.classes**2)
    return Score(
        **{"auroc": np.nan, "recall_at_1pct_fpr": np.nan, **values},
        rows=float(rows.weights.sum()),
        confusion=confusion.reshape(rows.classes, rows.classes),
        samples=bootstrap(measures, samples, generator(seed)) if samples else {},
    )


def tally(logits: Array, truth: Array, weights: Array | None = None) -> Array:
    """Weighted sums over rows, `(2 + k,)`: misclassified, loss in nats, and rows of each class.

    The predicted class is the first of those with the largest logit.

    Args:
        logits: `(k, n)`, of any library, as are the others; minus infinity for a class of
            probability 0.
        truth: class indices, `(n,)`.
        weights: row weights, `(n,)` float64; None counts every row once.
    """
    xp = namespace(logits)
    z = cast(logits, xp.float64)
    z = z - xp.max(z, axis=0, keepdims=True)
    own = pick(z[None, :, :], truth[None, :])[0, :]
    loss = xp.log(xp.sum(xp.exp(z), axis=0)) - own
    s = xp.ones_like(loss) if weights is None else weights
    loss = xp.where(s > 0, loss, 0.0)  # of a row that does not count it may be infinite
    wrong = cast(xp.argmax(logits, axis=0) != truth, xp.float64)
    counts = cast(one_hot(truth[None, :], logits.shape[0])[0, :, :], xp.float64) @ s
    return xp.concat([xp.stack([s @ wrong, s @ loss]), counts])
