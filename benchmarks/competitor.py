"""What a competitor is, and how files are discovered."""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from importlib.util import find_spec
from types import ModuleType

import benchmarks.competitors
import benchmarks.problems
from benchmarks.cases import Case, Settings, Task
from benchmarks.record import Recorder


@dataclass(frozen=True)
class Competitor:
    """One way to solve a task.

    Attributes:
        run: solves the task and shows its points to the recorder, whose exceptions it lets pass.
        package: the module that has to be importable.
        refuses: why a task is not for it, or None.
        family: whether it solves all penalties of a task at once.
        stochastic: whether it is a plain stochastic method, in the sense of the second target.
    """

    run: Callable[[Task, Recorder], None]
    package: str = "convexprobe"
    refuses: Callable[[Task], str | None] = lambda task: None
    family: bool = False
    stochastic: bool = False

    def why_not(self, task: Task) -> str | None:
        """Why it cannot run, or None."""
        if find_spec(self.package) is None:
            return f"not installed: {self.package}"
        return self.refuses(task)


def files(package: ModuleType) -> Iterator[ModuleType]:
    """Every file of a folder, imported."""
    for found in pkgutil.iter_modules(package.__path__, package.__name__ + "."):
        yield importlib.import_module(found.name)


def all_competitors() -> dict[str, Competitor]:
    """By name, ours first: their time limits those of the others."""
    found = {
        name: c for file in files(benchmarks.competitors) for name, c in file.COMPETITORS.items()
    }
    return dict(sorted(found.items(), key=lambda item: not item[1].family))


def all_cases(settings: Settings) -> list[Case]:
    """In the order of the files."""
    return [case for file in files(benchmarks.problems) for case in file.cases(settings)]
