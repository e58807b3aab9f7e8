"""Several concepts over the same rows: a probe for each, and what they share."""

from __future__ import annotations

from pathlib import Path
from types import ModuleType

import numpy as np
import pytest

from convexprobe import ProbeSet, fit_probes, load_probes
from tests.claims import check, distance
from tests.oracle import Data, random_data

DATA = random_data(200, 6, 3)
HELD = random_data(100, 6, 3, seed=7)
CONCEPTS = np.stack([DATA.y, DATA.y == 1, DATA.x[:, 0] + DATA.x[:, 1] > 0.5], axis=1).astype(int)
PATH = [1e-3, 1.0, 1e-1, 1e-4, 10.0, 1e-2]
"""Six values in no order: more than are solved together."""


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
    fifths = fit_probes(DATA.x, labels, refit=False)
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
    assert [line.split()[0] for line in lines[1:-3]] == ["fc1/digit", "fc1/one"]
    warm.save(tmp_path / "p")
    assert str(load_probes(tmp_path / "p")) == str(warm)
    other = ProbeSet({"fc1/digit": old["fc1/one"], "fc1/one": old["fc1/one"]})
    with pytest.raises(ValueError, match=r"warm_start\['fc1/digit'\].*\(0, 1, 2\)"):
        fit_probes({"fc1": DATA.x}, labels, l2=1e-3, warm_start=other)
