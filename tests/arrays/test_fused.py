"""Kernels of an evaluation's inner block against the function that they stand for."""

from __future__ import annotations

import ctypes
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from convexprobe.arrays import fused
from convexprobe.arrays.cupy_kernels import ROW
from convexprobe.arrays.elementwise import NEGLIGIBLE
from convexprobe.arrays.fused import one_expression, proven
from convexprobe.problem.softmax import RowTerms, best_row_terms, row_terms

needs_compiler = pytest.mark.skipif(shutil.which("g++") is None, reason="no C++ compiler")


@pytest.fixture(autouse=True)
def nothing_known(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fused, "_trusted", {})
    monkeypatch.setattr(fused, "_seen", {})


def block(
    dtype: type, k: int = 7, *, shared: bool = True, weighted: bool = True
) -> tuple[np.ndarray, np.ndarray, np.ndarray | None]:
    """Logits `(3, k, 50)` with an absent class, far and equal ones, labels and weights."""
    rng = np.random.default_rng(k)
    z = (10.0 * rng.standard_normal((3, k, 50))).astype(dtype)
    z[0, 1, :] -= 1e30
    z[1, :, 3] = 0.0
    z[2, 2, 4] += 500.0
    q = 1 if shared else 3
    labels = rng.integers(2, k, (q, 50))
    return z, labels, rng.exponential(size=(q, 50)).astype(dtype) if weighted else None


def close(found: Any, z: np.ndarray, labels: np.ndarray, weights: np.ndarray | None) -> None:
    wide = None if weights is None else weights.astype(np.float64)
    expected = row_terms(z.astype(np.float64), labels, wide)
    eps = float(np.finfo(z.dtype).eps)
    for a, b, name in zip(found, expected, RowTerms._fields, strict=True):
        a = np.asarray(a)
        assert a.dtype == z.dtype
        size = 1.0 + (0.0 if name in ("residual", "uncertainty") else np.abs(b))
        assert (np.abs(a - b) <= 60 * eps * size).all(), name


CASES = [(np.float32, True, True), (np.float64, False, True), (np.float32, False, False)]


@pytest.mark.parametrize(("dtype", "shared", "weighted"), CASES)
def test_the_expression_that_is_compiled_is_the_function(
    dtype: type, shared: bool, weighted: bool
) -> None:
    given = block(dtype, shared=shared, weighted=weighted)
    close(one_expression(*(None if a is None else torch.from_numpy(a) for a in given)), *given)  # type: ignore[arg-type]


@needs_compiler
def test_it_compiles_and_blocks_of_any_length_agree() -> None:
    for rows in (50, 31):
        z, labels, weights = block(np.float32)
        assert weights is not None
        z, labels, weights = z[:, :, :rows], labels[:, :rows], weights[:, :rows]
        z_, labels_, weights_ = (torch.from_numpy(a) for a in (z, labels, weights))
        close(proven(fused._torch_kernel, row_terms, z_, labels_, weights_), z, labels, weights)
        assert list(fused._trusted.values()) == [True]


SOURCE = """
#include <cmath>
using std::exp; using std::log;
template <typename T> void every(
    const T* z, const long long* labels, const T* weights, T least, long long classes,
    long long rows, bool labels_shared, bool weights_shared, T* residual, T* losses, T* entropies,
    T* uncertainties, T* tops, long long size) {
  for (long long i = 0; i < size; ++i) {
    T &loss = losses[i], &entropy = entropies[i], &uncertainty = uncertainties[i],
      &largest = tops[i];
    %s
  }
}
#define ENTRY(T) extern "C" void of_##T(const T* z, const long long* l, const T* w, T f, \\
    long long k, long long n, bool a, bool b, T* r, T* x, T* e, T* u, T* t, long long s) { \\
    every<T>(z, l, w, f, k, n, a, b, r, x, e, u, t, s); }
ENTRY(float)
ENTRY(double)
"""


@pytest.fixture(scope="module")
def library(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ctypes.CDLL]:
    """What a thread of the CuPy kernel does, compiled for the CPU."""
    folder = tmp_path_factory.mktemp("kernel")
    source, target = Path(folder, "row.cpp"), Path(folder, "row.so")
    source.write_text(SOURCE % ROW)
    subprocess.run(["g++", "-O1", "-shared", "-fPIC", source, "-o", target], check=True)
    yield ctypes.CDLL(str(target))


@needs_compiler
@pytest.mark.parametrize(("dtype", "shared", "weighted"), CASES)
def test_a_thread_of_the_cupy_kernel_does_one_row(
    dtype: type, shared: bool, weighted: bool, library: ctypes.CDLL
) -> None:
    z, labels, weights = block(dtype, shared=shared, weighted=weighted)
    given = np.ones((1, 50), dtype) if weights is None else weights
    m, k, rows = z.shape
    out = [np.empty_like(z), *(np.empty((m, rows), dtype) for _ in range(4))]

    def at(array: np.ndarray) -> ctypes.c_void_p:
        return ctypes.c_void_p(array.ctypes.data)

    size = ctypes.c_longlong
    single = dtype == np.float32
    least = (ctypes.c_float if single else ctypes.c_double)(NEGLIGIBLE)
    getattr(library, "of_float" if single else "of_double")(
        at(z), at(labels), at(given), least, size(k), size(rows), ctypes.c_bool(len(labels) == 1),
        ctypes.c_bool(len(given) == 1), *(at(a) for a in out), size(m * rows),
    )  # fmt: skip
    close(out, z, labels, weights)


def given() -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    z, labels, weights = block(np.float32)
    return torch.from_numpy(z), torch.from_numpy(labels), torch.from_numpy(weights)


def test_a_kernel_that_agrees_is_used_from_the_second_block_on() -> None:
    calls = []

    def kernel(*block: Any) -> RowTerms:
        calls.append(block)
        return RowTerms(*one_expression(*block))

    expected = row_terms(*given())
    for count in (1, 2, 3):
        found = proven(make(kernel), row_terms, *given())
        assert len(calls) == count
        torch.testing.assert_close(tuple(found), tuple(expected))


_makers: dict[Any, Any] = {}


def make(kernel: Any) -> Any:
    """One maker a kernel: kernels are known by it."""
    return _makers.setdefault(kernel, lambda: kernel)


@pytest.mark.parametrize("fault", ["wrong", "nan", "raises", "dtype"])
def test_a_kernel_that_differs_or_fails_is_tried_once_and_never_used(fault: str) -> None:
    calls = []

    def kernel(*block: Any) -> RowTerms:
        calls.append(block)
        terms = RowTerms(*one_expression(*block))
        if fault == "raises":
            raise RuntimeError("no such instruction")
        if fault == "dtype":
            return terms._replace(loss=terms.loss.double())
        value = torch.nan if fault == "nan" else 1e-3
        terms.residual[0, 0, 0] += value
        return terms

    for _ in range(3):
        found = proven(make(kernel), row_terms, *given())
        torch.testing.assert_close(tuple(found), tuple(row_terms(*given())), rtol=0, atol=0)
    assert len(calls) == 1


def test_a_full_device_is_no_fault_of_the_kernel() -> None:
    def kernel(*_: Any) -> RowTerms:
        raise torch.cuda.OutOfMemoryError("full")

    with pytest.raises(torch.cuda.OutOfMemoryError):
        proven(make(kernel), row_terms, *given())
    assert not fused._trusted


def test_a_kernel_is_compiled_once_it_pays(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fused, "BOUGHT", 2500.0)
    monkeypatch.setattr(fused, "_has_triton", lambda: True)
    z, _, _ = given()  # 1 050 logits
    assert [fused._pays(z) for _ in range(4)] == [False, False, True, True]
    monkeypatch.setattr(fused, "_has_triton", lambda: False)
    assert not fused._pays(z)


def test_on_a_cpu_nothing_is_compiled() -> None:
    found = best_row_terms(*given())
    torch.testing.assert_close(tuple(found), tuple(row_terms(*given())), rtol=0, atol=0)
    assert not fused._seen and not fused._trusted
