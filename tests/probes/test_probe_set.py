"""Sets of probes: a mapping by name, and a table."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pandas as pd
import pytest

from convexprobe import ProbeSet, Status, fit_probes
from tests.probes.sets import DATA, small_set


def test_a_set_is_a_mapping() -> None:
    probes = small_set()
    assert list(probes) == ["conv1", "block.2/fc", "out", "plain"]
    assert "out" in probes and "in" not in probes and 3 not in probes
    with pytest.raises(ValueError, match=r"no layer 'conv2'.*'conv1'"):
        probes["conv2"]
    joined = probes | {"conv1": probes["out"]}
    assert joined["conv1"] is probes["out"] and probes["conv1"] is not probes["out"]
    scores = probes.evaluate({"out": 3 * DATA.x, "conv1": DATA.x}, DATA.y)
    assert list(scores) == ["out", "conv1"]
    assert scores["conv1"].error == pytest.approx(probes["conv1"].train_error)
    with pytest.raises(ValueError, match=r"no layer 'outt'.*'out'"):
        probes.evaluate({"outt": DATA.x}, DATA.y)


def test_the_table_says_what_the_probes_say() -> None:
    probes = small_set()
    text = str(probes)
    assert repr(probes) == text
    lines = text.splitlines()
    assert len(lines) == 1 + len(probes) + 3 and lines[-3].startswith("objective: F(W, b)")
    assert lines[0].split()[:6] == ["layer", "features", "l2", "loss", "gap", "gap/H(Y)"]
    for line, (name, probe) in zip(lines[1:-3], probes.items(), strict=True):
        words = line.split()
        assert words[0] == name and words[1] == str(probe.weights.shape[1])
        assert words[3] == f"{probe.loss:.4f}" and words[-1] == probe.status.name.lower()
        assert f"{probe.train_error:.2%}" in words
        assert f"{probe.gap / probe.label_entropy:.3%}" in words
    assert max(map(len, lines)) <= 120
    frame = probes.to_frame()
    assert isinstance(frame, pd.DataFrame) and list(frame.index) == list(probes)
    assert frame.loc["out", "gap"] == probes["out"].gap
    assert frame.loc["plain", "status"] == "max_passes"
    assert str(ProbeSet({})).splitlines()[0].startswith("layer")


def test_the_table_counts_the_penalties_of_a_path_that_are_not_certified() -> None:
    first = small_set()["conv1"]
    stopped = replace(first.path[1], status=Status.MAX_PASSES)
    probes = ProbeSet({"all": first, "some": replace(first, path=(first.path[0], stopped))})
    assert [p.verdict for p in probes.values()] == ["certified", "certified, 1 of 2 l2 not"]
    assert str(probes).splitlines()[2].endswith("  certified, 1 of 2 l2 not")


def test_a_penalty_at_the_edge_of_its_path_is_told() -> None:
    first = small_set()["conv1"]
    path = tuple(replace(first.path[0], l2=l2) for l2 in (1e-3, 1e-2, 1e-1))
    said = [replace(first, path=path, l2=point.l2).verdict for point in path]
    assert said == ["certified, smallest l2", "certified", "certified, largest l2"]
    assert replace(first, path=path[:2], l2=1e-3).verdict == "certified"  # two are both edges
    told = [
        "smallest l2" in ProbeSet({"a": replace(first, path=path, l2=p.l2)}).legend for p in path
    ]
    assert told == [True, False, True]


def test_a_gap_is_shown_beside_the_label_entropy_that_tol_is_relative_to() -> None:
    y = np.arange(200) % 2  # nothing to learn: H(Y) and the loss are both about log(2)
    probe = fit_probes(DATA.x, y, l2=1e-2)["activations"]
    assert probe.label_entropy == pytest.approx(np.log(2))
    assert probe.gap <= 1e-3 * probe.label_entropy
    easy = fit_probes(100.0 * (2 * y - 1)[:, None], y, l2=1e-9)["activations"]
    assert easy.status is Status.CERTIFIED and easy.gap / easy.label_entropy <= 1e-3
    legend = str(ProbeSet({"a": easy})).splitlines()[-2:]
    assert "gap <= tol * H(Y)" in legend[0] and "label entropy" in legend[1]
