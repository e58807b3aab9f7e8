"""A family's data, the product with its rows, and the count of passes.

For each task (labels `y`, row weights `s` with `S = sum s_i`, penalty `l2`) the logits are
`z_i = W x_i + b`, and the adjoint takes residuals back: `sum_i R_i [x_i; 1]^T`.

The best bias of a class without rows is minus infinity: such a class is kept out of the softmax,
so that no gradient moves its weights from zero.

Shapes: a family has `m` tasks; `w` is `(m, p)` with `p = k (d + 1)`, the `(k, d)` weights in C
order and then the `k` biases, or `p = k d` in a family without biases. Logits are `(m, k, rows)`:
with the rows contiguous, softmax runs along the classes at full vector width, and both products are
plain matrix products.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, Self

import numpy as np

from convexprobe.activations.source import Source, in_smaller_blocks
from convexprobe.arrays.backend import (
    Array,
    beside,
    cast,
    compute_dtype,
    like,
    namespace,
    to_numpy,
)
from convexprobe.arrays.elementwise import mirrored, one_hot
from convexprobe.arrays.products import adds_by_class, combine_rows, dot_rows, sum_by_class
from convexprobe.arrays.ranks import ALONE, Communicator
from convexprobe.arrays.split_products import pays
from convexprobe.problem.kept_logits import kept_columns
from convexprobe.problem.tasks import take_own, take_tasks

_ABSENT = -1e30
"""Logit offset of a class without rows: finite, so that 0 times it is 0 and not NaN."""

CALLS = 5e6
"""Flops of a pass that take the time of a step's calls, which no problem is too small for."""

BY_CLASS = 32
"""Classes from which rows are added to their class's sum: a product with indicators takes longer,
and fewer classes would add more rows to one sum."""


class LinearModel:
    """A family of `m` convex tasks over one source of rows; counts the passes it spends.

    Args:
        rows: the source.
        labels: class indices `0..k-1`, `(n,)` shared or `(m, n)`, on the rows' device.
        l2: penalties, `(m,)` host floats, each at least 0.
        classes: number of classes `k`.
        weights: non-negative row weights, `(n,)` shared or `(m, n)`, or None for equal weights.
        bias: whether there are biases; False holds all of them at 0 (those of absent classes stay
            out).
        communicator: the ranks over which rows are dealt out. Arrays with an axis of rows are this
            rank's, and so are sums over rows until they are `all_reduce`d.

    Attributes:
        host_l2: penalties, host `(m,)`.
        l2: the same on the rows' device, float64.
        n: number of rows of all ranks.
        own: which of them this rank holds.
        capacity: rows that a sample may hold: as many as fit on every rank, wherever they lie.
        host_total: `S`, host `(m or 1,)`.
        kept_columns: the most logits of a row, `m k`, with which the logits of all rows are kept.
        frequency: weighted class frequencies, `(m, k)` float64.
        moment: `(1/S) sum_i s_i Y_i x_i^T`, `(m or 1, k, d)` float64.
        mean: weighted feature mean, `(m or 1, d)` float64.
        label_entropy: `H(Y)`, loss of the best constant classifier, nats, host `(m,)`.
    """

    def __init__(
        self,
        rows: Source,
        labels: Array,
        l2: Any,
        *,
        classes: int,
        weights: Array | None = None,
        bias: bool = True,
        communicator: Communicator = ALONE,
    ) -> None:
        self.rows, self.k, self.d, self.bias = rows, classes, rows.d, bias
        self.communicator, self.all_reduce = communicator, communicator.all_reduce
        self.own, self.n = communicator.span(rows.n)
        room = rows.capacity if rows.capacity < rows.n else self.n
        self.capacity = int(communicator.counts(room).min())
        self.xp = namespace(rows.reference)
        self.dtype = compute_dtype(rows.reference)
        item = 8 if self.dtype == self.xp.float64 else 4
        columns = kept_columns(rows.n, self.n, item, rows.room, streamed=rows.streamed)
        self.kept_columns = int(communicator.counts(columns).min())
        self.labels = labels if labels.ndim == 2 else labels[None, :]
        given = None if weights is None else weights if weights.ndim == 2 else weights[None, :]
        self.weights = None if given is None else cast(given, self.dtype)
        self._given_weights = given  # for a family in a wider dtype: rounded, they are others
        self.host_l2 = np.atleast_1d(np.asarray(l2, dtype=np.float64))
        self.m = max(len(self.host_l2), self._data_tasks())
        self.host_l2 = np.broadcast_to(self.host_l2, (self.m,)).copy()
        self.l2 = like(self.host_l2, rows.reference)
        self.p = self.k * (self.d + 1 if bias else self.d)
        self._products = 0.0
        self._look: Callable[[], None] | None = None
        self._parent: LinearModel | None = None
        self._moments()

    def _data_tasks(self) -> int:
        """How many tasks differ in labels or weights: `m`, or 1 if all share them."""
        return max(self.labels.shape[0], 1 if self.weights is None else self.weights.shape[0])

    @in_smaller_blocks
    def _class_sums(self) -> Array:
        """`sum_i s_i Y_i [x_i; 1]^T` over this rank's rows, `(m or 1, k, d + 1)`."""
        xp, q, sums = self.xp, self._data_tasks(), 0.0
        by_class = self.k >= BY_CLASS and adds_by_class(self.rows.reference)
        for span, x in self.blocks(once=True):
            sums = sums + (self._added(span, x) if by_class else self._multiplied(span, x))
            self.count_rows(x.shape[0])
        return xp.reshape(sums, (q, self.k, self.d + 1))

    def _added(self, span: slice, x: Array) -> Array:
        """The class sums of a block, one row after the other."""
        xp, labels, weights = self.xp, self.labels_at(span), self.weights_at(span)
        sums: list[Array] = []
        for task in range(self._data_tasks()):
            own = labels[min(task, labels.shape[0] - 1), :]
            share = weights[min(task, weights.shape[0] - 1), :, None]
            rows = x if self.weights is None else x * share
            both = [sum_by_class(part, own, self.k) for part in (rows, share)]
            sums.append(xp.concat(both, axis=1))
        return xp.stack(sums)

    def _multiplied(self, span: slice, x: Array) -> Array:
        """The class sums of a block, as a product with its indicators."""
        xp = self.xp
        indicator = cast(one_hot(self.labels_at(span), self.k), self.dtype)
        if self.weights is not None:
            indicator = indicator * self.weights_at(span)[:, None, :]
        ones = xp.ones((x.shape[0], 1), dtype=self.dtype, device=x.device)
        flat = xp.reshape(indicator, (self._data_tasks() * self.k, -1))
        return cast(xp.concat([combine_rows(flat, x), flat @ ones], axis=1), xp.float64)

    def _moments(self) -> None:
        """Set class frequencies, moments and the feature mean: half a pass, once."""
        xp = self.xp
        (totals,) = self.all_reduce(self._class_sums())
        self.total = xp.sum(totals[:, :, -1], axis=1)  # S, (q,)
        self.moment = totals[:, :, :-1] / self.total[:, None, None]
        self.mean = xp.sum(self.moment, axis=1)
        frequency = totals[:, :, -1] / self.total[:, None]
        self.frequency = xp.broadcast_to(frequency, (self.m, self.k))
        self.absent = cast(self.frequency <= 0, self.dtype) * _ABSENT
        self.host_total, host = to_numpy(self.total), to_numpy(self.frequency)
        safe = np.where(host > 0, host, 1.0)
        self.label_entropy = -np.sum(host * np.log(safe), axis=1)

    @property
    def keeps_logits(self) -> bool:
        """Whether the logits of all rows have room beside them, on every rank."""
        return self.m * self.k <= self.kept_columns

    def count_rows(self, rows: float) -> None:
        """Count a product with so many rows of this rank.

        The products below count themselves, so that no solver can forget to. Only work in another
        form (a Gram matrix, say) calls this.
        """
        root = self._parent or self
        root._products += rows
        self.communicator.look()
        if root._look is not None:
            root._look()

    def watch(self, look: Callable[[], None] | None) -> None:
        """Call `look`, which may raise, at every product with rows from now on; None ends it."""
        (self._parent or self)._look = look

    @property
    def passes(self) -> float:
        """Products with rows so far, of this family and every part of it, in passes.

        A pass is two products with every row: logits and gradient. Over ranks this is a message.
        """
        products = np.asarray((self._parent or self)._products)
        return float(self.all_reduce(products)[0]) / (2.0 * self.n)

    def take_tasks(self, index: list[int], l2: np.ndarray | None = None) -> Self:
        """The family of these tasks, with other penalties `l2` if given; a task may stand twice.

        Its passes count in this family.
        """
        out = object.__new__(type(self))
        out.__dict__.update(self.__dict__)
        out._parent = self._parent or self
        out.m, out.host_l2 = len(index), self.host_l2[index] if l2 is None else l2
        out.l2 = like(out.host_l2, self.rows.reference)
        shared = ("labels", "weights", "_given_weights", "moment", "mean", "total", "host_total")
        for name in shared:
            setattr(out, name, take_own(getattr(self, name), index))
        for name in ("frequency", "absent", "label_entropy"):
            setattr(out, name, take_tasks(getattr(self, name), index))
        return out

    def on_rows(self, rows: Source) -> Self:
        """The same tasks on other rows, of the same order; a family of its own, with its passes."""
        return type(self)(
            rows,
            self.labels,
            self.host_l2,
            classes=self.k,
            weights=self._given_weights,
            bias=self.bias,
            communicator=self.communicator,
        )

    def labels_at(self, index: slice | Array) -> Array:
        """Class indices of this rank's rows of a slice or an index, `(m or 1, r)`."""
        return self._at(self.labels, index)

    def weights_at(self, index: slice | Array) -> Array:
        """Weights of this rank's rows of a slice or an index, `(m or 1, r)`; ones if equal."""
        if self.weights is not None:
            return self._at(self.weights, index)
        if isinstance(index, slice):
            rows = len(range(*index.indices(self.rows.n)))
        else:
            rows = index.shape[0]
        return self.xp.ones((1, rows), dtype=self.dtype, device=self.labels.device)

    def row_sum(self, values: Array, span: slice) -> Array:
        """The sum `(m,)` float64 of values `(m, r)` of rows of a slice, times the rows' weights."""
        if self.weights is not None:
            values = values * self.weights_at(span)
        return self.xp.sum(values, axis=1, dtype=self.xp.float64)

    def _at(self, array: Array, index: slice | Array) -> Array:
        if isinstance(index, slice):
            return array[:, index]
        return self.xp.take(array, beside(index, array), axis=1)

    def split(self, w: Array) -> tuple[Array, Array]:
        """Weights `(m, k, d)` and biases `(m, k)` of `w`; zeros in a family without biases."""
        m, cut = w.shape[0], self.k * self.d
        if not self.bias:
            bias = self.xp.zeros((m, self.k), dtype=w.dtype, device=w.device)
            return self.xp.reshape(w, (m, self.k, self.d)), bias
        return self.xp.reshape(w[:, :cut], (m, self.k, self.d)), w[:, cut:]

    def join(self, weights: Array, bias: Array) -> Array:
        """`w`, `(m, p)`, from weights `(m, k, d)` and biases `(m, k)`, dropped without biases."""
        flat = self.xp.reshape(weights, (weights.shape[0], self.k * self.d))
        return self.xp.concat([flat, bias], axis=1) if self.bias else flat

    def centre(self, mean: Array) -> Array:
        """The point from which features are measured so that biases decouple from weights.

        It is their weighted mean (any array). Without biases there is nothing to decouple: zeros.
        """
        return mean if self.bias else self.xp.zeros_like(mean)

    def constant_classifier(self) -> Array:
        """The best constant classifier: zero weights, log-frequencies as biases, `(m, p)`.

        Without biases it is all zeros: every class that has rows is equally likely.
        """
        xp = self.xp
        present = self.frequency > 0
        bias = xp.where(present, xp.log(xp.where(present, self.frequency, 1.0)), 0.0)
        zeros = xp.zeros((self.m, self.k, self.d), dtype=xp.float64, device=bias.device)
        return self.join(zeros, bias)

    def blocks(self, *, once: bool = False) -> Iterator[tuple[slice, Array]]:
        """Row slices and rows, as `Source.blocks` has them, for products of this module.

        They stay in half precision where those are then faster (`arrays/split_products.py`).
        """
        rows: Any = self.rows
        more = {"narrow": True} if self.multiplies_narrow else {}
        return rows.blocks(self.m * self.k, once=once, **more)

    @property
    def multiplies_narrow(self) -> bool:
        """Whether products read rows in half precision as they are kept."""
        columns = self.m * (1 if self.k == 2 else self.k)
        return self.rows.has_narrow and pays(self.rows.reference, columns)

    def logits(self, w: Array, x: Array, out: Array | None = None) -> Array:
        """`W x_i + b` for rows `x` `(r, d)`: `(m, k, r)` in the compute dtype; half their pass.

        With two classes, both logits of a row may be off by one number, which softmax cancels.

        Args:
            w: the point, `(m, p)`.
            x: the rows.
            out: where to write them, `(m, k, r)` of all rows' logits, or None for a new array.
        """
        self.count_rows(x.shape[0])
        return self._logits(w, x, out)

    def _logits(self, w: Array, x: Array, out: Array | None = None) -> Array:
        weights, bias = self.split(w)
        return self._affine(weights, cast(bias, self.dtype) + self.absent, x, out)

    def directions(self, v: Array, x: Array, out: Array | None = None) -> Array:
        """`V x_i + c` for rows `x`: logits without the offsets of absent classes."""
        self.count_rows(x.shape[0])
        weights, bias = self.split(v)
        return self._affine(weights, cast(bias, self.dtype), x, out)

    def difference(self, v: Array, x: Array) -> Array:
        """How far the second of two classes' `directions` is above the first's, `(m, 1, r)`."""
        self.count_rows(x.shape[0])
        weights, bias = self.split(v)
        flat = cast(weights[:, 1, :] - weights[:, 0, :], self.dtype)
        return (dot_rows(flat, x) + cast(bias[:, 1:] - bias[:, :1], self.dtype))[:, None, :]

    def _affine(self, weights: Array, bias: Array, x: Array, out: Array | None) -> Array:
        xp, (m, r), bias = self.xp, (weights.shape[0], x.shape[0]), bias[:, :, None]
        if self.k == 2:  # the classes' difference alone matters: one column, not two
            half = dot_rows(cast(0.5 * (weights[:, 1, :] - weights[:, 0, :]), self.dtype), x)
            if out is None:
                out = xp.empty((m, 2, r), dtype=self.dtype, device=weights.device)
            return mirrored(half, bias, out)
        flat = xp.reshape(cast(weights, self.dtype), (-1, self.d))
        if out is None:
            out = xp.reshape(dot_rows(flat, x), (m, self.k, r))
        else:  # a view: rows of tasks and classes follow one another
            dot_rows(flat, x, xp.reshape(out, (m * self.k, r)))
        out += bias
        return out

    def penalty(self, w: Array) -> Array:
        """`l2 [W; 0]`, `(m, p)`: the gradient of the penalty."""
        weights, bias = self.split(w)
        return self.join(weights * self.l2[:, None, None], bias * 0.0)

    def over_penalty(self, square: Array, unpenalised: Array | float) -> Array:
        """`square / (2 l2)`, `(m,)`, and `unpenalised` for tasks without a penalty."""
        xp, l2 = self.xp, self.l2
        return xp.where(l2 > 0, square / (2.0 * xp.where(l2 > 0, l2, 1.0)), unpenalised)

    @in_smaller_blocks
    def logit_change(self, v: Array) -> Array:
        """`V x_i + c` of all rows, `(m, k, n)`: how logits change along `v`; half a pass."""
        out = self.empty_logits(v)
        for span, x in self.blocks(once=True):
            self.directions(v, x, out[:, :, span])
        return out

    def empty_logits(self, w: Array) -> Array:
        """Uninitialised memory for the logits of this rank's rows, `(m, k, n)`."""
        shape = (w.shape[0], self.k, self.rows.n)
        return self.xp.empty(shape, dtype=self.dtype, device=w.device)
