"""The tidy table: a row for each run and point, with machine and versions; appended run by run."""

from __future__ import annotations

import csv
import platform
from dataclasses import asdict, dataclass, fields
from datetime import UTC, datetime
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import torch

PACKAGES = (
    "convexprobe", "numpy", "scipy", "torch", "scikit-learn", "cyanure", "pytorch-minimize", "cuml",
)  # fmt: skip


@cache
def versions() -> str:
    """Of Python and of every package that is installed."""
    found = [f"python {platform.python_version()}"]
    for name in PACKAGES:
        try:
            found.append(f"{name} {version(name)}")
        except PackageNotFoundError:
            continue
    return ", ".join(found)


@cache
def machine() -> str:
    """Processor, threads used, and the CUDA device if there is one."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    name = names[0] if names else platform.processor() or platform.machine()
    gpu = f"; {torch.cuda.get_device_name()}" if torch.cuda.is_available() else ""
    return f"{name}, {torch.get_num_threads()} threads{gpu}"


@dataclass(frozen=True)
class Row:
    """A point of a run, or a run without points.

    Attributes:
        case, n, d, k, m: the case, its rows, features, classes and penalties.
        competitor, dtype, repeat: who, in which precision, which time.
        seconds, passes: of the point; for families run task by task, added up over the tasks.
        suboptimality: `(F - F*) / H(Y)` by the judge; the largest of a family.
        gap: certified, relative to `H(Y)`; NaN for a competitor that has none.
        status: how the run ended.
        limit: seconds it was given.
        machine, versions, date: where, with what and when (UTC).
    """

    case: str
    n: int
    d: int
    k: int
    m: int
    competitor: str
    dtype: str
    repeat: int
    seconds: float
    passes: float
    suboptimality: float
    gap: float
    status: str
    limit: float
    machine: str = ""
    versions: str = ""
    date: str = ""


class Table:
    """The rows on disk."""

    def __init__(self, path: Path) -> None:
        self.path, self.rows = path, list[Row]()
        if path.exists():
            with open(path, newline="") as file:
                self.rows = [parse(found) for found in csv.DictReader(file)]

    def has(self, case: str, competitor: str) -> bool:
        """Whether this pair has been run."""
        return any(row.case == case and row.competitor == competitor for row in self.rows)

    def append(self, rows: list[Row]) -> None:
        """Add a run."""
        stamp = {
            "machine": machine(), "versions": versions(),
            "date": datetime.now(UTC).isoformat(timespec="seconds"),
        }  # fmt: skip
        new = not self.path.exists()
        with open(self.path, "a", newline="") as file:
            writer = csv.DictWriter(file, [field.name for field in fields(Row)])
            if new:
                writer.writeheader()
            for row in rows:
                row = Row(**{**asdict(row), **stamp})
                writer.writerow(asdict(row))
                self.rows.append(row)

    def forget(self, case: str, competitor: str) -> None:
        """Drop a run, to make it again."""
        keep = [row for row in self.rows if (row.case, row.competitor) != (case, competitor)]
        with open(self.path, "w", newline="") as file:
            writer = csv.DictWriter(file, [field.name for field in fields(Row)])
            writer.writeheader()
            writer.writerows(map(asdict, keep))
        self.rows = keep


def parse(found: dict[str, str]) -> Row:
    """A row from its text."""
    kinds = {"int": int, "float": float, "str": str}
    values = {f.name: kinds[str(f.type)](found[f.name] or "nan") for f in fields(Row)}
    return Row(**values)


def first(rows: list[Row], target: float) -> Row | None:
    """Of one run's rows, the first in time at or below the target."""
    hits = [row for row in rows if row.suboptimality <= target]
    return min(hits, key=lambda row: row.seconds, default=None)
