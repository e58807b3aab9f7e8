"""The benchmark at the size of ImageNet, at sizes that take a second."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from benchmarks.scale import imagenet, warm
from benchmarks.scale.cost_model import CostModel, Measurement, sample_rows
from benchmarks.scale.spectrum import BLOCK, Features, decay


def test_rows_depend_on_the_seed_and_their_block_alone() -> None:
    features = Features(2 * BLOCK + 100, 16, 5, seed=3)
    x, y = features.make()
    again, _ = features.make()
    assert torch.equal(x, again) and x.dtype == torch.float16 and x.shape == (features.n, 16)
    rows, labels = features.make(part=slice(BLOCK, features.n))
    assert torch.equal(rows, x[BLOCK:]) and torch.equal(labels, y[BLOCK:])
    assert not torch.equal(replace(features, seed=4).make()[0], x)
    assert torch.equal(replace(features, seed=4).make()[1], y)  # one data set, another layer


def test_the_next_checkpoint_has_moved_a_little() -> None:
    features = Features(500, 64, 5)
    x, later = (replace(features, drift=t).make(dtype=torch.float64)[0] for t in (0.0, 0.1))
    correlation = torch.corrcoef(torch.stack([x.ravel(), later.ravel()]))[0, 1]
    assert 0.97 < correlation < 0.999


def test_the_spectrum_is_that_of_real_activations() -> None:
    """Between the exponents measured on the MNIST convnet's fc1_postact, as a power law."""
    alpha, fit = decay(Features(1024, 256, 10).make(dtype=torch.float32)[0])
    assert 1.0 < alpha < 1.35 and fit > 0.98


def test_a_cost_model_finds_the_law_that_made_the_times() -> None:
    rng = np.random.default_rng(0)
    sizes = 2 ** rng.integers(5, 14, (20, 3))
    made = [
        Measurement(int(n), int(d), int(k), "cold",
                    p * (1e-11 * n * d * k + 1e-9 * n * d) + 1e-10 * d**3 + 0.01,
                    p, 1e-4, "CERTIFIED", 2)
        for n, d, k in sizes for p in [3.0 + 2.0 * d**0.7 * sample_rows(int(d)) / n]
    ]  # fmt: skip
    model = CostModel.fit(made[:14], flops=1e12)
    np.testing.assert_allclose(model.errors(made[14:]), 1.0, rtol=1e-6)
    np.testing.assert_allclose(model.seconds, [1e-11, 0, 1e-9, 1e-10, 0.01], atol=1e-13)
    np.testing.assert_allclose(model.passes, (3.0, 2.0, 0.7))
    with pytest.raises(ValueError, match="at least five"):
        CostModel.fit(made[:4], flops=1e12)
    capped = CostModel.fit(made[:14], flops=1e11)  # where 4e-11 s an entry is the least
    assert capped.seconds[0] == pytest.approx(4e-11)


def test_the_benchmark_writes_what_it_measured(tmp_path: Path) -> None:
    imagenet.main(["--out", str(tmp_path), "--shrink", "64", "--seconds", "2"])
    results = json.loads((tmp_path / "imagenet_scale.json").read_text())
    solved = results["grid"] + results["held_out"] + results["largest"]
    assert len(solved) == 2 * (14 + 3 + 1)
    assert all(m["status"] == "CERTIFIED" and m["gap"] <= 1e-3 for m in solved)
    assert results["torch_lbfgs"]["status"] == "arrived"
    text = (tmp_path / "imagenet_scale.md").read_text()
    assert text.count("| certified |") == len(solved) and results["machine"] in text


def test_a_checkpoint_is_measured_from_three_starts(capsys: pytest.CaptureFixture[str]) -> None:
    warm.main(["--size", "600", "32", "5", "--repeats", "2"])
    lines = capsys.readouterr().out.splitlines()
    assert [line.split(" | ")[0] for line in lines[2:]] == ["| cold", "| copied", "| remembered"]
    assert all(line.endswith("| certified |") for line in lines[2:])
    assert lines[2].split(" | ")[3:5] == ["1.00", "1.00"]
