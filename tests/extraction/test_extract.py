"""Extraction: the right rows and labels under the right names, from loaders of every kind."""

from __future__ import annotations

import io
import sys
from collections import UserDict
from collections.abc import Callable, Iterator
from typing import Any

import pandas as pd
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.utils.data import DataLoader, IterableDataset, Sampler, TensorDataset

from convexprobe.extraction.extract import extract
from convexprobe.extraction.pools import random_projection
from tests.extraction.networks import Failing, Text, Wrapped, normal, reused


@settings(deadline=None, max_examples=25)
@given(
    sizes=st.lists(st.integers(1, 4), min_size=1, max_size=4),
    sized=st.booleans(),
    layers=st.sampled_from(
        [None, ["relu#1", "conv"], "bn", ["input", "relu#0"], lambda name, _: name in "bn relu"]
    ),
)
def test_rows_do_not_depend_on_the_batches(sizes: list[int], sized: bool, layers: Any) -> None:
    model, x = reused().train(), normal(sum(sizes), 1, 4, 4)
    batches = list(x.split(sizes))
    rows, labels = extract(model, batches if sized else iter(batches), layers, progress=False)
    expected = {"input": x.flatten(1), **model.by_hand(x)}
    assert labels is None
    assert list(rows) == [name for name in expected if name in rows]  # in order of computation
    for name, layer in rows.items():
        # batched and unbatched convolutions may sum in another order
        torch.testing.assert_close(layer, expected[name], rtol=1e-5, atol=1e-6)
        assert layer.untyped_storage().nbytes() == layer.numel() * layer.element_size()
        assert layer.is_contiguous()


def test_rows_take_part_in_autograd() -> None:
    with torch.inference_mode():
        rows, _ = extract(nn.Sequential(nn.Linear(3, 2)), [normal(4, 3)])
    weight = torch.zeros(2, requires_grad=True)
    (rows["0"] @ weight).sum().backward()
    torch.testing.assert_close(weight.grad, rows["0"].sum(0))


@pytest.mark.parametrize("claimed", [0, 3, 7, 10, 1000])
def test_a_loader_may_be_wrong_about_its_length(claimed: int) -> None:
    class Liar(Sampler[int]):
        def __len__(self) -> int:
            return claimed

        def __iter__(self) -> Iterator[int]:
            return iter(range(10))

    loader = DataLoader(TensorDataset(normal(10, 3)), batch_size=4, sampler=Liar())
    layer = extract(nn.Sequential(nn.Identity()), loader)[0]["0"]
    assert torch.equal(layer, normal(10, 3))
    assert layer.untyped_storage().nbytes() == 10 * 3 * 4


def test_loaders_that_know_their_length_are_stored_without_a_second_copy(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    model, x, y = nn.Sequential(nn.Identity()), normal(10, 3), torch.arange(10)

    class Stream(IterableDataset[Tensor]):
        def __iter__(self) -> Iterator[Tensor]:
            return iter(x)

    assert torch.equal(extract(model, DataLoader(Stream(), batch_size=3))[0]["0"], x)
    shuffled = DataLoader(TensorDataset(x, y), batch_size=4, shuffle=True, drop_last=True)
    rows, labels = extract(model, shuffled)
    assert labels is not None
    assert labels.shape == (8,)
    assert torch.equal(rows["0"], x[labels])
    monkeypatch.setattr(torch, "cat", None)  # what would put separate batches together
    assert torch.equal(extract(model, x.split(4))[0]["0"], x)
    assert torch.equal(extract(model, DataLoader(TensorDataset(x), batch_size=4))[0]["0"], x)
    shortened = DataLoader(TensorDataset(x), batch_size=4, drop_last=True)
    assert torch.equal(extract(model, shortened)[0]["0"], x[:8])


@pytest.mark.parametrize(
    "convert",
    [
        torch.Tensor.clone, torch.Tensor.numpy, torch.Tensor.tolist, list,
        lambda y: list(y[:, None]), lambda y: list(y.numpy()),
        lambda y: pd.Series(y.numpy(), index=y.numpy() + 5),
    ],
)  # fmt: skip
def test_labels_may_be_of_any_kind(convert: Callable[[Tensor], Any]) -> None:
    x, y = normal(7, 3), torch.arange(7)
    pairs = [(a, convert(b)) for a, b in zip(x.split(3), y.split(3), strict=True)]
    _, labels = extract(nn.Sequential(nn.Identity()), pairs)
    assert labels is not None
    assert torch.equal(labels, y)


def test_labels_survive_a_loader_that_fills_one_buffer() -> None:
    def loader() -> Iterator[tuple[Tensor, Tensor]]:
        x, y = torch.empty(2, 3), torch.empty(2)
        for step in range(3):
            yield x.fill_(step), y.fill_(step)

    rows, labels = extract(nn.Sequential(nn.Identity()), loader())
    assert labels is not None
    assert labels.tolist() == [0, 0, 1, 1, 2, 2]
    assert rows["0"][:, 0].tolist() == [0, 0, 1, 1, 2, 2]


@pytest.mark.parametrize("name", ["labels", "label"])
@pytest.mark.parametrize("kind", [dict, UserDict])
def test_mappings_are_keyword_arguments_and_masks_pool(name: str, kind: type) -> None:
    ids = torch.tensor([[1, 2, 3], [4, 5, 0]])
    mask = torch.tensor([[1, 1, 1], [1, 1, 0]])
    batch = kind({"input_ids": ids, "attention_mask": mask, name: torch.tensor([0, 1])})
    model = Text()
    rows, labels = extract(model, [batch, batch], pool="token_mean")
    assert labels is not None
    assert labels.tolist() == [0, 1, 0, 1]
    torch.testing.assert_close(rows["embed"][3], model.embed.weight[[4, 5]].mean(0).detach())
    assert name in batch  # the loader's own mapping is not touched


def test_later_batches_stop_after_the_deepest_point() -> None:
    deep = Failing(after=1)
    model = nn.Sequential(nn.Linear(3, 4), nn.ReLU(), deep)
    rows, _ = extract(model, normal(9, 3).split(3), ["1", "0"])
    assert rows["1"].shape == (9, 4)
    assert deep.calls == [1]
    with pytest.raises(RuntimeError, match="the deep module ran"):
        extract(model, normal(9, 3).split(3), "2")


def test_a_model_that_catches_exceptions_is_stopped_all_the_same() -> None:
    def forward(model: Wrapped, x: Tensor) -> Tensor:
        try:
            return model.other(model.fc(x))
        except Exception:
            return x

    rows, _ = extract(Wrapped(forward), normal(4, 3).split(2), "fc")
    assert rows["fc"].shape == (4, 3)


@pytest.mark.parametrize("dtype", ["float16", torch.bfloat16, "float32", torch.float64])
def test_rows_are_rounded_once(dtype: Any) -> None:
    model, x = nn.Sequential(nn.Identity()), normal(5, 7)
    layer = extract(model, x.split(2), dtype=dtype)[0]["0"]
    assert torch.equal(layer, x.to(layer.dtype))
    assert str(layer.dtype).endswith(str(dtype).removeprefix("torch."))
    half = extract(model, [x.bfloat16()], pool=random_projection(3))[0]["0"]
    assert half.dtype == torch.bfloat16  # computed in float32, stored as the layer is


def test_the_bar_is_shown_on_a_terminal_or_on_demand(monkeypatch: pytest.MonkeyPatch) -> None:
    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    for stream, progress, shown in [
        (io.StringIO(), None, False),
        (Terminal(), None, True),
        (io.StringIO(), True, True),
        (Terminal(), False, False),
    ]:
        monkeypatch.setattr(sys, "stderr", stream)
        extract(nn.Sequential(nn.ReLU()), [normal(2, 3)], progress=progress)
        assert ("extract" in stream.getvalue()) == shown
