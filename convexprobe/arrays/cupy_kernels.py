"""Kernels for CuPy, in C++: what the array standard offers would read its arrays many times."""

from __future__ import annotations

from collections.abc import Callable

from convexprobe.arrays.backend import Array, cast

ROW = """
    const long long task = i / rows, row = i - task * rows, start = task * classes * rows + row;
    const long long own = labels[labels_shared ? row : i];
    const T weight = weights[weights_shared ? row : i];
    T top = z[start];
    for (long long c = 1; c < classes; ++c) {
        const T logit = z[start + c * rows];
        top = logit > top || logit != logit ? logit : top;
    }
    T total = 0, mean = 0, square = 0;
    for (long long c = 0; c < classes; ++c) {
        const T logit = z[start + c * rows] - top;
        const T e = logit <= least ? T(0) : exp(logit);
        total += e;
        mean += e * logit;
        square += e * e;
    }
    for (long long c = 0; c < classes; ++c) {
        const T logit = z[start + c * rows] - top;
        const T e = logit <= least ? T(0) : exp(logit);
        residual[start + c * rows] = (e / total - T(c == own)) * weight;
    }
    const T log_total = log(total);
    loss = (log_total - (z[start + own * rows] - top)) * weight;
    entropy = (log_total - mean / total) * weight;
    uncertainty = T(1) - square / total / total;
    largest = top * weight;
"""
"""One row of one task, number `i` of them: what a thread does for `cupy_row_terms`."""


def cupy_row_terms() -> Callable[[Array, Array, Array, float], tuple[Array, ...]]:
    """The kernel of `problem.softmax.row_terms`: a function of its arguments, and of the logit
    below the largest at which a probability is 0, that returns the fields of `RowTerms`.

    Raises:
        ImportError: without CuPy or a driver.
    """
    import cupy

    kernel = cupy.ElementwiseKernel(
        "raw T z, raw int64 labels, raw T weights, T least, int64 classes, int64 rows, "
        "bool labels_shared, bool weights_shared",
        "raw T residual, T loss, T entropy, T uncertainty, T largest",
        ROW,
        "convexprobe_row_terms",
    )

    def terms(z: Array, labels: Array, weights: Array | None, least: float) -> tuple[Array, ...]:
        m, classes, rows = z.shape
        z, labels = cupy.ascontiguousarray(z), cupy.ascontiguousarray(cast(labels, cupy.int64))
        given = cupy.ones((1, rows), dtype=z.dtype) if weights is None else weights
        residual = cupy.empty_like(z)
        rest = [cupy.empty((m, rows), dtype=z.dtype) for _ in range(4)]
        shared = labels.shape[0] == 1, given.shape[0] == 1
        given = cupy.ascontiguousarray(given)
        if m * rows:  # a rank may hold no row
            kernel(z, labels, given, z.dtype.type(least), classes, rows, *shared, residual, *rest)
        return residual, *rest

    return terms
