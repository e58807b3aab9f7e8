"""The command that holds what `estimate` tells against what a fit takes."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from benchmarks.estimate import CASES, OTHERS, Case, Row, data, measure, print_table


def test_cases_whose_memory_is_a_quarter_off_are_named(capsys: pytest.CaptureFixture[str]) -> None:
    right = Row(told=100, measured=99, passes=(12.0, 8.0), seconds=(1.0, 2.0))
    rows = {
        "ordinary": right,
        "wide": replace(right, measured=81),
        "path": replace(right, measured=79),
        "adam": replace(right, measured=140),
    }
    assert print_table(rows, rows.__getitem__) == ["path", "adam"]
    table = capsys.readouterr().out.splitlines()
    assert len(table) == 2 + 4 and len({line.count("|") for line in table}) == 1
    assert table[2].startswith("| ordinary | 10000 x 784 x 10 | 0 | 0 | 1.01 | 12 / 8 |")


@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="the peak is read on Linux")
def test_a_case_is_measured_with_its_arguments(tmp_path: Path) -> None:
    threads = torch.get_num_threads()
    try:
        measure(Case(300, 5, 3, torch.bfloat16, stored=True), str(tmp_path))
        row = measure(Case(300, 5, 3, validation=50, options={"l2": [0.1, 1.0]}), "")
    finally:
        torch.set_num_threads(threads)
    assert row.told > 0 and row.measured >= 0 and row.passes[1] > 0


def test_every_case_has_the_labels_it_says() -> None:
    for case in (CASES | OTHERS).values():
        x, y = data(replace(case, rows=40), 40, seed=0)
        assert x.shape == (40, case.features) and x.dtype == case.dtype
        assert y.shape == ((40, case.concepts) if case.concepts else (40,))
        assert set(y.unique().tolist()) <= set(range(case.classes))
