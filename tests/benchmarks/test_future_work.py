"""The command of docs/future_work.md on a tiny layer, and what its numbers mean."""

from __future__ import annotations

import re
from math import inf
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from benchmarks.future_work import __main__ as command
from benchmarks.future_work import language, methods, problems, report
from benchmarks.harness.table import Row, Table
from tests.oracle import minimum, random_data

TINY = random_data(120, 4, 3, seed=5)


def tiny(_: Path) -> tuple[Tensor, Tensor, Tensor]:
    """A layer and one that drifted from it."""
    x = torch.from_numpy(TINY.x).float()
    noise = torch.randn(x.shape, generator=torch.Generator().manual_seed(0))
    return x + 0.1 * noise, x, torch.from_numpy(TINY.y)


@pytest.fixture
def layer(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> problems.Layer:
    monkeypatch.setattr(problems, "LAYERS", {"classes": ("tiny", 1e-2, tiny)})
    monkeypatch.setattr(command, "LAYERS", problems.LAYERS)
    found = problems.load("classes", tmp_path)
    assert found is not None
    return found


def test_a_kept_layer_is_the_one_that_was_made(layer: problems.Layer, tmp_path: Path) -> None:
    again = problems.load("classes", tmp_path)
    assert again is not None and torch.equal(again.x, layer.x) and torch.equal(again.y, layer.y)
    assert again.l2 == layer.l2 == pytest.approx(1e-2 * float(layer.x.var(0, False).mean()))


@pytest.mark.parametrize("name", methods.METHODS)
def test_no_certified_gap_is_below_the_true_one(name: str, layer: problems.Layer) -> None:
    if not methods.available(name):
        pytest.skip("not installed")
    best = minimum(TINY, layer.l2)[1]
    for warm in (None, methods.Warm.of(layer)):
        points = methods.measure(name, layer, best, TINY.label_entropy, 0.3, warm)
        assert points and all(p.certified >= p.true >= -1e-6 for p in points)
        assert (np.diff([p.passes for p in points]) >= 0).all()
        assert points[-1].true <= 0.2


def test_the_command_resumes_and_reports(
    layer: problems.Layer, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    names = ["L-BFGS", "SAG, scikit-learn", "SVRG"]
    arguments = ["--out", str(tmp_path), "--limit", "0.2", "--layers", "classes", "--methods"]
    command.main([*arguments, *names[:1]])
    rows = len(Table(tmp_path / "future_work" / "runs.csv").rows)
    command.main([*arguments, *names])
    table = Table(tmp_path / "future_work" / "runs.csv")
    assert {row.peer for row in table.rows[:rows]} == {"L-BFGS"}
    assert not any(row.peer == "L-BFGS" for row in table.rows[rows:])
    text = capsys.readouterr().out
    assert re.search(r"^\| L-BFGS \| [\d.]+ / [\d.]+ \|", text, re.M)
    assert "10.0 (many rows, docs/scale.md) | 34 | 3.8 |" in text
    assert (tmp_path / "future_work.png").read_bytes()[:4] == b"\x89PNG"


def test_the_first_point_within_the_target_counts() -> None:
    def row(seconds: float, gap: float) -> Row:
        return Row("a, cold", 9, 2, 3, 1, "SAG", "float32", 0, seconds, 2 * seconds, gap / 2, gap,
                   "ended", 1.0)  # fmt: skip

    run = [row(1.0, 1.0), row(2.0, 1.5e-3), row(3.0, 1e-4)]
    assert report.spent(run, report.true) == (4.0, 2.0)
    assert report.spent(run, report.certified) == (6.0, 3.0)
    assert report.spent(run[:1], report.true) == report.spent(None, report.true) == (inf, inf)
    assert report.cell(inf, inf) == "-"


def test_sentences_have_a_class_for_every_word() -> None:
    rng = np.random.default_rng(0)
    seen = set()
    for _ in range(200):
        words, labels, plural = language.sentence(rng)
        assert len(words) == len(labels) and plural in (0, 1)
        seen |= set(labels)
    assert seen == set(range(len(language.CLASSES)))
