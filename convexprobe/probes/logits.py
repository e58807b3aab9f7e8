"""A probe's logits of rows of any source, and what labelled rows make of them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

import numpy as np

from convexprobe.activations.checks import check_activations, check_finite
from convexprobe.activations.placement import place
from convexprobe.activations.source import Source
from convexprobe.arrays.backend import (
    Array,
    cast,
    compute_dtype,
    like,
    move,
    namespace,
    on_cpu,
    to_numpy,
)
from convexprobe.arrays.precision import full_precision
from convexprobe.arrays.products import dot_rows
from convexprobe.arrays.ranks import Communicator
from convexprobe.metrics.predictions import MOST_LOGITS, Predictions, joined, predictions
from convexprobe.metrics.score import tally


class Linear(Protocol):
    """What logits need of a probe: `weights` `(k, d)` and `bias` `(k,)`."""

    @property
    def weights(self) -> Array: ...

    @property
    def bias(self) -> Array: ...


def predicted(
    probe: Linear,
    rows: Source,
    codes: np.ndarray,
    weights: np.ndarray | None,
    communicator: Communicator,
    where: str,
) -> Predictions:
    """What the probe says of all ranks' rows, of known classes `(n,)` and with weights `(n,)`.

    Raises:
        ValueError: on every rank, a row whose logits are not finite.
    """
    rank = communicator.span(rows.n)[1] * probe.weights.shape[0] <= MOST_LOGITS
    with communicator.raise_together():
        own, blocks = _parameters(probe, rows), []
        for span, block in rows.blocks():
            communicator.look()
            z = _product(block, *own)
            check_logits(z, probe, rows, span.start, where)
            counted = None if weights is None else weights[span]
            blocks.append(predictions(to_numpy(z), codes[span], counted, rank=rank))
    return joined(blocks).gather(communicator)


def read_rows(probe: Linear, x: Any, layer: str) -> Source:
    """The rows of an array or a store, of the probe's width."""
    rows = place(check_activations({layer: x}, min_rows=0)[layer], None, 0.0)
    if rows.d != probe.weights.shape[1]:
        raise ValueError(
            f"activations[{layer!r}]: expected {probe.weights.shape[1]} features, found {rows.d}"
        )
    return rows


@full_precision()
def tallies(
    probes: Sequence[Linear],
    rows: Source,
    codes: np.ndarray,
    weights: np.ndarray | None,
    where: str,
) -> list[np.ndarray]:
    """What `tally` sums for each probe of a layer, over rows that are read once.

    Raises:
        ValueError: a row whose logits are not finite.
    """
    parameters, host = [_parameters(probe, rows) for probe in probes], on_cpu(rows.reference)
    xp = np if host else namespace(rows.reference)
    sums: list[Array] = [0.0] * len(probes)
    bad: list[Array] = [0.0] * len(probes)
    for span, block in rows.blocks():
        truth, s = codes[span], None if weights is None else weights[span]
        if not host:
            truth, s = like(truth, block), None if s is None else like(s, block)
        for i, (own, bias) in enumerate(parameters):
            z = _by_class(block, own, bias)
            if host:  # at the first block at fault: looking costs nothing
                check_logits(z.T, probes[i], rows, span.start, where)
                z = to_numpy(z)
            else:
                bad[i] = bad[i] + xp.sum(cast(_overflowing(z.T, bias), xp.float64))
            sums[i] = sums[i] + tally(z, truth, s)
    if host:
        return sums
    sizes = np.cumsum([probe.weights.shape[0] + 2 for probe in probes])
    *found, faults = np.split(to_numpy(xp.concat([*sums, xp.stack(bad)])), sizes)
    if faults.any():
        _refuse_overflow(probes[int(faults.argmax())], rows, where)
    return found


def unchecked_logits(probe: Linear, rows: Source) -> Array:
    """Logits `(n, k)` of rows of the probe's width, finite or not."""
    parameters = _parameters(probe, rows)
    blocks = [_product(block, *parameters) for _, block in rows.blocks()]
    return namespace(rows.reference).concat(blocks, axis=0)


def _parameters(probe: Linear, rows: Source) -> tuple[Array, Array]:
    """Weights and bias where the rows are multiplied, in the dtype of the products."""
    reference, dtype = rows.reference, compute_dtype(rows.reference)
    return move(probe.weights, reference, dtype), move(probe.bias, reference, dtype)


@np.errstate(over="ignore", invalid="ignore")  # checked afterwards, on every library
def _product(block: Array, weights: Array, bias: Array) -> Array:
    return block @ weights.T + bias[None, :]


@np.errstate(over="ignore", invalid="ignore")
def _by_class(block: Array, weights: Array, bias: Array) -> Array:
    """Logits `(k, n)`: sums over the classes are then fast."""
    return dot_rows(weights, block) + bias[:, None]


def _overflowing(z: Array, bias: Array) -> Array:
    """Which rows `(n,)` have logits `(n, k)` that are not finite.

    A class without rows has minus infinity for a bias, and for its logits.
    """
    xp = namespace(z)
    return xp.any(~(xp.isfinite(z) | (bias == -xp.inf)[None, :]), axis=1)


def check_logits(z: Array, probe: Linear, rows: Source, start: int, where: str) -> None:
    """Refuse logits that are not finite, of rows from `start` on; name the first row at fault."""
    bad = _overflowing(z, move(probe.bias, z, z.dtype))
    if bool(namespace(z).any(bad)):
        check_finite(rows, where)
        row = start + int(to_numpy(bad).argmax())
        raise ValueError(f"{where}: row {row} is so large that its logits overflow; scale it down")


def _refuse_overflow(probe: Linear, rows: Source, where: str) -> None:
    """Find the row whose logits are not finite, and refuse it."""
    own = _parameters(probe, rows)
    for span, block in rows.blocks():
        check_logits(_product(block, *own), probe, rows, span.start, where)
