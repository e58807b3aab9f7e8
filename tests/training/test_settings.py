"""Groups, weights of classes, scoring and standardizing in monitors; every measure is recorded."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

import convexprobe as cxp
from convexprobe.metrics.score import FORMATS
from convexprobe.training.results import LayerResult
from tests.tiny import checkpoints, network, rows

X, Y = rows()
HELD, HELD_Y = rows(60, seed=2)
GROUPS = np.arange(150) // 6
SIGN = (X[:, 0] + 0.5 * X[:, 3] > 0).long()
UNKNOWN = torch.where(torch.arange(150) % 3 == 0, -100, SIGN)


def fitted(**settings: Any) -> dict[str, Any]:
    activations, _ = cxp.extract(network(), [X])
    return dict(cxp.fit_probes(activations, Y, tol=1e-5, **settings))


@pytest.mark.parametrize(
    "settings",
    [{"class_weight": "balanced"}, {"class_weight": {1: 3.0}}, {"standardize": True},
     {"groups": GROUPS}],
    ids=str,
)  # fmt: skip
def test_a_monitor_fits_with_the_settings_of_fit_probes(settings: dict[str, Any]) -> None:
    monitor = cxp.ProbeMonitor(X, Y, l2=1e-2, tol=1e-5, **settings)
    monitor.record(network(), 0)
    for name, probe in fitted(l2=1e-2, **settings).items():
        other = monitor.history[0][name]
        assert other.loss == pytest.approx(probe.loss, abs=1e-4)
        np.testing.assert_allclose(other.weights, probe.weights, atol=0.02)


@pytest.mark.parametrize("settings", [{"groups": GROUPS}, {"scoring": "loss"}], ids=str)
def test_a_monitor_chooses_the_penalty_that_fit_probes_chooses(settings: dict[str, Any]) -> None:
    monitor = cxp.ProbeMonitor(X, Y, tol=1e-5, **settings)
    for step, state in checkpoints(2):
        model = network()
        model.load_state_dict(state)
        monitor.record(model, step)
    model.load_state_dict(checkpoints(1)[0][1])
    activations, _ = cxp.extract(model, [X])
    for name, probe in cxp.fit_probes(activations, Y, tol=1e-5, **settings).items():
        assert [monitor.history[step][name].l2 for step in (0, 3)] == [probe.l2] * 2


def test_weights_of_classes_are_of_the_concepts_that_have_them() -> None:
    kind = np.array(["a", "b", "c"])[Y]
    concepts = {"kind": kind, "sign": UNKNOWN.numpy()}
    monitor = cxp.ProbeMonitor(X, concepts, tol=1e-4, class_weight={"b": 2.0, 1: 3.0}, layers="0")
    entry = monitor.record(network(), 0)
    assert entry is not None
    assert len({result.l2 for result in entry.layers}) == 2  # fitted in two parts
    weighted = np.where(kind == "b", 2.0, 1.0)
    activations, _ = cxp.extract(network(), [X], "0")
    expected = cxp.fit_probes(
        activations, kind, l2=entry.layers[0].l2, sample_weight=weighted, tol=1e-4
    )["0"]
    assert entry.layers[0].loss == pytest.approx(expected.loss, abs=1e-3)


class Tagger(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        with torch.random.fork_rng():
            torch.manual_seed(0)
            self.fc = nn.Linear(4, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.fc(x)


def test_the_groups_of_tokens_are_those_of_their_examples() -> None:
    g = torch.Generator().manual_seed(0)
    x, labels = torch.randn(40, 5, 4, generator=g), torch.randint(3, (40, 5), generator=g)
    labels[:, 0] = -100
    films = np.arange(40) // 4
    monitor = cxp.ProbeMonitor(x, labels, pool="tokens", groups=films, layers="fc")
    entry = monitor.record(Tagger(), 0)
    activations, y = cxp.extract(Tagger(), [(x, labels)], "fc", pool="tokens")
    by_film = cxp.fit_probes(activations, y, groups=films[activations.examples])["fc"]
    assert entry is not None and entry.layers[0].l2 == by_film.l2
    few = cxp.ProbeMonitor([(x, labels)], pool="tokens", groups=films[:30], on_error="raise")
    with pytest.raises(ValueError, match="groups: expected one value an example, found 30, and a"):
        few.record(Tagger(), 0)


def test_every_measure_is_recorded_and_read_back(tmp_path: Path) -> None:
    concepts = {"kind": [f"c{y}" for y in Y], "sign": UNKNOWN}
    test = HELD, {"kind": [f"c{y}" for y in HELD_Y], "sign": (HELD[:, 0] > 0).long()}
    with cxp.ProbeMonitor(X, concepts, l2=1e-2, test=test, layers=["0", "4"], out=tmp_path) as one:
        entry = one.record(network(), 0)
        assert entry is not None
        probes, scores = one.history[0], entry.scores
    held, _ = cxp.extract(network(), [HELD], ["0", "4"])
    expected = probes.evaluate(held, test[1])
    assert list(scores) == ["0/kind", "0/sign", "4/kind", "4/sign"]
    assert scores.places == expected.places
    read = cxp.load_history(tmp_path).entries[0].scores
    for name, score in expected.items():
        for measure in FORMATS:
            value = getattr(score, measure)
            assert getattr(scores[name], measure) == pytest.approx(value, nan_ok=True)
            assert getattr(read[name], measure) == getattr(scores[name], measure)
        np.testing.assert_array_equal(read[name].confusion, score.confusion)
        assert read[name].rows == score.rows
    assert set(read.to_frame().columns) >= set(FORMATS)
    frame = cxp.load_history(tmp_path).to_frame()
    assert frame.loc[(0, "4/sign"), "test_auroc"] == scores["4/sign"].auroc
    assert frame.loc[(0, "4/sign"), "concept"] == "sign"


def test_measures_that_are_not_defined_are_recorded_as_such(tmp_path: Path) -> None:
    one_class = HELD[HELD_Y == 0], HELD_Y[HELD_Y == 0]
    monitor = cxp.ProbeMonitor(X, Y, l2=1e-2, test=one_class, layers="4", out=tmp_path)
    monitor.record(network(), 0)
    monitor.close()
    (score,) = cxp.load_history(tmp_path).entries[0].scores.values()
    assert np.isnan(score.auroc) and 0 <= score.error <= 1
    content = json.loads((tmp_path / "step_0.json").read_text())
    assert content["entry"]["layers"][0]["test"]["auroc"] is None


def test_the_confusion_of_many_classes_is_not_recorded() -> None:
    x = torch.randn(404, 8, generator=torch.Generator().manual_seed(0))
    y = torch.arange(404) % 101
    monitor = cxp.ProbeMonitor(x, y, l2=1e-1, test=(x, y), layers="4")
    entry = monitor.record(network(), 0)
    assert entry is not None and entry.scores["4"].confusion is None
    assert entry.scores["4"].error <= 1


@pytest.mark.parametrize(
    "change",
    [{"auroc": "high"}, {"auroc": True}, {"error": [0.1]}, {"confusion": [[1.0]]},
     {"confusion": [[1.0, 2.0], [3.0]]}, {"confusion": [[1.0, -2.0], [3.0, 4.0]]},
     {"confusion": [["a", "b"], ["c", "d"]]}, {"confusion": 3}, {"more": 1.0},
     {"error": None}, {"loss": float("nan")}, {"rows": 10**400}],
    ids=str,
)  # fmt: skip
def test_a_crafted_score_is_refused(change: dict[str, Any]) -> None:
    entry = cxp.ProbeMonitor(X, Y, l2=1e-2, test=(HELD, HELD_Y), layers="4").record(network(), 0)
    assert entry is not None
    row = json.loads(json.dumps(entry.layers[0].to_json()))
    assert LayerResult.from_json(row) == entry.layers[0]
    with pytest.raises(ValueError, match="test"):
        LayerResult.from_json({**row, "test": {**row["test"], **change}})
    for test in (3, [], "score", {}):
        with pytest.raises(ValueError, match="test"):
            LayerResult.from_json({**row, "test": test})


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"groups": GROUPS // 2}, "groups: recorded"),
        ({"groups": None}, "groups: recorded"),
        ({"class_weight": {1: 2.5}}, "class_weight: recorded"),
        ({"scoring": "loss"}, "scoring: recorded 'error', now 'loss'"),
        ({"standardize": True}, "standardize: recorded False, now True"),
    ],
)
def test_a_run_with_other_settings_is_refused(
    change: dict[str, Any], message: str, tmp_path: Path
) -> None:
    first = {"l2": 1e-2, "groups": GROUPS, "class_weight": {1: 2.0}, "out": tmp_path}
    cxp.ProbeMonitor(X, Y, **first).close()
    cxp.ProbeMonitor(X, Y, **{**first, "groups": [f"g{i:02}" for i in GROUPS]}).close()
    with pytest.raises(ValueError, match=message):
        cxp.ProbeMonitor(X, Y, **{**first, **change})


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"groups": GROUPS[:9]}, r"groups: expected one value an example, \(150,\), found \(9,\)"),
        ({"groups": GROUPS * 0}, "groups: expected at least two groups, found 1"),
        ({"groups": [None, *GROUPS[1:]]}, "groups: row 0 has None"),
        ({"groups": 3}, "groups: expected an array or a list"),
        ({"class_weight": "even"}, 'class_weight: expected None, "balanced" or a mapping'),
        ({"class_weight": {"z": 1.0}}, "class_weight: 'z' is no class of the labels"),
        ({"class_weight": {1: -1.0}}, r"class_weight\[1\]: expected"),
        ({"scoring": "accuracy"}, "scoring: expected one of error, loss, balanced_accuracy"),
        ({"standardize": 1}, "standardize: expected"),
        ({"labels": {"a": [-100] * 150}}, r"labels\['a'\]: expected rows with a label, found none"),
        ({"test": (HELD, {"a": HELD_Y})}, r"test labels\['a'\]: expected a concept of labels"),
    ],
)
def test_settings_are_refused_at_the_door(change: dict[str, Any], message: str) -> None:
    settings = {"data": X, "labels": Y, "l2": 1e-2, **change}
    with pytest.raises((TypeError, ValueError), match=message):
        cxp.ProbeMonitor(settings.pop("data"), settings.pop("labels"), **settings)
