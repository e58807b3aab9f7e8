"""A probe: its parameters, its certificate, its predictions and its scores."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch

from convexprobe._arguments import check_integer, shown
from convexprobe.arrays.backend import Array, like, namespace, to_numpy
from convexprobe.arrays.precision import full_precision
from convexprobe.arrays.ranks import Communicator
from convexprobe.metrics.score import Score, score
from convexprobe.probes.columns import as_vector
from convexprobe.probes.groups import read_groups
from convexprobe.probes.labels import check_labels, concept_place, known_codes
from convexprobe.probes.logits import check_logits, predicted, read_rows, unchecked_logits
from convexprobe.probes.options import check_weights
from convexprobe.solvers.solution import Solved, Status

OBJECTIVE = "F(W, b) = weighted mean cross-entropy + l2/2 ||W||^2, b free (0 with bias=False); nats"


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
        bias: `(k,)`; zeros for a fit without biases; minus infinity for a class that had no rows.
        classes: the `k` classes, in the order of the rows of `weights`.
        concept: the name of the concept that it is of; None for plain labels.
        validation_error: error on validation rows, or None without them; of several folds or seeds
            the mean.
        validation_errors: the error of each fold or seed; one number for validation rows that were
            given.
        rows: total weight `S` of the rows, their number if unweighted.
        scale: `(d,)` deviations of the features where the fit standardized them; the penalty is
            then `l2/2 ||W scale||^2`. None for the plain penalty.
        path: every penalty tried; empty if there was one.
    """

    weights: Array
    bias: Array
    classes: tuple[Any, ...]
    concept: str | None = None
    validation_error: float | None
    rows: float
    validation_errors: tuple[float, ...] = ()
    scale: Array | None = field(default=None, repr=False)
    path: tuple[PathPoint, ...] = field(default=(), repr=False)

    @property
    def C(self) -> float:
        """scikit-learn's `C` for the same problem: `1 / (l2 S)`, or `2 / (l2 S)` for two classes,
        of which scikit-learn fits one weight vector, their difference. With `scale` it is of a
        pipeline that begins with a StandardScaler."""
        scale = 2.0 if len(self.classes) == 2 else 1.0
        return np.inf if self.l2 == 0 else scale / (self.l2 * self.rows)

    @property
    def verdict(self) -> str:
        """The status in a few words; of a path also how many of its penalties are not certified,
        and whether the one chosen is the smallest or the largest.

        A choice among penalties can only be as good as their solutions, and beyond an edge may lie
        a better one.
        """
        missed = sum(point.status is not Status.CERTIFIED for point in self.path)
        name = self.status.name.lower()
        said = f"{name}, {missed} of {len(self.path)} l2 not" if missed else name
        tried = [point.l2 for point in self.path]
        if len(tried) > 2 and self.l2 in (min(tried), max(tried)):
            said += f", {'smallest' if self.l2 == min(tried) else 'largest'} l2"
        return said

    @property
    def usable_information(self) -> float:
        """`H(Y) - loss` on the rows it was fitted to, bits (Xu et al. 2020).

        The usable information of a family of predictors is `H(Y)` less their lowest cross-entropy.
        Let the family be the softmax-linear classifiers with `||W||` at most this probe's (as the
        penalty has the norm). None has a larger penalty than this probe, so its gap bounds how much
        lower their loss can be:

            usable_information <= that of the family <= usable_information + gap / log(2).

        It is of these rows; of rows that are held out see `Score.usable_information`.
        """
        return (self.label_entropy - self.loss) / np.log(2)

    def direction(self, name: Any) -> Array:
        """The unit vector `(d,)` along which a class's logit rises fastest above the others' mean.

        It is in the coordinates of the activations and in the library of the weights. Of a class
        `c` among those that had rows,

            v = W_c - mean_{j != c} W_j,    direction = v / ||v||.

        Of two classes it is the difference of their weights, the normal of the plane between them.
        Weights that all classes share change no prediction, and do not change it either. It is what
        is added to activations to steer a network (Li et al. 2023, "probe weight direction").

        Raises:
            ValueError: not one of the classes, one that had no rows, or weights that are all alike.
        """
        if name not in self.classes:
            raise ValueError(f"direction: expected one of {self.classes!r}, found {shown(name)}")
        index, present = self.classes.index(name), np.isfinite(to_numpy(self.bias))
        if not present[index]:
            raise ValueError(f"direction: the class {name!r} had no rows, so its weights are 0")
        weights = to_numpy(self.weights).astype(np.float64)
        others = present & (np.arange(len(present)) != index)
        vector = weights[index] - weights[others].mean(axis=0)
        length = np.linalg.norm(vector)
        if length == 0:
            raise ValueError("direction: the weights of all classes are the same; lower l2")
        return like(vector / length, self.weights, self.weights.dtype)

    @full_precision()
    def logits(self, x: Any) -> Array:
        """Logits `(n, k)` of rows `(n, d)`, in the rows' library; there may be no rows.

        Raises:
            ValueError: rows of another width, or values that are not finite: the first row.
        """
        rows = read_rows(self, x, "x")
        z = unchecked_logits(self, rows)
        check_logits(z, self, rows, 0, "activations['x']")
        return z

    @full_precision()
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
        """The class with the largest logit of each row, the first of them in `classes`, `(n,)`."""
        return as_vector(self.classes)[to_numpy(self.logits(x)).argmax(axis=1)]

    def evaluate(
        self,
        x: Any,
        labels: Any,
        process_group: Any = None,
        *,
        sample_weight: Any = None,
        groups: Any = None,
        bootstrap: int = 0,
        seed: int = 0,
    ) -> Score:
        """Every measure of the probe on labelled rows.

        Args:
            x: rows `(n, d)`.
            labels: their classes, `(n,)`.
            process_group: as for `fit_probes`: the score of all ranks' rows.
            sample_weight: `(n,)` non-negative weights.
            groups: as for `fit_probes`: a bootstrap sample takes all rows of a group or none.
            bootstrap: number of bootstrap samples, which give the measures their intervals.
            seed: of their draw.

        Raises:
            TypeError, ValueError: input refused as by `fit_probes`, a label that is no class, no
                rows of positive weight on any rank.
        """
        communicator = Communicator.of(process_group)
        with communicator.raise_together():
            rows = read_rows(self, x, "x").n
        draws = read_draws(groups, rows, bootstrap, seed, communicator)
        return evaluate_probe(
            self, x, labels, sample_weight, draws, communicator, layer="x", concept=None
        )

    def to_linear(self) -> torch.nn.Linear:
        """The probe as a torch layer that returns logits; it has its own memory."""
        k, d = self.weights.shape
        layer = torch.nn.utils.skip_init(torch.nn.Linear, d, k)
        with torch.no_grad():
            layer.weight.copy_(torch.tensor(to_numpy(self.weights)))
            layer.bias.copy_(torch.tensor(to_numpy(self.bias)))
        return layer


@dataclass(frozen=True)
class Draws:
    """The bootstrap samples that are asked for.

    Attributes:
        groups: group numbers of all ranks' rows, host `(n,)`, or None.
        samples: how many.
        seed: of the draws.
    """

    groups: np.ndarray | None
    samples: int
    seed: int


def read_draws(
    groups: Any, rows: int, bootstrap: Any, seed: Any, communicator: Communicator
) -> Draws:
    """The checked arguments of `evaluate` about its bootstrap samples; groups only with some."""
    with communicator.raise_together():
        samples = check_integer("bootstrap", bootstrap)
        check_integer("seed", seed)
    communicator.check_same(bootstrap=samples, seed=seed, groups=groups is not None)
    return Draws(read_groups(groups, rows, communicator), samples, seed)


@full_precision()
def evaluate_probe(
    probe: Probe,
    x: Any,
    labels: Any,
    weights: Any,
    draws: Draws,
    communicator: Communicator,
    *,
    layer: str,
    concept: str | None,
) -> Score:
    """`Probe.evaluate` for the labels of a concept, of which some may be unknown.

    `layer` is what messages call the rows.
    """
    what = concept_place("labels", concept)
    with communicator.raise_together():
        rows = read_rows(probe, x, layer)
        values = check_labels(labels, rows.n, what)
        codes, known = known_codes(concept, values, probe.classes, what)
        s = check_weights(weights, rows.n)
        if known is not None:
            s = known if s is None else known * s
    communicator.check_same(sample_weight="none" if weights is None else "some")
    said = predicted(probe, rows, codes, s, communicator, f"activations[{layer!r}]")
    if not (said.weights > 0).any():
        raise ValueError(f"{what}: expected at least one row to score, found none")
    return score(said, draws.groups, samples=draws.samples, seed=draws.seed)
