"""Starts from an earlier probe: what a transfer solves exactly, and what is taken."""

from __future__ import annotations

from dataclasses import replace
from types import ModuleType

import numpy as np
import pytest

import convexprobe as cxp
import convexprobe.probes.warm_start
import convexprobe.problem.preconditioners
from convexprobe.arrays.backend import to_numpy
from convexprobe.problem.preconditioners import Curvature
from convexprobe.solvers.starts import Previous, best_start, regressed, transferred
from tests.oracle import Data, dense_hessian, minimum, random_data, reference

DATA = random_data(300, 6, 3)
L2 = 1e-2
BEST, LOWEST = minimum(DATA, L2)


def rotation(d: int, seed: int = 0) -> np.ndarray:
    return np.linalg.qr(np.random.default_rng(seed).standard_normal((d, d)))[0]


def logits(data: Data, w: np.ndarray) -> np.ndarray:
    """`(1, k, n)` of parameters `(p,)`."""
    d = data.x.shape[1]
    weights, bias = w[: data.k * d].reshape(data.k, d), w[data.k * d :]
    return (data.x @ weights.T + bias).T[None]


@pytest.mark.parametrize("own_scales", [False, True])
@pytest.mark.parametrize("base", ["zero", "far"])
def test_an_optimal_probe_follows_a_rotation_exactly(
    library: ModuleType, base: str, own_scales: bool
) -> None:
    curvature = Curvature(classes=2 if own_scales else 256)  # as with hundreds of classes
    # F(W Q) on X Q is F(W) on X, penalty included: the transfer has nothing to correct.
    turn = rotation(6)
    problem = replace(DATA, x=DATA.x @ turn + 3.0).problem(L2, library)
    start = np.zeros((1, problem.p)) if base == "zero" else np.random.default_rng(1).normal(
        size=(1, problem.p))  # fmt: skip
    found, _ = transferred(
        problem,
        library.asarray(start),
        library.asarray(logits(DATA, BEST)),
        np.arange(300),
        curvature=curvature,
    )
    weights, _ = problem.split(found)
    np.testing.assert_allclose(to_numpy(weights)[0], BEST[:18].reshape(3, 6) @ turn, atol=1e-6)
    value = reference(replace(DATA, x=DATA.x @ turn + 3.0), to_numpy(found)[0], L2)[0]
    assert value == pytest.approx(LOWEST, abs=1e-10)


def test_it_is_the_minimiser_of_the_quadratic_model_around_any_logits() -> None:
    # Two classes: there h (I - 11'/2) is the Hessian itself, and this the textbook's Newton step.
    data = random_data(200, 4, 2)
    problem = data.problem(L2)
    w = np.random.default_rng(0).normal(size=10) * 0.3
    _, gradient, p = reference(data, w, L2)
    hessian = dense_hessian(data, p, L2)
    newton = w - np.linalg.lstsq(hessian, gradient, rcond=None)[0]
    newton[:4] -= (newton[:4] + newton[4:8]) / 2  # both fix the weights' mean over classes: at 0
    newton[4:8] = -newton[:4]
    found, _ = transferred(problem, np.zeros((1, 10)), logits(data, w), np.arange(200))
    np.testing.assert_allclose(found[0, :4] - found[0, 4:8], newton[:4] - newton[4:8], atol=1e-6)
    assert found[0, 8] - found[0, 9] == pytest.approx(newton[8] - newton[9], abs=1e-6)


@pytest.mark.parametrize("base", ["zero", "far"])
@pytest.mark.parametrize("bias", [False, True])
def test_a_regression_follows_a_linear_map_from_a_few_rows(
    library: ModuleType, base: str, bias: bool
) -> None:
    # The ridge shrinks towards the base: exact up to its share of the variance.
    rng = np.random.default_rng(2)
    data = random_data(4000, 20, 5)
    turned = replace(data, x=data.x @ (rotation(20) * 3.0) + (2.0 if bias else 0.0))
    problem = turned.problem(L2, library, bias=bias)
    old = rng.standard_normal(105)
    old[100:] *= bias
    start = 0.1 * rng.standard_normal((1, problem.p)) * (base == "far")
    rows = np.arange(0, 4000, 40)
    z = logits(data, old)
    found, _ = regressed(problem, library.asarray(start), library.asarray(z[:, :, rows]), rows)
    missed = to_numpy(problem.logit_change(found)) - z
    missed -= missed.mean(axis=1, keepdims=True)  # softmax does not see what a row's logits share
    apart = to_numpy(problem.logit_change(library.asarray(start))) - z
    assert np.abs(missed).mean() < 0.03 * np.abs(apart).mean()


def test_a_regression_on_fewer_rows_than_features_leaves_the_base_where_it_sees_nothing() -> None:
    data = random_data(60, 200, 3)
    problem = data.problem(L2)
    w = 0.1 * np.random.default_rng(0).standard_normal((1, 603))
    rows = np.arange(0, 60, 6)
    moved, _ = regressed(problem, w, logits(data, w[0])[:, :, rows], rows)
    np.testing.assert_allclose(moved, w, atol=1e-8)  # nothing was missed
    other, _ = regressed(problem, w, 5.0 + 0.0 * logits(data, w[0])[:, :, rows], rows)
    unseen = np.linalg.svd(data.x[rows])[2][10:]
    change = (other - w)[0, :600].reshape(3, 200)
    assert np.abs(change @ unseen.T).max() < 0.1 * np.abs(change).max()


def test_a_regression_has_a_preconditioner_if_it_has_as_many_rows_as_that_takes() -> None:
    problem, w = random_data(2000, 5, 3).problem(L2), np.zeros((1, 18))
    for count, enough in ((40, False), (1499, False), (1500, True)):
        _, inverse = regressed(problem, w, np.zeros((1, 3, count)), np.arange(count))
        assert (inverse is not None) == enough
        assert inverse is None or np.isfinite(inverse.solve(np.ones((1, 18)))).all()


def test_few_remembered_rows_cost_no_passes() -> None:
    data = random_data(1200, 60, 5)
    x = data.x.astype(np.float32)
    old = cxp.fit_probes(x, data.y, l2=1e-4)
    few = cxp.remember(old, {"activations": x}, max_bytes=2000)
    x = (data.x @ rotation(60)).astype(np.float32)
    warm, cold = (
        cxp.fit_probes(x, data.y, l2=1e-4, warm_start=start)["activations"] for start in (few, None)
    )
    assert warm.start == "transferred"
    assert warm.passes < cold.passes


def test_rows_without_labels_to_spare_start_from_old_logits_and_not_from_a_fit_to_them() -> None:
    data = random_data(3000, 40, 8)
    old = cxp.fit_probes(data.x, data.y, l2=1e-4, tol=1e-5)["activations"]
    w = np.concatenate([old.weights.ravel(), old.bias])
    turned = replace(data, x=data.x @ rotation(40))
    problem, rows = turned.problem(1e-4), np.arange(0, 3000, 20)
    z = logits(data, w)[:, :, rows]
    zero = problem.constant_classifier()
    by_step, _ = transferred(problem, zero, z, rows)
    by_logits, _ = regressed(problem, zero, z, rows)
    lowest = old.objective - old.gap
    excess = [float(problem.evaluate(v).value[0]) - lowest for v in (by_step, by_logits)]
    assert excess[1] < 0.1 * excess[0]
    start = best_start(problem, Previous(w[None], z, rows))
    assert start.names == ["transferred"]
    assert float(problem.evaluate(start.w).value[0]) - lowest == pytest.approx(excess[1], rel=0.5)


def test_with_more_features_than_rows_the_transfer_starts_from_the_base() -> None:
    wide = random_data(60, 1200, 3)
    problem = wide.problem(L2)
    old = cxp.fit_probes(wide.x, wide.y, l2=L2, tol=1e-6)["activations"]
    w = np.concatenate([old.weights.ravel(), old.bias])[None]
    moved, _ = transferred(problem, w, logits(wide, w[0]), np.arange(60))
    np.testing.assert_allclose(moved, w, atol=5e-3)  # as far as the old one was optimal


def test_the_best_start_is_taken_and_named() -> None:
    problem = DATA.problem(L2)
    w, z = BEST[None], logits(DATA, BEST)
    assert best_start(problem, None).names == ["zero"]
    assert best_start(problem, Previous(w)).names == ["copied"]
    assert best_start(problem, Previous(100 * w)).names == ["zero"]
    turned = replace(DATA, x=DATA.x @ rotation(6)).problem(L2)
    start = best_start(turned, Previous(w, z, np.arange(300)))
    assert start.names == ["transferred"] and start.inverse is not None
    wild = best_start(turned, Previous(1e6 * w, 1e6 * z, np.arange(300)))
    assert wild.names == ["zero"] and wild.inverse is None
    assert best_start(problem, Previous(np.full_like(w, np.nan))).names in (["zero"], ["copied"])
    with_gaps = np.where(np.arange(300) % 7, z, -np.inf)
    assert np.isfinite(best_start(turned, Previous(w, with_gaps, np.arange(300))).w).all()


@pytest.mark.parametrize("l2", [1e-1, 1e-4])
def test_no_start_biases_the_answer(l2: float) -> None:
    turned = replace(DATA, x=DATA.x @ rotation(6, 3) * 1.1)
    memory = cxp.remember(cxp.fit_probes(DATA.x, DATA.y, l2=l2), DATA.x)
    cold = cxp.fit_probes(turned.x, DATA.y, l2=l2, tol=1e-5)["activations"]
    warm = cxp.fit_probes(turned.x, DATA.y, l2=l2, tol=1e-5, warm_start=memory)["activations"]
    assert (cold.start, warm.start) == ("zero", "transferred")
    assert warm.passes <= cold.passes
    best = minimum(turned, l2)[1]
    for probe in (cold, warm):
        assert -1e-9 <= probe.objective - best <= probe.gap + 1e-9
    assert abs(cold.objective - warm.objective) <= cold.gap + warm.gap


def test_concepts_with_classes_of_their_own_are_transferred() -> None:
    labels = {"three": DATA.y, "two": DATA.y == 1, "none": np.where(DATA.y == 2, 0, DATA.y)}
    memory = cxp.remember(cxp.fit_probes({"fc": DATA.x}, labels, l2=L2), {"fc": DATA.x})
    turned = DATA.x @ rotation(6)
    warm = cxp.fit_probes({"fc": turned}, labels, l2=L2, tol=1e-6, warm_start=memory)
    assert {p.start for p in warm.values()} == {"transferred"}
    cold = cxp.fit_probes({"fc": turned}, labels, l2=L2, tol=1e-6)
    for name, probe in warm.items():
        assert abs(probe.objective - cold[name].objective) <= probe.gap + cold[name].gap


def test_a_memory_of_other_rows_is_refused() -> None:
    memory = cxp.remember(cxp.fit_probes({"fc": DATA.x}, DATA.y, l2=L2), {"fc": DATA.x})
    with pytest.raises(ValueError, match=r"remembers row 299, found 200 rows in 'fc'"):
        cxp.fit_probes({"fc": DATA.x[:200]}, DATA.y[:200], l2=L2, warm_start=memory)
    with pytest.raises(ValueError, match="expected layer 'fc', found"):
        cxp.remember(memory.probes, {"other": DATA.x})


def test_wild_activations_and_memories_are_survived_without_a_warning() -> None:
    data = random_data(200, 5, 3)
    old = cxp.fit_probes(data.x, data.y, l2=1.0)
    memory = cxp.remember(old, data.x * 1e150)  # its logits and its weights are far off
    scaled = data.x * np.array([1e12, 1e-12, 1.0, 0.0, 1.0])
    probe = cxp.fit_probes(scaled, data.y, l2=1.0, warm_start=memory)["activations"]
    cold = cxp.fit_probes(scaled, data.y, l2=1.0)["activations"]
    assert probe.objective - probe.gap <= cold.objective <= probe.objective + cold.gap + 1e-9


def test_a_memory_of_some_rows_serves_too() -> None:
    data = random_data(3000, 6, 3)
    memory = cxp.remember(cxp.fit_probes(data.x, data.y, l2=L2), data.x, max_bytes=4 * 3 * 1000)
    assert len(memory.rows) == 1000 and memory.logits["activations"].shape == (3, 1000)
    turned = data.x @ rotation(6)
    warm = cxp.fit_probes(turned, data.y, l2=L2, warm_start=memory)["activations"]
    cold = cxp.fit_probes(turned, data.y, l2=L2)["activations"]
    assert warm.start == "transferred" and warm.passes < cold.passes
    assert abs(warm.objective - cold.objective) <= warm.gap + cold.gap
