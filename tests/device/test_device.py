"""The library on an accelerator that the CPU simulates; see `tests.device.simulated`.

A device is registered for a whole process, so the checks run in processes of their own. One file
of them: `.venv/bin/python -m pytest tests/device/checks_of_solves.py`.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

CHECKS = sorted(Path(__file__).parent.glob("checks_of_*.py"))


@pytest.mark.parametrize("file", CHECKS, ids=[file.stem for file in CHECKS])
def test_the_checks_on_the_simulated_device_pass(file: Path) -> None:
    plain = ["--tb=short", "-p", "no:xdist", "-p", "no:cacheprovider"]
    command = [sys.executable, "-m", "pytest", *plain, str(file)]
    kept = {name: value for name, value in os.environ.items() if not name.startswith("PYTEST_")}
    done = subprocess.run(
        command, cwd=Path(__file__).parents[2], env=kept, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stdout[-20_000:] + done.stderr[-2_000:]
