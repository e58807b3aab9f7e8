"""The library on an accelerator that the CPU simulates; see `tests.device.simulated`.

A device is registered for a whole process, so the checks run in processes of their own. One file
of them: `.venv/bin/python -m pytest tests/device/checks_of_solves.py`.
"""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.processes import run_script

CHECKS = sorted(Path(__file__).parent.glob("checks_of_*.py"))
PYTEST = Path(pytest.__file__).parent / "__main__.py"


@pytest.mark.parametrize("file", CHECKS, ids=[file.stem for file in CHECKS])
def test_the_checks_on_the_simulated_device_pass(file: Path) -> None:
    plain = ["--tb=short", "-p", "no:xdist", "-p", "no:cacheprovider"]
    plain += ["-W", "ignore::pytest.PytestAssertRewriteWarning"]  # plugins are imported already
    assert " passed" in run_script(PYTEST, *plain, str(file), cwd=Path(__file__).parents[2])
