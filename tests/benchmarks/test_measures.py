"""The benchmark of the measures runs and says what it measured."""

from __future__ import annotations

import pytest

from benchmarks import measures


def test_a_small_run_tells_the_seconds_of_both_kinds(capsys: pytest.CaptureFixture[str]) -> None:
    measures.main(["--rows", "200", "--classes", "3", "--samples", "5"])
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 2 and all("5 samples of them" in line for line in lines)
