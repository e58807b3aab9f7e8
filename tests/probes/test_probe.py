"""Predictions of a probe, and how it scores on rows with labels."""

from __future__ import annotations

from dataclasses import replace
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch

from convexprobe import Probe, fit_probes, remember
from convexprobe.activations.stored import HostRows
from convexprobe.arrays.backend import to_numpy
from tests.oracle import random_data

DATA = random_data(200, 6, 3)
HELD = random_data(100, 6, 3, seed=7)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16, torch.float64])
def test_every_way_to_predict_agrees(dtype: Any) -> None:
    x = torch.tensor(DATA.x).to(dtype)
    probe = fit_probes(x, torch.tensor(DATA.y), l2=1e-2)["activations"]
    stored = replace(DATA, x=x.double().numpy())
    weights, bias = to_numpy(probe.weights), to_numpy(probe.bias)
    z = stored.x @ weights.T + bias
    z = z - z.max(axis=1, keepdims=True)
    p = np.exp(z) / np.exp(z).sum(axis=1, keepdims=True)
    tolerance = 1e-12 if dtype == torch.float64 else 1e-5  # logits of size 10 in float32
    np.testing.assert_allclose(to_numpy(probe.predict_proba(x)), p, atol=tolerance)
    np.testing.assert_allclose(to_numpy(probe.predict_log_proba(x)), np.log(p), atol=10 * tolerance)
    np.testing.assert_array_equal(probe.predict(x), p.argmax(axis=1))
    score = probe.evaluate(x, torch.tensor(DATA.y))
    assert score.error == pytest.approx(np.mean(p.argmax(axis=1) != DATA.y))
    assert score.error == pytest.approx(probe.train_error, abs=1e-9)
    assert score.loss == pytest.approx(probe.loss, abs=1e-5)
    assert score.label_entropy == pytest.approx(DATA.label_entropy)
    assert score.bits == pytest.approx(score.loss / np.log(2))
    assert score.usable_information == pytest.approx((DATA.label_entropy - score.loss) / np.log(2))
    assert score.rows == 200
    layer = probe.to_linear()
    assert layer.weight.dtype == layer.bias.dtype == torch.float32
    assert layer.weight.requires_grad
    with torch.no_grad():
        q = torch.softmax(layer(x.float()), dim=1).numpy()
    np.testing.assert_allclose(q, p, atol=1e-5)
    # The layer has its own memory: training it leaves the probe as it was.
    with torch.no_grad():
        layer.weight.zero_()
    np.testing.assert_array_equal(to_numpy(probe.weights), weights)


def test_a_probe_predicts_in_every_library(library: ModuleType) -> None:
    probe = fit_probes(DATA.x, DATA.y, l2=1e-2)["activations"]
    p = probe.predict_proba(library.asarray(HELD.x))
    assert type(p) is type(library.asarray(HELD.x))
    np.testing.assert_allclose(to_numpy(p), probe.predict_proba(HELD.x), atol=1e-12)


def test_rows_of_another_width_are_refused() -> None:
    probe = fit_probes(DATA.x, DATA.y, l2=1e-2)["activations"]
    with pytest.raises(ValueError, match="expected 6 features, found 5"):
        probe.predict(DATA.x[:, :5])
    with pytest.raises(ValueError, match="row 1 has class 9"):
        probe.evaluate(DATA.x[:2], [0, 9])


METHODS = ["logits", "predict_log_proba", "predict_proba", "predict", "evaluate"]


def call(probe: Probe, method: str, x: Any) -> Any:
    return probe.evaluate(x, DATA.y) if method == "evaluate" else getattr(probe, method)(x)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_a_row_that_is_not_finite_is_named_and_not_predicted(
    method: str, value: float, library: ModuleType
) -> None:
    probe = fit_probes(DATA.x, DATA.y, l2=1e-2, classes=[0, 1, 2, 3])["activations"]
    assert probe.bias[3] == -np.inf  # a class without rows, which is legal
    assert call(probe, method, library.asarray(DATA.x)) is not None
    x = DATA.x.copy()
    x[7, 2] = value
    with pytest.raises(ValueError, match=rf"'x'\]: .* {value} in row 7, feature 2 \(bad rows: 1"):
        call(probe, method, library.asarray(x))


@pytest.mark.parametrize("method", METHODS)
def test_a_row_whose_logits_overflow_is_named(method: str) -> None:
    x = torch.tensor(DATA.x).float()
    probe = fit_probes(x, DATA.y, l2=1e-4)["activations"]
    x[9] = 3e38 * probe.weights[0].sign()  # its logit has terms of one sign: all sums overflow
    with pytest.raises(ValueError, match=r"'x'\]: row 9 is so large that its logits overflow"):
        call(probe, method, x)
    with pytest.raises(ValueError, match=r"'x'\]: row 9 is so large"):
        call(probe, method, x.numpy())


def test_rows_that_are_not_finite_are_named_by_layer_on_disk_and_in_blocks() -> None:
    data = random_data(30_000, 3, 3)
    probes = fit_probes({"fc1": data.x, "fc2": data.x}, data.y, l2=1e-2)
    x = torch.tensor(data.x)
    x[20_001, 1] = torch.nan
    for rows in (x, HostRows(x)):
        with pytest.raises(ValueError, match=r"activations\['fc2'\]: .* nan in row 20001, feat"):
            probes.evaluate({"fc1": data.x, "fc2": rows}, data.y)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_an_autocast_region_changes_nothing(dtype: torch.dtype) -> None:
    x, y = torch.tensor(DATA.x).to(dtype), torch.tensor(DATA.y)

    def everything() -> list[Any]:
        probes = fit_probes({"fc1": x}, y, validation=({"fc1": x}, y))
        probe, memory = probes["fc1"], remember(probes, {"fc1": x})
        warm = fit_probes({"fc1": x}, y, l2=probe.l2, warm_start=memory)["fc1"]
        arrays = [probe.weights, probe.logits(x), probe.predict_proba(x), warm.weights]
        numbers = [probe.loss, probe.gap, probe.evaluate(x, y), probes.evaluate({"fc1": x}, y)]
        return [*(a.tolist() for a in arrays), *numbers, memory.logits["fc1"].tolist()]

    outside = everything()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert (x.float() @ x.float().T).dtype == torch.bfloat16  # it would round
        assert everything() == outside


def test_scores_of_weighted_rows_are_those_of_repeated_rows() -> None:
    counts = np.random.default_rng(0).integers(0, 4, 200)
    rows = np.repeat(np.arange(200), counts)
    labels = {"digit": DATA.y, "one": DATA.y == 1}
    probes = fit_probes({"fc1": DATA.x}, labels, l2=1e-2)
    weighted = probes.evaluate({"fc1": DATA.x}, labels, sample_weight=counts)
    repeated = probes.evaluate({"fc1": DATA.x[rows]}, {name: y[rows] for name, y in labels.items()})
    for name, score in weighted.items():
        other = repeated[name]
        assert (score.error, score.rows) == (other.error, other.rows)
        assert score.loss == pytest.approx(other.loss)
        assert score.label_entropy == pytest.approx(other.label_entropy)
    single = probes["fc1/digit"].evaluate(DATA.x, DATA.y, sample_weight=torch.tensor(counts))
    assert single == weighted["fc1/digit"]
    with pytest.raises(ValueError, match=r"sample_weight: expected shape \(200,\), found \(3,\)"):
        probes.evaluate({"fc1": DATA.x}, labels, sample_weight=[1, 2, 3])
    with pytest.raises(ValueError, match="at least one row"):
        probes.evaluate({"fc1": DATA.x}, labels, sample_weight=0 * counts)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16, torch.float64])
@pytest.mark.parametrize("solver", ["auto", "newton-cg", "svrg", "rmsprop"])
def test_what_is_reported_is_of_the_weights_that_are_returned(
    solver: str, dtype: torch.dtype
) -> None:
    """Also with dependent columns, a large mean and no penalty."""
    block = np.eye(3)[np.random.default_rng(0).integers(0, 3, 200)]
    rows = np.concatenate([DATA.x + 100.0, block, np.full((200, 1), 7.0)], axis=1)
    x = torch.tensor(rows).to(dtype)
    for l2 in (1e-1, 1e-5, 0.0):
        probe = fit_probes(x, DATA.y, solver, l2=l2, max_passes=30)["activations"]
        score = probe.evaluate(x, DATA.y)
        assert score.error == pytest.approx(probe.train_error, abs=1e-9)
        assert score.loss == pytest.approx(probe.loss, abs=1e-9 if dtype == torch.float64 else 2e-6)
        square = float((torch.as_tensor(probe.weights).double() ** 2).sum())
        assert probe.objective == pytest.approx(probe.loss + 0.5 * l2 * square, abs=1e-9)


@pytest.mark.parametrize("k", [2, 4])
def test_a_direction_is_a_classs_weights_less_the_mean_of_the_others(
    k: int, library: ModuleType
) -> None:
    data = random_data(200, 6, k)
    names = [f"c{i}" for i in data.y]
    probe = fit_probes(library.asarray(data.x), names, l2=1e-2)["activations"]
    weights = to_numpy(probe.weights)
    for c, name in enumerate(probe.classes):
        vector = weights[c] - np.delete(weights, c, axis=0).mean(axis=0)
        direction = probe.direction(name)
        assert type(direction) is type(probe.weights)
        np.testing.assert_allclose(to_numpy(direction), vector / np.linalg.norm(vector))
        moved = probe.logits(library.asarray(data.x + 3.0 * to_numpy(direction)))
        change = to_numpy(moved) - to_numpy(probe.logits(library.asarray(data.x)))
        assert (change.argmax(axis=1) == c).all()
    shared = replace(probe, weights=probe.weights + 5.0)
    np.testing.assert_allclose(
        to_numpy(shared.direction("c0")), to_numpy(probe.direction("c0")), atol=1e-12
    )


def test_a_direction_that_there_is_not_is_refused() -> None:
    probe = fit_probes(DATA.x, DATA.y, l2=0.1, classes=[0, 1, 2, "x"])["activations"]
    assert probe.direction(0).shape == (6,)
    with pytest.raises(ValueError, match=r"direction: expected one of \(0, 1, 2, 'x'\), found 'y'"):
        probe.direction("y")
    with pytest.raises(ValueError, match="direction: the class 'x' had no rows"):
        probe.direction("x")
    with pytest.raises(ValueError, match="direction: expected one of"):
        probe.direction([0])
    flat = fit_probes(np.zeros((40, 3)), np.arange(40) % 2, l2=0.1)["activations"]
    with pytest.raises(ValueError, match="direction: the weights of all classes are the same"):
        flat.direction(0)


def test_the_gap_bounds_the_usable_information_of_probes_that_are_no_larger() -> None:
    loose = fit_probes(DATA.x, DATA.y, l2=1e-2, tol=0.2, max_passes=1)["activations"]
    size = np.linalg.norm(loose.weights)
    assert loose.usable_information == pytest.approx(
        loose.evaluate(DATA.x, DATA.y).usable_information
    )
    best = -np.inf
    for l2 in np.geomspace(1e-3, 10, 30):
        probe = fit_probes(DATA.x, DATA.y, l2=l2, tol=1e-6)["activations"]
        if np.linalg.norm(probe.weights) <= size:
            best = max(best, probe.usable_information)
    assert np.isfinite(best)
    assert best <= loose.usable_information + loose.gap / np.log(2)
