"""The page on language models runs as it stands, and what it says of its results is so."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest

PAGE = Path(__file__).parents[2] / "docs" / "language_models.md"


def test_the_code_of_the_page_runs_as_typed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("transformers")
    monkeypatch.chdir(tmp_path)
    code = "".join(re.findall(r"```python\n(.*?)```", PAGE.read_text(), re.S))
    names: dict[str, Any] = {}
    exec(compile(code, str(PAGE), "exec"), names)
    assert "encoder.layer.0', 'encoder.layer.1', 'encoder.layer.2'" in capsys.readouterr().out
    kept = int((names["mask"][:, 1:]).sum())
    assert names["activations"]["encoder.layer.0"].shape == (kept, 24)
    assert all(probe.gap <= 1e-2 for probe in names["probes"].values())
    assert len(names["heads"]) == 4 and len(names["y"]) == 5
    assert names["rows"]["layers.1"].shape == (40, 16)
    assert [entry.step for entry in names["history"].entries] == [0, 100]
