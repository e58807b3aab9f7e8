"""The penalty is chosen on held-out rows, each counted by its weight."""

from __future__ import annotations

import numpy as np
import pytest

from convexprobe import fit_probes
from convexprobe.probes.options import SCORING
from convexprobe.probes.splits import hold_out
from tests.oracle import random_data

DATA = random_data(300, 5, 3, weighted=True)
assert DATA.weights is not None
WEIGHTS = DATA.weights
PATH = [1e-4, 1e-1, 3.0]


def test_held_out_rows_are_scored_by_their_weights() -> None:
    probe = fit_probes(DATA.x, DATA.y, l2=PATH, tol=1e-7, sample_weight=WEIGHTS)["activations"]
    held = hold_out(DATA.y, WEIGHTS, 0)
    for point in probe.path:
        alone = fit_probes(
            DATA.x, DATA.y, l2=point.l2, tol=1e-7, sample_weight=np.where(held, 0.0, WEIGHTS)
        )["activations"]
        score = alone.evaluate(DATA.x[held], DATA.y[held], sample_weight=WEIGHTS[held])
        assert point.validation_error == pytest.approx(score.error, abs=1e-9)
        assert point.validation_loss == pytest.approx(score.loss, rel=1e-3)
    best = min(probe.path, key=lambda p: (p.validation_error, p.validation_loss))
    assert (probe.l2, probe.validation_error) == (best.l2, best.validation_error)


def test_balanced_weights_choose_the_penalty_of_the_lowest_balanced_error() -> None:
    rng = np.random.default_rng(0)
    y = (rng.random(2000) < 0.05).astype(int)
    x = rng.standard_normal((2000, 10)) + 0.8 * y[:, None] * (np.arange(10) < 2)
    balanced = np.where(y == 1, 1 / y.sum(), 1 / (2000 - y.sum()))
    probe = fit_probes(x, y, sample_weight=balanced, refit=False)["activations"]
    assert probe.validation_error == min(p.validation_error for p in probe.path)
    held = hold_out(y, balanced, 0)
    score = probe.evaluate(x[held], y[held], sample_weight=balanced[held])
    assert probe.validation_error == pytest.approx(score.error, abs=1e-9)
    assert score.label_entropy == pytest.approx(np.log(2), abs=1e-3)
    plain = probe.evaluate(x[held], y[held])
    assert plain.label_entropy < 0.25 and abs(plain.error - score.error) > 0.03


def test_the_grid_of_weighted_rows_is_that_of_repeated_rows() -> None:
    counts = np.random.default_rng(0).integers(0, 4, 300)
    x = DATA.x.copy()
    x[counts == 0] *= 5.0  # rows that do not count must not move it
    rows = np.repeat(np.arange(300), counts)
    weighted = fit_probes(x, DATA.y, sample_weight=counts)["activations"]
    repeated = fit_probes(x[rows], DATA.y[rows])["activations"]
    assert weighted.path[0].l2 == pytest.approx(repeated.path[0].l2, rel=1e-9)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_a_constant_layer_has_a_grid_of_its_own(dtype: type) -> None:
    x = np.full((5000, 3), 0.1, dtype)
    probe = fit_probes(x, np.arange(5000) % 2, sample_weight=np.full(5000, 0.3))["activations"]
    np.testing.assert_allclose([p.l2 for p in probe.path], 10.0 ** -np.arange(7.0))


def test_massive_dimensions_do_not_own_the_grid() -> None:
    rng = np.random.default_rng(1)
    x = rng.standard_normal((400, 20))
    y = (x[:, 3] + 0.3 * rng.standard_normal(400) > 0).astype(int)
    plain = fit_probes(x, y)["activations"]
    x[:, 0] *= 1e4
    massive = fit_probes(x, y)["activations"]
    assert massive.path[0].l2 < 2.0 * plain.path[0].l2
    assert massive.validation_error < plain.validation_error + 0.05


def test_the_walk_stops_when_held_out_rows_lose_and_goes_on_while_they_gain() -> None:
    rng = np.random.default_rng(2)
    x = rng.standard_normal((300, 60))
    noise = fit_probes(x, rng.integers(2, size=300))["activations"]
    losses = [p.validation_loss for p in noise.path]
    assert len(losses) < 7 and losses[-1] > losses[-2] > losses[-3]
    y = (x[:, 1] > 0).astype(int)
    tiny = x[:, :2] * [1.0, 1e-4]  # all that is known is in a direction that is tiny
    gains = fit_probes(tiny, y, max_passes=200)["activations"]
    assert gains.path[-1].l2 < 0.9e-6 * gains.path[0].l2


def test_a_choice_is_fitted_again_to_all_rows() -> None:
    probe = fit_probes(DATA.x, DATA.y)["activations"]
    part = fit_probes(DATA.x, DATA.y, refit=False)["activations"]
    assert (probe.l2, probe.validation_error) == (part.l2, part.validation_error)
    assert probe.rows == len(DATA.y) > part.rows
    alone = fit_probes(DATA.x, DATA.y, l2=probe.l2)["activations"]
    assert abs(probe.objective - alone.objective) <= probe.gap + alone.gap
    assert probe.passes > part.passes


@pytest.mark.parametrize("measure", SCORING)
@pytest.mark.parametrize("given", ["a fifth", "validation", "folds"])
def test_a_penalty_can_be_chosen_by_any_measure(measure: str, given: str) -> None:
    rng, penalties = np.random.default_rng(1), [3.0, 0.3, 0.03, 0.003]
    y = (rng.random(240) < 0.2).astype(int)
    x = rng.standard_normal((240, 30)) + 1.2 * y[:, None] * (np.arange(30) < 2)
    fresh = (x[160:], y[160:])
    where = {"a fifth": {}, "validation": {"validation": fresh}, "folds": {"cv": 3}}[given]
    settings = {"refit": False, "seed": 3, **where}
    probe = fit_probes(x, y, l2=penalties, scoring=measure, **settings)["activations"]
    if given != "validation":
        assert probe.l2 in penalties
        return
    scores = [fit_probes(x, y, l2=v)["activations"].evaluate(*fresh) for v in penalties]
    values = [getattr(score, measure) for score in scores]
    best = {"lowest": min, "highest": max}[SCORING[measure]](values)
    assert values[penalties.index(probe.l2)] == pytest.approx(best, abs=1e-3)


def test_a_measure_that_held_out_rows_do_not_define_leaves_the_choice_to_the_error() -> None:
    held = (DATA.x[:20], np.zeros(20, dtype=int))  # of one class: there is no curve
    settings = {"l2": [1e-3, 1e-1, 10.0], "validation": held}
    chosen = [
        fit_probes(DATA.x, DATA.y, scoring=s, **settings)["activations"] for s in ("auroc", "error")
    ]
    assert chosen[0].l2 == chosen[1].l2


def test_a_penalty_can_be_chosen_by_loss() -> None:
    probe = fit_probes(DATA.x, DATA.y, scoring="loss", refit=False)["activations"]
    best = min(probe.path, key=lambda point: point.validation_loss)
    assert probe.l2 == best.l2
