"""The results table: one CSV row per recorded point of a run, with machine, versions and date."""

from __future__ import annotations

import csv
import platform
from dataclasses import asdict, dataclass, fields, replace
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
    """Return the versions of Python and of the installed `PACKAGES`, as text."""
    installed = [f"python {platform.python_version()}"]
    for name in PACKAGES:
        try:
            installed.append(f"{name} {version(name)}")
        except PackageNotFoundError:
            continue
    return ", ".join(installed)


@cache
def machine() -> str:
    """Return the processor, the threads torch uses, and the CUDA device if any, as text."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    name = names[0] if names else platform.processor() or platform.machine()
    gpu = f"; {torch.cuda.get_device_name()}" if torch.cuda.is_available() else ""
    return f"{name}, {torch.get_num_threads()} threads{gpu}"


@dataclass(frozen=True)
class Row:
    """One point of a run; a run without points has one row of NaNs.

    Attributes:
        case, n, d, k, m: the case, its rows, features, classes and penalties.
        peer, dtype, repeat: which peer, in which precision, and the number of the repetition.
        seconds, passes: spent up to the point, summed over a family solved one task at a time.
        suboptimality: `(F - F*) / H(Y)` by the judge; the largest of a family.
        gap: certified, relative to `H(Y)`; NaN for a peer that has none.
        status: how the run ended, or why there was none.
        limit: seconds that the run was given.
        machine, versions, date: where, with which packages and when (UTC) it ran.
    """

    case: str
    n: int
    d: int
    k: int
    m: int
    peer: str
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
    """The rows, in memory and in a CSV file."""

    def __init__(self, path: Path) -> None:
        self.path, self.rows = path, list[Row]()
        if path.exists():
            with open(path, newline="") as file:
                self.rows = [parse(record) for record in csv.DictReader(file)]

    def has(self, case: str, peer: str) -> bool:
        """Whether this peer has been run on this case."""
        return any(row.case == case and row.peer == peer for row in self.rows)

    def append(self, rows: list[Row]) -> None:
        """Add the rows of a run, stamped with machine, versions and date."""
        stamp = {
            "machine": machine(), "versions": versions(),
            "date": datetime.now(UTC).isoformat(timespec="seconds"),
        }  # fmt: skip
        rows = [replace(row, **stamp) for row in rows]
        self._write(rows, "a")
        self.rows += rows

    def forget(self, case: str, peer: str) -> None:
        """Delete the runs of a peer on a case, so that they can be repeated."""
        self.rows = [row for row in self.rows if (row.case, row.peer) != (case, peer)]
        self._write(self.rows, "w")

    def _write(self, rows: list[Row], mode: str) -> None:
        """Write the file anew ("w") or append to it ("a")."""
        header = mode == "w" or not self.path.exists()
        with open(self.path, mode, newline="") as file:
            writer = csv.DictWriter(file, [field.name for field in fields(Row)])
            if header:
                writer.writeheader()
            writer.writerows(map(asdict, rows))


def parse(record: dict[str, str]) -> Row:
    """Convert a CSV record to a row."""
    kinds = {"int": int, "float": float, "str": str}
    values = {f.name: kinds[str(f.type)](record[f.name] or "nan") for f in fields(Row)}
    return Row(**values)


def first(rows: list[Row], target: float) -> Row | None:
    """Return the earliest row of a run whose suboptimality is at most the target, or None."""
    hits = [row for row in rows if row.suboptimality <= target]
    return min(hits, key=lambda row: row.seconds, default=None)
