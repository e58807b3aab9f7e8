"""Predictions of a probe, and how it scores on rows with labels."""

from __future__ import annotations

from dataclasses import replace
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch

from convexprobe import fit_probes
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
