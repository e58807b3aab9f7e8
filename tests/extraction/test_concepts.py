"""Labels of several concepts go through an extraction, in memory and on disk."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import convexprobe as cxp
from convexprobe.activations.manifest import MANIFEST, Manifest
from convexprobe.extraction.extract import extract, extract_in_blocks

N, T = 12, 5
G = torch.Generator().manual_seed(0)
X = torch.randn(N, T, 4, generator=G)
MASK = (torch.arange(T) < torch.randint(2, T + 1, (N, 1), generator=G)).long()
TAG = torch.randint(3, (N, T), generator=G)
NAME = torch.randint(2, (N, T), generator=G)
TAG[:, 0], NAME[::2] = -100, -100
SIDE, SIZE = torch.randint(2, (N,), generator=G), torch.randn(N, generator=G).sign()


class Layer(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        with torch.random.fork_rng():
            torch.manual_seed(0)
            self.fc = nn.Linear(4, 3)

    def forward(self, x: Tensor, attention_mask: Tensor | None = None) -> Tensor:
        return self.fc(x)


def loader(size: int = 5, **labels: Tensor) -> list[Any]:
    def part(i: int) -> Any:
        inputs = {"x": X[i : i + size], "attention_mask": MASK[i : i + size]}
        concepts = {name: values[i : i + size] for name, values in labels.items()}
        return {**inputs, "labels": concepts} if i else (inputs, concepts)  # both forms

    return [part(i) for i in range(0, N, size)]


@pytest.mark.parametrize("disk", [False, True])
def test_concepts_come_back_by_name(disk: bool, tmp_path: Path) -> None:
    out = tmp_path if disk else None
    rows, labels = extract(Layer(), loader(side=SIDE, size_=SIZE), out=out)
    assert isinstance(labels, dict) and list(labels) == ["side", "size_"]
    assert torch.equal(labels["side"], SIDE) and torch.equal(labels["size_"], SIZE)
    assert labels["size_"].dtype == SIZE.dtype
    if disk:
        again = cxp.open_activations(tmp_path)[1]
        assert isinstance(again, dict) and torch.equal(again["side"], SIDE)
    assert list(cxp.fit_probes(rows, labels, l2=1e-2)) == ["fc/side", "fc/size_"]


@pytest.mark.parametrize("disk", [False, True])
def test_a_token_is_a_row_if_one_concept_knows_it(disk: bool, tmp_path: Path) -> None:
    out = tmp_path if disk else None
    rows, labels = extract(Layer(), loader(tag=TAG, name=NAME), "fc", pool="tokens", out=out)
    assert isinstance(labels, dict)
    kept = MASK.bool() & ((TAG != -100) | (NAME != -100))
    assert torch.equal(labels["tag"], TAG[kept]) and torch.equal(labels["name"], NAME[kept])
    assert rows.examples is not None
    np.testing.assert_array_equal(rows.examples, kept.nonzero()[:, 0])
    probes = cxp.fit_probes(rows, labels, l2=1e-2)
    assert probes["fc/tag"].rows == int((TAG[kept] != -100).sum())
    alone, own = extract(Layer(), loader(tag=TAG, name=TAG), "fc", pool="tokens")
    assert isinstance(own, dict)
    loss = cxp.fit_probes(alone, own["tag"], l2=1e-2, tol=1e-6)["fc"].loss
    both = cxp.fit_probes(rows, labels, l2=1e-2, tol=1e-6)
    assert both["fc/tag"].loss == pytest.approx(loss, abs=1e-5)


def test_a_word_takes_the_labels_of_its_first_piece() -> None:
    words = torch.tensor([[0, 0, 1, 2, -1]]).repeat(2, 1)
    tag = torch.tensor([[1, -100, 2, -100, -100]]).repeat(2, 1)
    name = torch.tensor([[-100, 5, -100, -100, 7]]).repeat(2, 1)
    batch = {"x": X[:2], "word_ids": words, "labels": {"tag": tag, "name": name}}
    rows, labels = extract(Layer(), [batch], "fc", pool="words")
    assert isinstance(labels, dict) and rows["fc"].shape == (4, 3)  # the third word has no label
    assert labels["tag"].tolist() == [1, 2, 1, 2] and labels["name"].tolist() == [-100] * 4


def test_an_interrupted_extraction_goes_on_with_its_concepts(tmp_path: Path) -> None:
    whole = extract(Layer(), loader(2, side=SIDE), out=tmp_path / "whole")[1]
    assert isinstance(whole, dict)

    class Stops(list):  # type: ignore[type-arg]
        def __iter__(self) -> Any:
            yield from list.__iter__(self)
            raise KeyboardInterrupt

    part = tmp_path / "part"
    with pytest.raises(KeyboardInterrupt):
        extract_in_blocks(Layer(), Stops(loader(2, side=SIDE)[:3]), out=part, block=1)
    assert Manifest.read(part).rows > 0
    again = extract_in_blocks(Layer(), loader(2, side=SIDE), out=part, block=1)[1]
    assert isinstance(again, dict) and torch.equal(again["side"], whole["side"])
    with pytest.raises(ValueError, match="expected the inputs and labels that"):
        extract_in_blocks(Layer(), loader(2, hand=SIDE), out=part, block=1)


def test_a_manifest_with_both_kinds_of_labels_is_damaged(tmp_path: Path) -> None:
    extract(Layer(), loader(side=SIDE), out=tmp_path)
    content = json.loads((tmp_path / MANIFEST).read_text())
    for column in ("labels", "label/side"):
        with pytest.raises(ValueError, match=r"labels beside those of concepts|no column"):
            Manifest._parse({**content, "columns": {**content["columns"], column: "int64"}})


@pytest.mark.parametrize(
    ("labels", "pool", "message"),
    [
        ({}, "token_mean", "batch 0: expected labels of at least one concept, found none"),
        ({3: SIDE}, "token_mean", "batch 0: names of concepts must be strings, found 3"),
        ({None: SIDE}, "token_mean", "batch 0: names of concepts must be strings, found None"),
        ({"a": SIDE[:3]}, "token_mean", r"labels of 'a' of shape \(12,\), one per row, .* \(3,\)"),
        ({"a": TAG}, "token_mean", r"labels of 'a' .* labels of tokens \(n, t\) need pool"),
        ({"a": SIDE}, "tokens", r"labels of 'a' of shape \(12, t\), one per token, found \(12,\)"),
        ({"a": TAG[:, :4]}, "tokens", r"expected labels of shape \(12, 5\), .* found \(12, 4\)"),
        ({"a": ["x"] * N}, "token_mean", "labels of 'a' must be numbers"),
        ({"a": {"b": SIDE}}, "token_mean", "labels of 'a' must be numbers"),
    ],
)
def test_labels_that_are_no_concepts_are_refused(labels: Any, pool: str, message: str) -> None:
    inputs = {"x": X, "attention_mask": MASK}
    with pytest.raises((TypeError, ValueError), match=message):
        extract(Layer(), [(inputs, labels)], "fc", pool=pool)


def test_batches_of_other_concepts_are_refused() -> None:
    batches = [*loader(side=SIDE)[:1], *loader(hand=SIDE)[1:]]
    with pytest.raises(ValueError, match=r"batch 1: expected 'labels/side' as .* 'labels/hand'"):
        extract(Layer(), batches)
    with pytest.raises(ValueError, match="labels in every batch or in none"):
        extract(Layer(), [*loader(side=SIDE)[:1], X[5:]])
