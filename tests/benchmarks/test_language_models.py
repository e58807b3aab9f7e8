"""The benchmark of language models runs, with or without the wheel, and says what it measured."""

from __future__ import annotations

from functools import partial

import pytest

from benchmarks import language_models
from benchmarks.future_work import language


def test_a_small_run_tells_every_target(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("transformers")
    monkeypatch.setattr(language, "installed", lambda: False)
    monkeypatch.setattr(language_models, "drawn", partial(language_models.drawn, layers=2))
    language_models.main(["--tokens", "200", "--concepts", "3", "--repeats", "1", "--samples", "2"])
    out = capsys.readouterr().out
    assert "random weights" in out and "3 concepts x 2 layers x 200 tokens" in out
    assert out.count("(target ") == 7
