"""Bad activations are refused at the door: where they are, what was expected, what was found."""

from __future__ import annotations

from collections.abc import Callable
from types import ModuleType
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from scipy.sparse import coo_array, csr_matrix

from convexprobe import Status
from convexprobe.activations.checks import check_activations
from tests.refusals import LABELS, Case, D, N, check_refused, fit, rows, spoiled, weights

REFUSED: dict[str, Case] = {
    "NaN": (lambda: fit(spoiled(7, 2, np.nan)), ValueError, ["fc1", "finite", "nan", "row 7"]),
    "inf": (lambda: fit(spoiled(0, 1, np.inf)), ValueError, ["fc1", "inf", "row 0", "feature 1"]),
    "-inf": (lambda: fit(spoiled(39, 0, -np.inf)), ValueError, ["fc1", "-inf", "row 39"]),
    "NaN in float32": (
        lambda: fit(spoiled(7, 2, np.nan, np.float32)),
        ValueError,
        ["fc1", "nan", "row 7"],
    ),
    "NaN, auto": (lambda: fit(spoiled(7, 2, np.nan), l2="auto"), ValueError, ["fc1", "row 7"]),
    "inf, auto": (lambda: fit(spoiled(7, 2, np.inf), l2="auto"), ValueError, ["fc1", "row 7"]),
    "NaN in a row of weight 0": (
        lambda: fit(spoiled(7, 2, np.nan), sample_weight=weights(7, 0.0)),
        ValueError,
        ["fc1", "row 7"],
    ),
    "several bad rows": (
        lambda: fit({"fc1": np.where(np.arange(N)[:, None] > 34, np.nan, rows())}),
        ValueError,
        ["fc1", "row 35", "bad rows: 5 of 40"],
    ),
    "no layers": (lambda: fit({}), ValueError, ["activations", "at least one", "none"]),
    "layers of unequal lengths": (
        lambda: fit({"conv1": rows(), "fc1": rows(39)}),
        ValueError,
        ["fc1", "conv1", "40", "39"],
    ),
    "no rows": (lambda: fit({"fc1": rows(0)}, []), ValueError, ["fc1", "(0, 3)"]),
    "no features": (lambda: fit({"fc1": rows(d=0)}), ValueError, ["fc1", "(40, 0)"]),
    "one axis": (lambda: fit({"fc1": np.zeros(N)}), ValueError, ["fc1", "(rows, feat", "(40,)"]),
    "three axes": (lambda: fit({"fc1": np.zeros((N, 2, 2))}), ValueError, ["fc1", "(40, 2, 2)"]),
    "objects": (lambda: fit({"fc1": rows().astype(object)}), TypeError, ["fc1", "object"]),
    "strings": (lambda: fit({"fc1": rows().astype(str)}), TypeError, ["fc1", "numeric", "<U"]),
    "complex": (lambda: fit({"fc1": rows() + 1j}), TypeError, ["fc1", "real", "complex"]),
    "layer name": (lambda: fit({3: rows()}), TypeError, ["string", "3 (int)"]),
    "long double": (
        lambda: fit({"fc1": rows().astype(np.longdouble)}),
        TypeError,
        ["fc1", "wider than float64", "astype(np.float64)"],
    ),
    "masked": (
        lambda: fit({"fc1": np.ma.masked_less(rows(), 0)}),
        TypeError,
        ["fc1", "masked", "mask would be ignored", "filled"],
    ),
    "masked without a masked value": (
        lambda: fit({"fc1": np.ma.masked_array(rows())}),
        TypeError,
        ["fc1", "masked"],
    ),
    "SciPy matrix": (
        lambda: fit({"fc1": csr_matrix(rows())}),
        TypeError,
        ["fc1", "csr_matrix", "toarray"],
    ),
    "SciPy array": (
        lambda: fit({"fc1": coo_array(rows())}),
        TypeError,
        ["fc1", "coo_array", "toarray"],
    ),
    "sparse tensor": (
        lambda: fit({"fc1": torch.tensor(rows()).to_sparse()}),
        TypeError,
        ["fc1", "sparse_coo", "to_dense"],
    ),
    "compressed sparse tensor": (
        lambda: fit({"fc1": torch.tensor(rows()).to_sparse_csr()}),
        TypeError,
        ["fc1", "sparse_csr", "to_dense"],
    ),
    "nested tensor": (
        lambda: fit({"fc1": torch.nested.nested_tensor(ragged())}),
        TypeError,
        ["fc1", "nested"],
    ),
    "jagged tensor": (
        lambda: fit({"fc1": torch.nested.nested_tensor(ragged(), layout=torch.jagged)}),
        TypeError,
        ["fc1", "nested"],
    ),
    "quantized tensor": (
        lambda: fit({"fc1": torch.quantize_per_tensor(torch.ones(N, 3), 0.1, 0, torch.qint8)}),
        TypeError,
        ["fc1", "quantized", "dequantize"],
    ),
    "tensor without values": (
        lambda: fit({"fc1": torch.ones(N, 3, device="meta")}),
        TypeError,
        ["fc1", "meta"],
    ),
    "float of eight bits of exponent": (
        lambda: fit({"fc1": torch.ones(N, 3).to(torch.float8_e8m0fnu)}),
        TypeError,
        ["fc1", "float8_e8m0fnu", "x.float()"],
    ),
    "ragged lists": (
        lambda: fit({"fc1": [[1.0, 2.0]] * 7 + [[3.0]] + [[1.0, 2.0]] * 32}),
        ValueError,
        ["fc1", "2 features in row 0 and 1 in row 7"],
    ),
    "batches in a list": (
        lambda: fit({"fc1": list(torch.ones(N, 3).split(16))}),
        ValueError,
        ["fc1", "16 features in row 0 and 8 in row 2"],
    ),
    "an exporter that fails": (
        lambda: fit({"fc1": Exporter()}),
        TypeError,
        ["fc1", "Exporter", "no such device", "NumPy"],
    ),
    "an array that cannot be read": (
        lambda: fit({"fc1": Unreadable()}),
        TypeError,
        ["fc1", "Unreadable", "gone", "NumPy"],
    ),
    "rows that need gradients, in a list": (
        lambda: fit({"fc1": list(torch.ones(N, 3, requires_grad=True))}),
        TypeError,
        ["fc1", "list", "detach", "NumPy"],
    ),
    "times": (
        lambda: fit({"fc1": rows().astype("datetime64[s]")}),
        TypeError,
        ["fc1", "datetime64"],
    ),
    "records": (lambda: fit({"fc1": np.zeros(N, "f4,f4")}), TypeError, ["fc1", "float32"]),
    "nothing": (lambda: fit({"fc1": None}), TypeError, ["fc1", "object"]),
    "a frame with words": (
        lambda: fit({"fc1": pd.DataFrame({"a": rows()[:, 0], "b": "x"})}),
        TypeError,
        ["fc1", "object", "float64"],
    ),
    "a layer too large for its penalties": (
        lambda: fit({"fc1": (1e22 * rows()).astype(np.float32)}, l2="auto"),
        ValueError,
        ["fc1", "below 1.8e+17", "in row 0, feature 0", "divide all rows"],
    ),
    "a layer too large for its curvature": (
        lambda: fit({"fc1": (1e22 * rows()).astype(np.float32)}),
        ValueError,
        ["fc1", "below 1.8e+17", "in row 0, feature 0", "divide all rows"],
    ),
    "one value too large for a sum": (
        lambda: fit(spoiled(7, 2, 3e307) | {"fc1": 1e308 * np.ones((N, D))}),
        ValueError,
        ["fc1", "1e+308 in row 0, feature 0", "divide all rows"],
    ),
}


class Exporter:
    def __dlpack__(self, **options: Any) -> Any:
        raise BufferError("no such device")

    def __dlpack_device__(self) -> tuple[int, int]:
        return (1, 0)


class Unreadable:
    def __array__(self, *args: Any, **options: Any) -> Any:
        raise OSError("gone")


def ragged() -> list[torch.Tensor]:
    return [torch.ones(2 + row % 2) for row in range(N)]


@pytest.mark.filterwarnings("ignore")  # of torch, that these kinds of tensors are new or old
@pytest.mark.parametrize("case", REFUSED)
def test_refused_with_the_place_the_expected_and_the_found(case: str) -> None:
    check_refused(REFUSED[case])


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_bad_values_are_found_in_every_library(bad: float, library: ModuleType) -> None:
    x = rows()
    x[11, 2] = bad
    with pytest.raises(ValueError, match=r"'fc1'.*row 11, feature 2"):
        fit({"fc1": library.asarray(x)}, library.asarray(LABELS))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_bad_values_are_found_in_half_precision(dtype: Any) -> None:
    x = torch.tensor(rows()).to(dtype)
    x[11, 2] = float("inf")
    with pytest.raises(ValueError, match=r"'fc1'.*inf in row 11, feature 2"):
        fit({"fc1": x}, torch.tensor(LABELS))


CONVERTED: dict[str, Callable[[np.ndarray], Any]] = {
    "int64": lambda x: x.astype(np.int64),
    "uint8": lambda x: x.astype(np.uint8),
    "bool": lambda x: x > 2,
    "nested list": lambda x: x.astype(int).tolist(),
    "torch int64": lambda x: torch.tensor(x.astype(np.int64)),
    "torch bool": lambda x: torch.tensor(x > 2),
    "big-endian": lambda x: x.astype(">f4"),
    "gradient": lambda x: torch.tensor(x, dtype=torch.float32, requires_grad=True),
    "frame": lambda x: pd.DataFrame(x.astype(np.float32)),
    "frame of several dtypes": lambda x: pd.DataFrame(x.astype(int)).astype({0: np.float32}),
    "rows in a list": lambda x: list(torch.tensor(x, dtype=torch.float32)),
    "float8": lambda x: torch.tensor(x).to(torch.float8_e4m3fn),
}


@pytest.mark.parametrize("name", CONVERTED)
def test_other_real_activations_are_converted(name: str) -> None:
    x = np.random.default_rng(0).integers(0, 5, size=(N, D)).astype(float)
    given = CONVERTED[name](x)
    plain = (x > 2).astype(np.float32) if "bool" in name else x.astype(np.float32)
    ours, theirs = fit({"fc1": given})["fc1"], fit({"fc1": plain})["fc1"]
    assert str(ours.weights.dtype).endswith("float64" if "frame of" in name else "float32")
    assert ours.status is Status.CERTIFIED
    assert ours.objective == pytest.approx(theirs.objective, abs=1e-6)


ANYTHING = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=3) | st.binary(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=2), inner),
    max_leaves=12,
)
ARRAYS = hnp.arrays(
    hnp.scalar_dtypes() | hnp.complex_number_dtypes() | hnp.array_dtypes(),
    hnp.array_shapes(min_dims=0, max_dims=3, min_side=0, max_side=3),
)


@pytest.mark.filterwarnings("ignore")  # of NumPy, for values that a cast cannot hold
@given(value=ANYTHING | ARRAYS | st.lists(ARRAYS, max_size=3))
def test_whatever_is_given_is_a_matrix_or_refused_by_name(value: Any) -> None:
    try:
        layers = check_activations({"fc1": value})
    except (TypeError, ValueError) as error:
        assert str(error).startswith("activations['fc1']: ")
    else:
        assert layers["fc1"].ndim == 2 and layers["fc1"].dtype.kind == "f"
        assert layers["fc1"].dtype.itemsize <= 8 and layers["fc1"].size
