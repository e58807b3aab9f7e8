"""Extraction answers each misuse with one clear error."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.utils.data import TensorDataset

from convexprobe.extraction.extract import extract
from tests.extraction.networks import Wrapped, normal


def test_overflow_names_the_layer_the_row_and_the_count() -> None:
    x = torch.ones(6, 3)
    x[4, 1] = x[5, 0] = x[5, 1] = 1e6
    x[1, 0] = float("inf")  # not finite before: the user's, and kept
    model = nn.Sequential(nn.Identity())
    message = r"layer '0', batch 2: 3 finite activations overflow torch.float16, first in row 4;"
    with pytest.raises(OverflowError, match=message):
        extract(model, x.split(2), dtype="float16")
    assert extract(model, [x], dtype="bfloat16")[0]["0"][1, 0] == float("inf")


def test_batches_that_disagree_are_named() -> None:
    model = nn.Sequential(nn.ReLU())
    x = normal(2, 3)
    with pytest.raises(ValueError, match=r"layer '0', batch 1: .* width 3 .* found 4"):
        extract(model, [x, normal(2, 4)])
    with pytest.raises(ValueError, match=r"batch 1: expected labels of shape \(2,\).* \(3,\)"):
        extract(model, iter([(x, [0, 1]), (x, [0, 1, 2])]))
    with pytest.raises(ValueError, match=r"batch 0: expected labels .* \(2, 1\)"):
        extract(model, [(x, torch.zeros(2, 1))])
    with pytest.raises(TypeError, match=r"batch 0: labels must be numbers, found a list of .* str"):
        extract(model, [(x, ["cat", "dog"])])
    for batches in ([(x, [0, 1]), x], [x, (x, [0, 1])]):
        with pytest.raises(ValueError, match="batch 1: expected labels in every batch or in none"):
            extract(model, batches)
    tokens = Wrapped(lambda model, x: model.fc(x.reshape(-1, 3)))
    with pytest.raises(ValueError, match=r"layer 'fc', batch 0: .* 2 rows.* found shape \(8, 3\)"):
        extract(tokens, [normal(2, 4, 3)], "fc")
    nested = Wrapped(lambda model, x: model.other(torch.nested.nested_tensor([model.fc(x)])))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # nested tensors are declared a prototype
        with pytest.raises(TypeError, match=r"layer 'other', batch 0: .* found a nested tensor"):
            extract(nested, [x], "other")
    scalar = Wrapped(lambda model, x: model.other(model.fc(x).sum()))
    with pytest.raises(ValueError, match=r"layer 'other', batch 0: .* found shape \(\)"):
        extract(scalar, [x], "other")


def test_a_forward_pass_that_changes_its_mind_is_named() -> None:
    def often(model: Wrapped, x: Tensor) -> Tensor:
        for _ in range(int(x[0, 0])):
            x = model.fc(x)
        return model.other(x)

    one, two, zero = torch.ones(2, 3), torch.full((2, 3), 2.0), torch.zeros(2, 3)
    with pytest.raises(ValueError, match=r"layer 'fc', batch 1: expected calls .* 1, found more"):
        extract(Wrapped(often), [one, two])
    with pytest.raises(ValueError, match="layer 'fc', batch 1: expected it to run"):
        extract(Wrapped(often), [one, zero])
    with pytest.raises(ValueError, match="layer 'fc#1', batch 1: expected it to run"):
        extract(Wrapped(often), [two, one])


@pytest.mark.parametrize(
    ("loader", "kind", "message"),
    [
        ([], ValueError, "at least one row, found none"),
        (iter([torch.zeros(0, 3)]), ValueError, "at least one row, found none"),
        (torch.zeros(2, 3), TypeError, "found one Tensor"),
        ({"input_ids": torch.zeros(2, 3)}, TypeError, "found one dict"),
        ([np.zeros((2, 3))], TypeError, "batch 0: .* found an object of type ndarray"),
        ([torch.zeros(2, 3), {"labels": [1, 2]}], TypeError, "batch 1: .* found a dict"),
        (iter([torch.zeros(())]), TypeError, r"batch 0: .* found a tensor of shape \(\)"),
        ([(torch.zeros(2, 3), 1, 2)], TypeError, "batch 0: .* found a tuple"),
        (np.zeros((2, 3)), TypeError, "found one ndarray"),
        (TensorDataset(torch.zeros(2, 3)), TypeError, "a TensorDataset of single .* DataLoader"),
        (None, TypeError, r"found None \(NoneType\)"),
        (7, TypeError, r"found 7 \(int\)"),
    ],
)
def test_loaders_that_cannot_be_read_are_refused(
    loader: Any, kind: type[Exception], message: str
) -> None:
    with pytest.raises(kind, match=message):
        extract(nn.Sequential(nn.ReLU()), loader)


def test_models_and_arguments_that_cannot_be_used_are_refused() -> None:
    x = [normal(2, 3)]
    model = nn.Sequential(nn.Linear(3, 3))
    with pytest.raises(TypeError, match=r"model must be a torch.nn.Module, found function"):
        extract(lambda x: x, x)  # type: ignore[arg-type]  # the wrong type is the test
    with pytest.raises(TypeError, match=r"wrapped or compiled one \(DataParallel\)"):
        extract(nn.DataParallel(model), x)
    compiled = nn.Sequential(nn.Linear(3, 3))
    # what compiled[0].compile() does, without the seconds that it takes to import the compiler
    compiled[0]._compiled_call_impl = compiled[0]._call_impl
    with pytest.raises(TypeError, match=r"submodule '0': .* compiled one \(Linear\)"):
        extract(compiled, x)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch.jit is on its way out
        traced = torch.jit.trace(model, x[0])
    with pytest.raises(TypeError, match=r"model: .* wrapped"):
        extract(traced, x)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # lazy modules are declared experimental
        lazy = nn.Sequential(nn.LazyLinear(3))
    with pytest.raises(ValueError, match=r"submodule '0': lazy"):
        extract(lazy, x)
    with pytest.raises(ValueError, match=r"layers: .* submodule"):
        extract(nn.Linear(3, 3), x)
    with pytest.raises(ValueError, match="unknown name 'flaten'"):
        extract(model, x, pool="flaten")
    with pytest.raises(ValueError, match="layer '0', batch 0: pool 'token_mean' needs"):
        extract(model, x, pool="token_mean")
    with pytest.raises(ValueError, match="layer '0': no pattern"):
        extract(model, x, pool={"fc": "flatten"})


@pytest.mark.parametrize(
    ("options", "kind", "message"),
    [
        ({"dtype": "int8"}, ValueError, "dtype: expected one of float16, .* found 'int8'"),
        ({"dtype": "float23"}, ValueError, "dtype: .* did you mean 'float32'"),
        ({"dtype": torch.int64}, ValueError, "dtype: .* found torch.int64"),
        ({"dtype": float}, TypeError, "dtype: .* found <class 'float'>"),
        ({"dtype": np.dtype("float32")}, TypeError, "dtype: .* found dtype"),
        ({"dtype": 32}, TypeError, r"dtype: .* found 32 \(int\)"),
        ({"device": "nowhere"}, ValueError, "device: 'nowhere' cannot store rows here"),
        ({"device": "meta"}, ValueError, "device: 'meta' cannot store rows here"),
        ({"device": None}, TypeError, "device: .* found None"),
        ({"device": "meta", "out": "x"}, ValueError, "device: 'meta'"),
        ({"pool": 3}, TypeError, "pool must be a name, a callable or a mapping, found int"),
        ({"pool": ["flatten"]}, TypeError, "pool must be .* found list"),
        ({"layers": 3}, TypeError, "layers: expected names or a predicate, found .* int"),
        ({"layers": [None]}, TypeError, "layers: expected names, found None"),
        ({"layers": b"0"}, TypeError, "layers: expected names, found 48"),
        ({"out": 3}, TypeError, r"out: expected a path, found 3 \(int\)"),
        ({"progress": "no"}, TypeError, "progress: expected True or False, found 'no'"),
    ],
)
def test_an_argument_that_cannot_be_used_is_named_before_the_loader_is_touched(
    options: dict[str, Any], kind: type[Exception], message: str
) -> None:
    def loader() -> Iterator[Tensor]:
        pytest.fail("work has started")
        yield

    with pytest.raises(kind, match=message):
        extract(nn.Sequential(nn.ReLU()), loader(), **options)


with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # torch calls half of its layouts prototypes
    NO_LABELS: list[Any] = [
        [2**70, 1], [None, 1], ["a", "b"], "ab", b"ab", {1, 2}, [[1], [1, 2]],
        np.array(["a", "b"]), np.array([object(), 1]), np.ma.array([1, 2], mask=[False, True]),
        torch.tensor([1, 2]).to_sparse(), torch.ones(2, device="meta"), torch.ones(2) * 1j,
        torch.nested.nested_tensor([torch.ones(1), torch.ones(2)]), [1j, 2],
        torch.quantize_per_tensor(torch.ones(2), 0.1, 0, torch.qint8), pd.Series(["a", "b"]),
        pd.Series(["a", "b"], dtype="category"),
    ]  # fmt: skip


@pytest.mark.parametrize("labels", NO_LABELS, ids=lambda labels: type(labels).__name__)
def test_labels_that_are_no_numbers_name_their_batch(labels: Any, tmp_path: Path) -> None:
    for out in (None, tmp_path):
        with pytest.raises(TypeError, match="batch 1: labels must"):
            batches = [(torch.ones(2, 3), [0, 1]), (torch.ones(2, 3), labels)]
            extract(nn.Sequential(nn.ReLU()), iter(batches), out=out)


@given(st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text() | st.binary(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=2)
    | st.tuples(inner, inner), max_leaves=5,
))  # fmt: skip
def test_a_batch_of_anything_else_is_one_clear_error(item: Any) -> None:
    with pytest.raises((TypeError, ValueError), match=r"batch 0: |at least one row"):
        extract(nn.Sequential(nn.ReLU()), iter([item]))
    with pytest.raises((TypeError, ValueError), match=r"batch [01]: "):
        extract(nn.Sequential(nn.ReLU()), iter([(torch.ones(3, 2), item), item]))
