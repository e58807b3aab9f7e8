"""A probe: its parameters, its certificate, its predictions and its scores."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch

from convexprobe.activations.checks import check_activations
from convexprobe.activations.placement import place
from convexprobe.arrays.backend import Array, compute_dtype, like, namespace, to_numpy
from convexprobe.arrays.ranks import Communicator
from convexprobe.metrics.score import Score, score
from convexprobe.probes.classes import encode
from convexprobe.probes.columns import as_vector
from convexprobe.probes.labels import check_labels
from convexprobe.solvers.solution import Solved, Status

OBJECTIVE = "F(W, b) = weighted mean cross-entropy + l2/2 ||W||^2, b free; nats"


@dataclass(frozen=True, kw_only=True)
class PathPoint(Solved):
    """One penalty of a path: `Solved`, and error and loss (nats) on validation rows."""

    validation_error: float
    validation_loss: float


@dataclass(frozen=True, kw_only=True)
class Probe(Solved):
    """A softmax-linear classifier of one layer, with its certificate.

    The attributes of `Solved` (`passes` and `seconds` are those of the whole path), and

        weights: `(k, d)`, in the library and on the device of the activations.
        bias: `(k,)`; minus infinity for a class that had no rows.
        classes: the `k` classes, in the order of the rows of `weights`.
        validation_error: error on validation rows, or None without them.
        rows: total weight `S` of the rows, their number if unweighted.
        path: every penalty tried; empty if there was one.
    """

    weights: Array
    bias: Array
    classes: tuple[Any, ...]
    validation_error: float | None
    rows: float
    path: tuple[PathPoint, ...] = field(default=(), repr=False)

    @property
    def C(self) -> float:
        """scikit-learn's `C` for the same problem: `1 / (l2 S)`, or `2 / (l2 S)` for two classes,
        of which scikit-learn fits one weight vector, their difference."""
        scale = 2.0 if len(self.classes) == 2 else 1.0
        return np.inf if self.l2 == 0 else scale / (self.l2 * self.rows)

    @property
    def verdict(self) -> str:
        """The status in a few words: of a path, also how many of its penalties are not certified.

        A choice among penalties can only be as good as their solutions.
        """
        missed = sum(point.status is not Status.CERTIFIED for point in self.path)
        name = self.status.name.lower()
        return f"{name}, {missed} of {len(self.path)} l2 not" if missed else name

    def logits(self, x: Any) -> Array:
        """Logits `(n, k)` of rows `(n, d)`, in the rows' library; there may be no rows.

        Raises:
            ValueError: rows of another width.
        """
        rows = place(check_activations(x, min_rows=0)["activations"], None, 0.0)
        if rows.d != self.weights.shape[1]:
            raise ValueError(f"expected {self.weights.shape[1]} features, found {rows.d}")
        xp, dtype = namespace(rows.reference), compute_dtype(rows.reference)
        weights, bias = (
            like(to_numpy(a), rows.reference, dtype) for a in (self.weights, self.bias)
        )
        out = [block @ weights.T + bias[None, :] for _, block in rows.blocks()]
        return xp.concat(out, axis=0)

    def predict_log_proba(self, x: Any) -> Array:
        """Log-probabilities `(n, k)` of rows `(n, d)`; see `logits`."""
        z = self.logits(x)
        xp = namespace(z)
        z = z - xp.max(z, axis=1, keepdims=True)
        return z - xp.log(xp.sum(xp.exp(z), axis=1, keepdims=True))

    def predict_proba(self, x: Any) -> Array:
        """Probabilities `(n, k)` of rows `(n, d)`, columns in the order of `classes`."""
        log_p = self.predict_log_proba(x)
        return namespace(log_p).exp(log_p)

    def predict(self, x: Any) -> np.ndarray:
        """Most probable class of each row, host `(n,)`."""
        codes = to_numpy(self.predict_log_proba(x)).argmax(axis=1)
        return as_vector(self.classes)[codes]

    def evaluate(self, x: Any, labels: Any, process_group: Any = None) -> Score:
        """Error, loss and usable information on labelled rows, of all ranks of `process_group`.

        Raises:
            ValueError: rows of another width, a label that is no class, no rows on any rank.
        """
        communicator = Communicator.of(process_group)
        with communicator.raise_together():
            log_p = to_numpy(self.predict_log_proba(x))
            codes = encode(check_labels(labels, len(log_p)), self.classes)
        return score(log_p, codes, communicator)

    def to_linear(self) -> torch.nn.Linear:
        """The probe as a torch layer that returns logits; it has its own memory."""
        k, d = self.weights.shape
        layer = torch.nn.utils.skip_init(torch.nn.Linear, d, k)
        with torch.no_grad():
            layer.weight.copy_(torch.tensor(to_numpy(self.weights)))
            layer.bias.copy_(torch.tensor(to_numpy(self.bias)))
        return layer
