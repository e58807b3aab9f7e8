"""Probes of activations on the device: families, paths, weights, warm starts, streams, checks."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import convexprobe as cxp
from convexprobe.arrays.precision import full_precision
from convexprobe.probes import layer
from convexprobe.solvers.solution import Status
from tests.device.simulated import NAME, DeviceTensor, counted, register
from tests.oracle import random_data
from tests.storage import write_activations

register()

DATA = random_data(400, 6, 3)
X, Y = torch.tensor(DATA.x), torch.tensor(DATA.y)
OTHER = torch.tensor((DATA.x[:, 0] > DATA.x[:, 0].mean()).astype(int))

FITS: dict[str, dict[str, Any]] = {
    "one penalty": {"l2": 1e-3},
    "a path": {"l2": [1e-4, 1e-3, 1e-2, 1e-1, 1.0]},
    "auto": {},
    "auto, three seeds": {"seed": [0, 1, 2]},
    "folds": {"l2": [1e-3, 1e-1], "cv": 3},
    "weights": {"l2": 1e-3, "sample_weight": np.linspace(0.0, 2.0, 400)},
    "class weights": {"l2": [1e-3, 1e-1], "class_weight": "balanced"},
    "early stopping": {"l2": 1e-5, "stopping": "validation"},
    "standardized": {"l2": 1e-2, "standardize": True},
    "no bias": {"l2": 1e-2, "bias": False},
    "loss": {"scoring": "loss", "refit": False},
}


@pytest.fixture(autouse=True)
def torch_on_the_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """The CPU works in torch, as the device does, and not in NumPy."""
    monkeypatch.setattr(layer, "in_numpy", lambda sources, columns: sources)


def same_steps(ours: cxp.ProbeSet, theirs: cxp.ProbeSet) -> None:
    """The same steps but for the order of sums, which is the library's."""
    assert list(ours) == list(theirs)
    for name, probe in ours.items():
        other = theirs[name]
        assert type(probe.weights) is DeviceTensor and type(probe.bias) is DeviceTensor
        torch.testing.assert_close(probe.weights.cpu(), other.weights, rtol=0.0, atol=1e-11)
        torch.testing.assert_close(probe.bias.cpu(), other.bias, rtol=0.0, atol=1e-11)
        assert (probe.status, probe.passes) == (other.status, other.passes)
        for number, rel in {"gap": 1e-9, "l2": 1e-12, "validation_error": 1e-12}.items():
            found, expected = (getattr(p, number) or 0.0 for p in (probe, other))
            assert found == pytest.approx(expected, rel=rel, abs=0.0)


@pytest.mark.parametrize("name", FITS)
def test_fits_take_the_steps_of_the_cpu(name: str) -> None:
    ours = cxp.fit_probes({"a": X.to(NAME)}, Y, **FITS[name])
    same_steps(ours, cxp.fit_probes({"a": X}, Y, **FITS[name]))
    assert ours["a"].status in (Status.CERTIFIED, Status.VALIDATION)


def test_concepts_are_a_family_on_the_device() -> None:
    labels = {"class": Y.to(NAME), "sign": torch.where(torch.arange(400) % 7 > 0, OTHER, -100)}
    ours = cxp.fit_probes({"a": X.to(NAME)}, labels, l2=[1e-3, 1e-1])
    labels["class"] = Y
    same_steps(ours, cxp.fit_probes({"a": X}, labels, l2=[1e-3, 1e-1]))


def test_a_warm_start_is_that_of_the_cpu() -> None:
    found = []
    for place in (NAME, "cpu"):
        x = {"a": X.to(place)}
        first = cxp.fit_probes(x, Y, l2=1e-3)
        memory = cxp.remember(first, x)
        moved = {"a": (1.02 * X + 0.01).to(place)}
        found += [cxp.fit_probes(moved, Y, l2=1e-3, warm_start=start) for start in (first, memory)]
    same_steps(found[0], found[2])
    same_steps(found[1], found[3])
    assert found[1]["a"].start == "transferred"


def test_validation_rows_and_scores_are_those_of_the_cpu() -> None:
    held = random_data(150, 6, 3, seed=1)
    h, found = torch.tensor(held.x), []
    for place in (NAME, "cpu"):
        rows = {"a": h.to(place)}
        probes = cxp.fit_probes({"a": X.to(place)}, Y, validation=(rows, held.y))
        scores = probes.evaluate(rows, held.y)["a"]
        assert probes["a"].predict_log_proba(rows["a"]).device.type == torch.device(place).type
        found.append((probes, scores.loss, scores.error, probes["a"].predict(rows["a"]).tolist()))
    same_steps(found[0][0], found[1][0])
    assert found[0][1:] == found[1][1:]


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_every_place_of_rows_gives_the_same_bits(dtype: torch.dtype, tmp_path: Path) -> None:
    x = torch.randn(2600, 40, generator=torch.Generator().manual_seed(0)).to(dtype)
    y = (x[:, 0] + x[:, 1] > 0).long() + (x[:, 2] > 1).long()
    write_activations(tmp_path, {"a": x}, y, rows=700)
    stored = cxp.open_activations(tmp_path)[0]["a"]
    whole = cxp.fit_probes({"a": x.to(NAME)}, y, l2=1e-2)["a"]
    for rows, limit in ((stored, None), (x, None), (x, x.nbytes - 1), (stored, x.nbytes - 1)):
        probe = cxp.fit_probes({"a": rows}, y, l2=1e-2, device=NAME, memory_limit=limit)["a"]
        assert type(probe.weights) is DeviceTensor
        assert torch.equal(probe.weights.cpu(), whole.weights.cpu())
        assert probe.gap == whole.gap


def test_held_out_rows_that_overflow_are_named() -> None:
    x, held = X.float(), X[:50].float()
    held[17] = 3e38 * cxp.fit_probes(X, Y, l2=1e-5)["activations"].weights[0].sign()
    with pytest.raises(ValueError, match=re.escape("row 17 is so large")):
        cxp.fit_probes(
            {"a": x.to(NAME)}, Y, l2=[1e-6, 1e-5], validation=({"a": held.to(NAME)}, Y[:50])
        )
    x[3, 2] = torch.nan
    with pytest.raises(ValueError, match="row 3, feature 2"):
        cxp.fit_probes({"a": x.to(NAME)}, Y, l2=1e-3)


def test_the_price_of_a_fit_is_told_for_the_device() -> None:
    told = cxp.estimate({"a": X.to(NAME)}, Y)
    assert re.search("device", str(told))


def test_autocast_on_the_device_does_not_reach_the_products() -> None:
    with torch.autocast(NAME, dtype=torch.bfloat16), full_precision():
        x = torch.ones(2, 2, device=NAME)
        assert (x @ x).dtype == torch.float32


def test_random_states_of_the_device_are_kept() -> None:
    torch.manual_seed(0)
    before = torch.get_device_module(NAME).get_rng_state()
    cxp.fit_probes({"a": X.to(NAME)}, Y, l2=1e-2)
    assert torch.equal(torch.get_device_module(NAME).get_rng_state(), before)


def test_nothing_of_the_rows_travels_but_the_rows() -> None:
    with counted() as counts:
        cxp.fit_probes({"a": X.to(NAME)}, Y, l2=1e-2)
    assert counts.to_host.total() < 0.1 * X.nbytes
