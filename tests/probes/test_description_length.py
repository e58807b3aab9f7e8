"""The online description length is the sum of its code, computed by hand."""

from __future__ import annotations

from functools import partial
from itertools import pairwise
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from convexprobe import Status, description_length, fit_probes
from convexprobe.probes.description_length import PORTIONS, blocks_of
from tests.oracle import random_data
from tests.refusals import GOOD, LABELS, Case, N, check_refused

DATA = random_data(1500, 5, 4, skew=1.0)


def by_hand(
    x: np.ndarray, y: np.ndarray, l2: float, k: int, order: np.ndarray, ends: list[int]
) -> list[float]:
    """The bits of every block: uniform at first, then by probes that each start from nothing."""
    bits = [ends[0] * np.log2(k)]
    for start, stop in pairwise(ends):
        known, new = order[:start], order[start:stop]
        seen = np.unique(y[known])
        log_p = np.zeros((len(new), k))
        if len(seen) > 1:
            fit = fit_probes(x[known], y[known], l2=l2, tol=1e-8, classes=range(k))
            log_p = np.asarray(fit["activations"].predict_log_proba(x[new]))
        missing = k - len(seen)
        nats = 0.0
        for row, c in zip(log_p, y[new], strict=True):
            known_share = len(known) / (len(known) + missing)
            p = np.exp(row[c]) * known_share if c in seen else 1 / (len(known) + missing)
            nats -= np.log(p)
        bits.append(nats / np.log(2))
    return bits


@pytest.mark.parametrize("grouped", [False, True])
def test_the_length_is_that_of_the_code_by_hand(grouped: bool, library: ModuleType) -> None:
    groups = np.arange(1500) // 6 if grouped else None
    found = description_length(
        library.asarray(DATA.x), DATA.y, l2=0.02, tol=1e-7, seed=3, groups=groups
    )["activations"]
    order, ends = blocks_of(1500, groups, 3)
    bits = by_hand(DATA.x, DATA.y, 0.02, 4, order, ends)
    assert [block.bits for block in found.blocks] == pytest.approx(bits[1:], rel=1e-3)
    assert found.bits == pytest.approx(sum(bits), rel=1e-4)
    assert found.uniform_bits == 3000 and found.compression == 3000 / found.bits
    assert [b.rows for b in found.blocks] == np.diff(ends).tolist()
    assert [b.known for b in found.blocks] == ends[:-1]


def test_every_probe_is_certified_and_its_gap_is_told_in_bits() -> None:
    tight, loose = (
        description_length(DATA.x, DATA.y, l2=0.02, tol=tol)["activations"] for tol in (1e-6, 1e-1)
    )
    for found in (tight, loose):
        probes = [b.probe for b in found.blocks if b.probe is not None]
        assert all(probe.status is Status.CERTIFIED for probe in probes)
        gaps = sum(b.rows * b.probe.gap for b in found.blocks if b.probe is not None)
        assert found.gap_bits == pytest.approx(gaps / np.log(2))
    assert tight.gap_bits < 0.01 < loose.gap_bits
    assert abs(tight.bits - loose.bits) < 5 * loose.gap_bits
    text = str(loose)
    assert "bits, 3000.0 without activations" in text and "certified" in text
    assert len(text.splitlines()) == len(loose.blocks) + 2


def test_concepts_are_coded_together_as_each_is_alone() -> None:
    labels = {"class": DATA.y, "rare": np.where(DATA.y == 3, "yes", "no")}
    layers = {"a": torch.tensor(DATA.x), "b": torch.tensor(DATA.x[:, :2])}
    both = description_length(layers, labels, seed=1, tol=1e-6)
    assert [*both] == ["a/class", "a/rare", "b/class", "b/rare"]
    for name, y in labels.items():
        alone = description_length(layers["a"], y, seed=1, tol=1e-6)["activations"]
        assert both[f"a/{name}"].bits == pytest.approx(alone.bits, rel=1e-3)
    assert both["a/class"].bits < both["b/class"].bits


def test_penalties_are_chosen_by_blocks_that_were_read_already() -> None:
    path = [1.0, 1e-1, 1e-2, 1e-3, 1e-4]
    found = description_length(DATA.x, DATA.y, l2=path[::-1], seed=2, tol=1e-9)["activations"]
    one = partial(description_length, DATA.x, DATA.y, seed=2, tol=1e-9)
    alone = [[block.bits for block in one(l2=l2)["activations"].blocks] for l2 in path]
    number = 0
    for i, block in enumerate(found.blocks):
        if block.probe is None:
            continue
        assert block.probe.l2 == path[number]
        assert block.bits == pytest.approx(alone[number][i], rel=1e-3)
        tried = range(max(number - 1, 0), min(number + 2, 5))
        number = min(tried, key=lambda j: alone[j][i])
    assert number > 0
    assert found.bits < 1.1 * min(map(sum, alone))


def test_a_layer_that_tells_nothing_is_not_shorter_than_the_labels_entropy() -> None:
    rng = np.random.default_rng(0)
    x, y = rng.standard_normal((2000, 3)), rng.integers(0, 2, 2000)
    noise = description_length(x, y)["activations"]
    assert 0.95 < noise.compression < 1.01
    sure = description_length(np.stack([y, 1 - y], axis=1) * 1.0, y)["activations"]
    assert sure.compression > 10


def test_what_is_told_does_not_depend_on_the_order_that_rows_are_given_in() -> None:
    constant = np.ones((40, 3))
    y = np.arange(40) % 2
    # A constant layer: the code is that of the frequencies of the classes.
    found = description_length(constant, y, l2=1.0)["activations"]
    order, ends = blocks_of(40, None, 0)
    nats = ends[0] * np.log(2)
    for start, stop in pairwise(ends):
        counts = np.bincount(y[order[:start]], minlength=2)
        if counts.all():
            p = counts / start
        else:
            p = np.where(counts > 0, start / (start + 1), 1 / (start + 1))
        nats -= np.log(p[y[order[start:stop]]]).sum()
    assert found.bits == pytest.approx(nats / np.log(2), rel=1e-6)


@given(st.integers(1, 3000), st.integers(0, 100), st.one_of(st.none(), st.integers(1, 400)))
def test_blocks_end_at_the_portions_and_never_in_a_group(
    rows: int, seed: int, size: int | None
) -> None:
    groups = None if size is None else np.random.default_rng(seed).integers(0, size, rows)
    order, ends = blocks_of(rows, groups, seed)
    assert sorted(order.tolist()) == list(range(rows)) and ends[-1] == rows
    assert ends == sorted(set(ends)) and ends[0] >= 1
    if groups is None and rows >= 1000:
        np.testing.assert_allclose(ends, np.asarray(PORTIONS) * rows, atol=0.5)
    if groups is not None:
        for end in ends[:-1]:
            assert not set(groups[order[:end]]) & set(groups[order[end:]])


def nan_row() -> Any:
    x = GOOD["fc1"].copy()
    x[3, 1] = np.nan
    return x


CASES: dict[str, Case] = {
    "labels of another length": (
        lambda: description_length(GOOD, LABELS[:3]),
        ValueError,
        ["labels: expected 40 labels", "found 3"],
    ),
    "groups of another length": (
        lambda: description_length(GOOD, LABELS, groups=[1]),
        ValueError,
        ["groups: expected one value a row"],
    ),
    "one group": (
        lambda: description_length(GOOD, LABELS, groups=[1] * N),
        ValueError,
        ["groups: expected at least two groups"],
    ),
    "a value that is not finite": (
        lambda: description_length(nan_row(), LABELS),
        ValueError,
        ["activations['activations']", "row 3, feature 1"],
    ),
    "one class": (
        lambda: description_length(GOOD, np.zeros(N, dtype=int)),
        ValueError,
        ["labels: expected at least two classes, found 1"],
    ),
    "a tolerance": (
        lambda: description_length(GOOD, LABELS, tol=0.0),
        ValueError,
        ["tol: expected a number above 0"],
    ),
    "a penalty": (
        lambda: description_length(GOOD, LABELS, l2=-1.0),
        ValueError,
        ["l2: expected finite penalties"],
    ),
}


@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
def test_what_cannot_be_coded_is_refused(case: Case) -> None:
    check_refused(case)
