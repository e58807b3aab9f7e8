"""An entry is numbers for a log, and a line a probe for a person."""

from __future__ import annotations

from dataclasses import replace
from math import inf, log, nan

import pytest
from torch import Tensor

import convexprobe as cxp
from convexprobe.training.results import Entry
from tests.tiny import network, rows, sweep

X, Y = rows()


def entry(test: object = None, labels: object = Y) -> Entry:
    monitor = cxp.ProbeMonitor(X, labels, layers=["2", "4"], l2=1e-2, test=test)
    recorded = monitor.record(network(), 7)
    assert recorded is not None
    return recorded


def test_scalars_are_the_columns_of_the_history_by_name() -> None:
    held = rows(60, seed=2)
    found = entry(test=held)
    scores = found.scores
    assert list(found.scalars()) == [
        f"probe/{column}/{layer}"
        for layer in ("2", "4")
        for column in ("test_error", "test_loss", "test_usable_information", "gap")
    ]
    for result in found.layers:
        score = scores[result.layer]
        numbers = [score.error, score.loss, (score.label_entropy - score.loss) / log(2), result.gap]
        assert [v for n, v in found.scalars().items() if n.endswith(f"/{result.layer}")] == numbers
    assert all(type(value) is float for value in found.scalars().values())


def test_without_held_out_rows_scalars_are_of_the_fitted_rows() -> None:
    found = entry()
    first = found.layers[0]
    assert list(found.scalars().items())[:3] == [
        ("probe/train_error/2", first.train_error),
        ("probe/loss/2", first.loss),
        ("probe/gap/2", first.gap),
    ]
    assert len(found.scalars()) == 6


def test_every_concept_has_its_scalars() -> None:
    concepts: dict[str, Tensor] = {"class": Y, "sign": X[:, 0] > 0}
    held: tuple[Tensor, dict[str, Tensor]] = (X, {"sign": concepts["sign"]})
    names = entry(test=held, labels=concepts).scalars()
    assert "probe/train_error/4/class" in names and "probe/test_error/4/class" not in names
    assert "probe/test_error/4/sign" in names and "probe/train_error/4/sign" not in names


@pytest.mark.parametrize("loss", [inf, nan])
def test_a_log_gets_no_number_that_is_not_finite(loss: float) -> None:
    found = entry(test=rows(60, seed=2))
    first = found.layers[0]
    assert first.test is not None
    layers = (replace(first, test=replace(first.test, loss=loss)), *found.layers[1:])
    names = [*replace(found, layers=layers).scalars()]
    assert names[:3] == ["probe/test_error/2", "probe/gap/2", "probe/test_error/4"]


def test_an_entry_prints_a_line_a_probe() -> None:
    step, head, *lines = str(entry(test=rows(60, seed=2))).splitlines()
    assert step == "step 7" and head.split()[:4] == ["layer", "l2", "loss", "gap"]
    assert [line.split()[0] for line in lines] == ["2", "4"]
    assert all(line.endswith("certified") and "%" in line for line in lines)
    last = sweep().entries[-1]
    assert repr(last) == str(last) and len(str(last).splitlines()) == 7
