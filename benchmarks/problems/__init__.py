"""Problems to solve. Every file here defines `cases(settings)`, which yields `Case`s."""

from __future__ import annotations

from benchmarks.harness import modules
from benchmarks.harness.cases import Case, Settings


def all_cases(settings: Settings) -> list[Case]:
    """Return the cases of all files, in the order of the files' names."""
    return [case for file in modules(__name__) for case in file.cases(settings)]
