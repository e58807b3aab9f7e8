"""Rows are those of the batch, and extraction neither rounds them nor makes them infinite."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from convexprobe.extraction.extract import extract
from convexprobe.extraction.pools import random_projection
from tests.extraction.networks import Wrapped, normal


class Layouts(nn.Module):
    """Tokens `(n, t, d)` on the way in; in the middle also with the tokens in front."""

    def __init__(self) -> None:
        super().__init__()
        self.front, self.back, self.positions = nn.Identity(), nn.Identity(), nn.Identity()
        self.one = nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        y = self.back(self.front(x.transpose(0, 1) + 1).transpose(0, 1))
        self.positions(torch.ones(x.shape[1], 5))
        return self.one(y.mean(1))


@given(
    st.lists(st.integers(1, 4), min_size=1, max_size=3),
    st.integers(1, 4),
    st.sampled_from(["front", "back", "positions", "one"]),
    st.sampled_from(["token_mean", "flatten"]),
)
def test_rows_are_those_of_the_batch_or_refused(
    sizes: list[int], t: int, layer: str, pool: str
) -> None:
    x = normal(sum(sizes), t, 3)
    if layer in ("front", "positions") or (layer, pool) == ("one", "token_mean"):
        with pytest.raises(ValueError, match=f"layer '{layer}', batch 0: "):
            extract(Layouts(), list(x.split(sizes)), layer, pool=pool)
        return
    rows, _ = extract(Layouts(), list(x.split(sizes)), layer, pool=pool)
    tokens = (x + 1).flatten(1) if (layer, pool) == ("back", "flatten") else (x + 1).mean(1)
    torch.testing.assert_close(rows[layer], tokens)


@pytest.mark.parametrize("n", [1, 2, 5])
def test_tokens_in_front_that_are_as_many_as_rows_are_refused_by_name(n: int) -> None:
    front = Wrapped(lambda model, x: model.other(x.transpose(0, 1)))
    message = r"layer 'other', batch 0: expected axis 0 of shape \(\d, \d, 3\) to be the batch"
    with pytest.raises(ValueError, match=message):
        extract(front, [normal(n, n, 3)], "other")
    positions = Wrapped(lambda model, x: model.other(torch.ones(x.shape[1], 4)))
    with pytest.raises(ValueError, match="layer 'other', batch 0: expected axis 0"):
        extract(positions, [normal(n, n, 3)], "other")
    right = Wrapped(lambda model, x: model.other(model.fc(x)))
    x = normal(n, n, 3)
    rows, _ = extract(right, [x], "other", pool="token_mean")
    torch.testing.assert_close(rows["other"], right.fc(x).mean(1).detach())


def test_a_model_of_one_batch_size_is_refused_only_where_the_batch_cannot_be_told() -> None:
    model = Wrapped(lambda model, x: model.fc(x.reshape(4, -1, 3)))
    rows, _ = extract(model, [normal(4, 6, 3)], "fc")
    assert rows["fc"].shape == (4, 18)
    with pytest.raises(ValueError, match=r"does not run on 2 rows .* size that no other axis"):
        extract(Wrapped(lambda m, x: m.fc(x.reshape(4, 4, 3))), [normal(4, 4, 3)], "fc")


def test_the_second_run_of_a_few_rows_leaves_no_trace() -> None:
    class Counting(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.register_buffer("seen", torch.zeros(()))
            self.fc = nn.Linear(3, 3)

        def forward(self, x: Tensor) -> Tensor:
            self.seen += len(x)
            return self.fc(x) + self.seen + torch.rand(())

    batches = list(normal(9, 3).split(3))  # three rows of width three
    torch.manual_seed(0)
    first, _ = extract(nn.Sequential(Counting()), batches, "0", pool="flatten")
    torch.manual_seed(0)
    model = nn.Sequential(Counting())
    with torch.no_grad():
        torch.manual_seed(0)
        Counting()
        expected = torch.cat([model(x) for x in batches])
    torch.testing.assert_close(first["0"], expected)


@pytest.mark.parametrize("pool", ["flatten", "token_mean", "last_token", "class_token",
                                  "spatial_mean", random_projection(3)])  # fmt: skip
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_nothing_of_ours_rounds_inside_an_autocast_region(pool: Any, dtype: torch.dtype) -> None:
    x = normal(4, 5, 7).to(dtype)
    model = nn.Sequential(nn.Identity())
    expected, _ = extract(model, [x], pool=pool)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        rows, _ = extract(model, [x], pool=pool)
        computed, _ = extract(nn.Sequential(nn.Linear(3, 2)), [normal(4, 3)])
    assert torch.equal(rows["0"], expected["0"]) and rows["0"].dtype == dtype
    assert computed["0"].dtype == torch.bfloat16  # what the model computes there


def test_a_later_batch_of_a_wider_type_is_not_rounded() -> None:
    model, x = nn.Sequential(nn.Identity()), normal(2, 3)
    with pytest.raises(ValueError, match=r"layer '0', batch 1: expected torch.float32 .*float64"):
        extract(model, [x, x.double()])
    rows, _ = extract(model, [x.double(), x])  # exact
    assert torch.equal(rows["0"], torch.cat([x, x]).double())
    assert extract(model, [x, x.double()], dtype="float32")[0]["0"].dtype == torch.float32


@pytest.mark.parametrize("pool", ["flatten", "token_mean", "last_token", "spatial_mean",
                                  random_projection(3)])  # fmt: skip
def test_layers_of_any_size_come_out_finite_or_are_refused(pool: Any) -> None:
    model = nn.Sequential(nn.Identity())
    for scale in (1e20, 1e37, 3e38):
        x = torch.full((2, 5, 4), scale)
        try:
            rows, _ = extract(model, [torch.ones(1, 5, 4), x], pool=pool)
        except OverflowError as error:
            assert "layer '0', batch 1: finite activations overflow torch.float32" in str(error)
            assert "first in row 1" in str(error) and scale > 1e20
        else:
            assert rows["0"].isfinite().all()


@pytest.mark.filterwarnings("ignore")  # torch calls the layout a prototype
def test_sparse_activations_are_refused_by_name() -> None:
    for layout in ("sparse_coo", "sparse_csr"):
        model = Wrapped(lambda m, x, to=layout: m.other(x.to_sparse(layout=getattr(torch, to))))
        with pytest.raises(TypeError, match=f"layer 'other', batch 0: .*, found a torch.{layout}"):
            extract(model, [normal(2, 3)], "other")


def test_activations_of_a_dtype_that_cannot_be_stored_are_refused_by_name() -> None:
    for dtype in (torch.complex64, torch.int8, torch.bool):
        model = Wrapped(lambda m, x, dtype=dtype: m.other(x.to(dtype)))
        message = f"layer 'other', batch 0: expected activations of float64, .* found {dtype}"
        with pytest.raises(TypeError, match=message):
            extract(model, [normal(2, 3)], "other", dtype="float32")


@pytest.mark.parametrize("kind", [torch.float8_e4m3fn, torch.float8_e5m2])
def test_activations_of_eight_bits_are_pooled_and_stored(kind: torch.dtype, tmp_path: Path) -> None:
    model = Wrapped(lambda m, x: m.other(x.to(kind)))
    x = 10 * normal(4, 5, 3)
    rounded = x.to(kind).float()
    rows, _ = extract(model, list(x.split(2)), "other", out=tmp_path)
    assert rows["other"].dtype == kind
    assert torch.equal(rows["other"].load().float(), rounded.flatten(1))
    rows, _ = extract(model, [x], "other", pool="token_mean", dtype="float32")
    torch.testing.assert_close(rows["other"], rounded.mean(1))
    with pytest.raises(OverflowError, match="layer 'other', batch 0: 2 finite activations overfl"):
        pool = lambda x: x.flatten(1).float() * 1e5  # noqa: E731
        extract(model, [torch.eye(2, 3)[:, None]], "other", pool=pool)


def test_activations_that_are_not_finite_are_named_once_while_a_directory_is_written(
    tmp_path: Path,
) -> None:
    x = normal(6, 3)
    x[3, 1] = float("nan")
    with pytest.warns(UserWarning, match="layer '0': .* not finite, first in row 3") as caught:
        extract(nn.Sequential(nn.Identity(), nn.ReLU()), list(x.split(2)), out=tmp_path)
    assert len(caught) == 1
