"""Families in the public API: concepts, cross-validation, paths, and what they share."""

from __future__ import annotations

from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
from conftest import Data, minimum, random_data, reference

import convexprobe.path
import convexprobe.preconditioner
from convexprobe import Probe, ProbeSet, Status, fit_probes, load_probes
from convexprobe._array import to_numpy
from convexprobe.folds import assign_folds, hold_out
from convexprobe.preconditioner import Curvature
from convexprobe.sample import Sample

DATA = random_data(200, 6, 3)
HELD = random_data(100, 6, 3, seed=7)
CONCEPTS = np.stack([DATA.y, DATA.y == 1, DATA.x[:, 0] + DATA.x[:, 1] > 0.5], axis=1).astype(int)
PATH = [1e-3, 1.0, 1e-1, 1e-4, 10.0, 1e-2]
"""Six values in no order: more than are solved together."""


def distance(probe: Probe, data: Data) -> float:
    """How far the probe is from the optimum of its own objective, by the oracle."""
    w = np.concatenate([to_numpy(probe.weights).ravel(), to_numpy(probe.bias)])
    return reference(data, w, probe.l2)[0] - minimum(data, probe.l2)[1]


def check(probe: Probe, data: Data, tol: float = 1e-3) -> None:
    """Certified, and what it claims is true."""
    assert probe.status is Status.CERTIFIED
    assert -1e-9 <= distance(probe, data) <= probe.gap <= tol * data.label_entropy


# Concepts


@pytest.mark.parametrize("form", ["array", "mapping"])
def test_concepts_are_each_a_probe_of_their_own(form: str, library: ModuleType) -> None:
    layers = {"fc1": library.asarray(DATA.x), "fc2": library.asarray(DATA.x[:, :4])}
    names = ["0", "1", "2"] if form == "array" else ["digit", "one", "sum"]
    columns = dict(zip(names, CONCEPTS.T, strict=True))
    labels = library.asarray(CONCEPTS) if form == "array" else columns
    probes = fit_probes(layers, labels, l2=1e-2)
    assert list(probes) == [f"{layer}/{name}" for layer in layers for name in names]
    for layer, x in (("fc1", DATA.x), ("fc2", DATA.x[:, :4])):
        for name, y in columns.items():
            k = int(y.max()) + 1
            probe = probes[f"{layer}/{name}"]
            assert probe.classes == tuple(range(k)) and probe.weights.shape == (k, x.shape[1])
            assert type(probe.weights) is type(layers["fc1"])
            check(probe, Data(x, y, k))
            wrong = np.mean(probe.predict(x) != y)
            assert probe.train_error == pytest.approx(wrong)
    scores = probes.evaluate(layers, labels)
    assert list(scores) == list(probes)
    for name, score in scores.items():
        assert score.error == pytest.approx(probes[name].train_error)
        assert score.loss == pytest.approx(probes[name].loss)


def test_concepts_may_have_other_classes_and_be_given_a_list() -> None:
    labels = {"kind": np.array(["ant", "bee", "cat"])[DATA.y], "big": (DATA.y > 0).tolist()}
    probes = fit_probes(DATA.x, labels, l2=1e-2)
    assert probes["activations/kind"].classes == ("ant", "bee", "cat")
    assert probes["activations/big"].classes == (False, True)
    check(probes["activations/big"], Data(DATA.x, (DATA.y > 0).astype(int), 2))
    given = fit_probes(DATA.x, CONCEPTS, l2=1e-2, classes=[0, 1, 2])
    assert {probe.classes for probe in given.values()} == {(0, 1, 2)}
    assert np.isneginf(given["activations/1"].bias[2])
    assert distance(given["activations/0"], DATA) <= given["activations/0"].gap


def test_each_concept_chooses_its_own_penalty() -> None:
    held = {"digit": HELD.y, "one": (HELD.y == 1).astype(int)}
    labels = {"digit": DATA.y, "one": (DATA.y == 1).astype(int)}
    together = fit_probes(DATA.x, labels, l2=PATH, tol=1e-5, validation=(HELD.x, held))
    for name in labels:
        alone = fit_probes(
            DATA.x, labels[name], l2=PATH, tol=1e-5, validation=(HELD.x, held[name])
        )["activations"]
        probe = together[f"activations/{name}"]
        assert probe.l2 == alone.l2
        assert [p.l2 for p in probe.path] == PATH
        assert probe.validation_error == pytest.approx(alone.validation_error, abs=0.011)
        check(probe, Data(DATA.x, labels[name], len(probe.classes)), 1e-5)
    fifths = fit_probes(DATA.x, labels)
    for name, y in labels.items():
        assert fifths[f"activations/{name}"].rows == 200 - np.sum(np.bincount(y) // 5)


def test_concepts_warm_start_print_and_survive_a_file(tmp_path: Path) -> None:
    labels = {"digit": DATA.y, "one": (DATA.y == 1).astype(int)}
    old = fit_probes({"fc1": DATA.x}, labels, l2=1e-3, tol=1e-6)
    warm = fit_probes({"fc1": DATA.x}, labels, l2=1e-3, tol=1e-5, warm_start=old)
    for name in old:
        assert warm[name].passes < old[name].passes
        assert abs(warm[name].objective - old[name].objective) <= warm[name].gap + old[name].gap
    lines = str(warm).splitlines()
    assert [line.split()[0] for line in lines[1:-1]] == ["fc1/digit", "fc1/one"]
    warm.save(tmp_path / "p")
    assert str(load_probes(tmp_path / "p")) == str(warm)
    other = ProbeSet({"fc1/digit": old["fc1/one"], "fc1/one": old["fc1/one"]})
    with pytest.raises(ValueError, match=r"warm_start\['fc1/digit'\].*\(0, 1, 2\)"):
        fit_probes({"fc1": DATA.x}, labels, l2=1e-3, warm_start=other)


# Cross-validation


@pytest.mark.parametrize("weighted", [False, True])
def test_cross_validation_is_what_it_is_by_hand(weighted: bool, library: ModuleType) -> None:
    weights = np.random.default_rng(1).integers(0, 3, 200) * 1.0 if weighted else None
    x = library.asarray(DATA.x)
    probe = fit_probes(
        x, DATA.y, l2=PATH, cv=4, seed=5, tol=1e-6, sample_weight=weights
    )["activations"]  # fmt: skip
    fold = assign_folds(DATA.y, weights, 4, 5)
    errors, losses = np.zeros((4, len(PATH))), np.zeros((4, len(PATH)))
    for f in range(4):
        fitted, scored = (fold != f) & (fold >= 0), fold == f
        kept = None if weights is None else weights[fitted]
        for v, l2 in enumerate(PATH):
            part = fit_probes(DATA.x[fitted], DATA.y[fitted], l2=l2, tol=1e-6, sample_weight=kept)
            score = part["activations"].evaluate(DATA.x[scored], DATA.y[scored])
            errors[f, v], losses[f, v] = score.error, score.loss
    assert [p.l2 for p in probe.path] == PATH
    got = [(p.validation_error, p.validation_loss) for p in probe.path]
    # Two points within tol may differ in a row that is nearly undecided.
    np.testing.assert_allclose([e for e, _ in got], errors.mean(axis=0), atol=0.01)
    np.testing.assert_allclose([loss for _, loss in got], losses.mean(axis=0), rtol=0.02)
    best = min(range(len(PATH)), key=lambda v: got[v])
    assert probe.l2 == PATH[best] and probe.validation_error == got[best][0]
    check(probe, Data(DATA.x, DATA.y, 3, weights), 1e-6)  # of all rows
    assert probe.rows == (200 if weights is None else weights.sum())


def test_cross_validation_of_one_penalty_and_of_concepts() -> None:
    probe = fit_probes(DATA.x, DATA.y, l2=0.1, cv=5)["activations"]
    assert probe.path == () and probe.validation_error is not None
    assert abs(probe.validation_error - probe.train_error) < 0.2
    labels = {"digit": DATA.y, "one": (DATA.y == 1).astype(int)}
    probes = fit_probes(DATA.x, labels, l2=PATH, cv=3, tol=1e-6)
    for name, y in labels.items():
        alone = fit_probes(DATA.x, y, l2=PATH, cv=3, tol=1e-6)["activations"]
        both = probes[f"activations/{name}"]
        assert both.validation_error == pytest.approx(alone.validation_error, abs=0.011)
        assert (both.l2, both.rows) == (alone.l2, 200)
        check(both, Data(DATA.x, y, len(both.classes)), 1e-6)


def test_folds_are_stratified_disjoint_and_seeded() -> None:
    weights = (np.arange(200) % 10 > 0).astype(float)
    fold = assign_folds(DATA.y, weights, 5, 0)
    assert (fold == -1).sum() == 20 and set(fold[weights > 0]) == set(range(5))
    for c in range(3):
        sizes = np.bincount(fold[(DATA.y == c) & (weights > 0)], minlength=5)
        assert sizes.max() - sizes.min() <= 1
    sizes = np.bincount(fold[fold >= 0])
    assert sizes.max() - sizes.min() <= 1
    np.testing.assert_array_equal(fold, assign_folds(DATA.y, weights, 5, 0))
    assert (fold != assign_folds(DATA.y, weights, 5, 1)).any()
    assert not (hold_out(DATA.y, weights, 0) & (weights == 0)).any()


# Paths


@pytest.mark.parametrize("solver", ["newton-cg", "lbfgs"])
def test_how_tasks_are_grouped_does_not_change_the_answer(
    solver: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    labels = {"digit": DATA.y, "one": (DATA.y == 1).astype(int)}
    for together, memory in ((4, 2e9), (1, 2e9), (4, 0.0), (99, 2e9)):
        monkeypatch.setattr(convexprobe.path, "NEIGHBOURS", together)
        monkeypatch.setattr(convexprobe.path, "MEMORY", memory)
        probes = fit_probes(DATA.x, labels, solver, l2=PATH, validation=(DATA.x, labels))
        for name, y in labels.items():
            probe = probes[f"activations/{name}"]
            data = Data(DATA.x, y, len(probe.classes))
            check(probe, data)
            for point in probe.path:
                assert point.status is Status.CERTIFIED
                value = minimum(data, point.l2)[1]
                assert point.loss <= value + point.gap  # the penalty is not in the loss


def test_budgets_hold_for_the_whole_path() -> None:
    probe = fit_probes(
        DATA.x, DATA.y, l2=PATH, tol=1e-12, max_passes=5, validation=(HELD.x, HELD.y)
    )["activations"]
    assert {point.status for point in probe.path} == {Status.MAX_PASSES}
    assert (
        probe.passes <= 5 + 13 + 2
    )  # a line search at most beyond it, and the second chunk's look
    probe = fit_probes(
        DATA.x, DATA.y, l2=PATH, tol=1e-12, max_seconds=0.0, validation=(HELD.x, HELD.y)
    )["activations"]
    assert {point.status for point in probe.path} == {Status.MAX_SECONDS}
    assert all(np.isfinite(point.gap) for point in probe.path)


# One eigendecomposition for every task


@pytest.mark.parametrize(
    ("n", "d", "rank"),
    [(60, 5, 1024), (20, 50, 1024), (60, 30, 8)],
    ids=["dense", "low rank", "low rank of fewer rows"],
)
def test_one_eigendecomposition_serves_as_well_as_an_inverse_a_task(
    n: int, d: int, rank: int, library: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Of two classes, so that a scale for each is the same as one for both.
    problem = random_data(n, d, 2, weighted=True).problem([1e-4, 1e-2, 1.0, 10.0], library)
    rng = np.random.default_rng(0)
    at = problem.evaluate(library.asarray(0.3 * rng.standard_normal((4, problem.p))))
    sample = Sample.draw(problem, at, n, rng)
    v = library.asarray(rng.standard_normal((4, problem.p)))
    out = []
    for limit in (0, 99):
        monkeypatch.setattr(convexprobe.preconditioner, "SPECTRAL", limit)
        inverse = Curvature(rank=rank).build(sample)
        out.append([to_numpy(inverse.solve(v)), type(inverse)])
        rest = inverse.tasks([3, 1]).solve(v[2:, :])  # type: ignore[attr-defined]  # both have it
        expected = to_numpy(inverse.solve(library.stack([v[0, :], v[3, :], v[0, :], v[2, :]])))
        np.testing.assert_allclose(to_numpy(rest), expected[[3, 1]], rtol=1e-9, atol=1e-12)
    (one, spectral), (each, separate) = out
    assert spectral is not separate
    np.testing.assert_allclose(one, each, rtol=1e-6, atol=1e-8 * np.abs(each).max())


# Early stopping on validation rows

NOISE = random_data(60, 30, 3)
FRESH = random_data(400, 30, 3, seed=9)  # other labels: what fits NOISE soon fits these worse


@pytest.mark.parametrize("solver", ["newton-cg", "lbfgs", "adam"])
def test_early_stopping_returns_the_point_of_lowest_validation_loss(
    solver: str, library: ModuleType
) -> None:
    x = library.asarray(NOISE.x)
    held = (library.asarray(FRESH.x), FRESH.y)
    early = fit_probes(x, NOISE.y, solver, l2=1e-4, stopping="validation", validation=held)
    probe = early["activations"]
    assert probe.status is Status.VALIDATION
    assert str(early).splitlines()[1].split()[-1] == "validation"
    assert -1e-9 <= distance(probe, NOISE) <= probe.gap  # of that point, far from the optimum
    assert probe.gap > 1e-3 * NOISE.label_entropy
    full = fit_probes(x, NOISE.y, l2=1e-4)["activations"]
    assert probe.evaluate(*held).loss < full.evaluate(*held).loss
    assert probe.validation_error == probe.evaluate(*held).error


def test_early_stopping_on_a_held_out_fifth_for_each_concept() -> None:
    labels = {"digit": DATA.y, "one": (DATA.y == 1).astype(int)}
    probes = fit_probes(DATA.x, labels, l2=PATH, stopping="validation", seed=2)
    for name, y in labels.items():
        alone = fit_probes(DATA.x, y, l2=PATH, stopping="validation", seed=2)["activations"]
        probe = probes[f"activations/{name}"]
        weights = 1.0 - hold_out(y, None, 2)
        for found in (probe, alone):
            assert found.rows == weights.sum() and found.validation_error is not None
            data = Data(DATA.x, y, len(found.classes), weights)
            assert -1e-9 <= distance(found, data) <= found.gap
            for point in found.path:  # stopped early, or so close that nothing is left to gain
                close = point.gap <= 1e-5 * data.label_entropy
                assert point.status is (Status.CERTIFIED if close else Status.VALIDATION)


def test_a_class_without_rows_to_fit_does_not_hide_the_validation_loss() -> None:
    some = NOISE.y != 2
    probe = fit_probes(
        NOISE.x[some],
        NOISE.y[some],
        l2=1e-4,
        classes=[0, 1, 2],
        stopping="validation",
        validation=(FRESH.x, FRESH.y),
    )["activations"]
    assert probe.status is Status.VALIDATION and probe.gap > 1e-3
