"""What the commands share: cases and their judge, the clock, the results table, the summary."""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Iterator
from types import ModuleType


def modules(package: str) -> Iterator[ModuleType]:
    """Import and yield every module of the package with this dotted name, sorted by name."""
    for info in pkgutil.iter_modules(importlib.import_module(package).__path__, package + "."):
        yield importlib.import_module(info.name)
