"""Sets of probes: a mapping by name, and a table."""

from __future__ import annotations

import pandas as pd
import pytest

from convexprobe import ProbeSet
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
    assert len(lines) == 1 + len(probes) + 1 and lines[-1].startswith("objective: F(W, b)")
    assert lines[0].split()[:5] == ["layer", "features", "l2", "loss", "gap"]
    for line, (name, probe) in zip(lines[1:-1], probes.items(), strict=True):
        words = line.split()
        assert words[0] == name and words[1] == str(probe.weights.shape[1])
        assert words[3] == f"{probe.loss:.4f}" and words[-1] == probe.status.name.lower()
        assert f"{probe.train_error:.2%}" in words
    assert max(map(len, lines[:-1])) <= 120
    frame = probes.to_frame()
    assert isinstance(frame, pd.DataFrame) and list(frame.index) == list(probes)
    assert frame.loc["out", "gap"] == probes["out"].gap
    assert frame.loc["plain", "status"] == "max_passes"
    assert str(ProbeSet({})).splitlines()[0].startswith("layer")
