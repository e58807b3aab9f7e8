"""Memory, passes and seconds that `estimate` tells, beside what the fit takes.

    python -m benchmarks.estimate [--others] [--case NAME]

Prints a table: each case is a fit in a process of its own, on one thread. Memory is the peak of the
process (`resource.getrusage`) less what was resident before the fit: the libraries, which a small
fit has loaded, and the rows. What is told of passes and seconds is an order of magnitude.
"""

from __future__ import annotations

import argparse
import ctypes
import gc
import json
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import DataLoader, TensorDataset

import convexprobe as cxp

CLOSE = 0.25
"""How far memory told may be from memory measured, as a share of it."""

STEP = 1000
"""Rows that are made at a time, so that making them is never the peak."""


@dataclass(frozen=True)
class Case:
    """One fit: its rows, and the arguments of `fit_probes` beside them.

    Attributes:
        rows, features, classes: sizes of the layer.
        dtype: of the rows.
        concepts: number of two-class concepts; 0 has one label a row, of `classes` classes.
        stored: whether the rows are on disk.
        validation: validation rows that are given; 0 for none.
        options: arguments of `estimate` and `fit_probes`.
    """

    rows: int
    features: int
    classes: int
    dtype: torch.dtype = torch.float32
    concepts: int = 0
    stored: bool = False
    validation: int = 0
    options: dict[str, Any] = field(default_factory=lambda: {"l2": 1e-3})


PATH = {"l2": [1e-4, 1e-3, 1e-2]}
CASES = {
    "ordinary": Case(10_000, 784, 10),
    "long": Case(300_000, 32, 20),
    "wide": Case(1_000, 25_088, 10, options={"l2": 1e-5}),
    "wide, 2 classes": Case(1_000, 25_088, 2),
    "wide, few rows": Case(500, 4_096, 2),
    "wide, more rows": Case(4_000, 8_000, 10),
    "wide, path": Case(1_000, 20_000, 10, options=PATH),
    "2 000 concepts": Case(5_000, 64, 2, concepts=2000),
    "20 concepts": Case(50_000, 64, 2, concepts=20),
    "1 000 classes": Case(20_000, 128, 1000),
    "300 classes": Case(20_000, 1024, 300),
    "float64": Case(50_000, 256, 10, torch.float64),
    "bfloat16": Case(200_000, 128, 20, torch.bfloat16),
    "loaded": Case(200_000, 128, 20, torch.bfloat16, stored=True),
    "streamed": Case(
        200_000, 256, 10, torch.bfloat16, stored=True, options={"l2": 1e-3, "memory_limit": 1e7}
    ),
    "path": Case(50_000, 256, 10, options=PATH),
    "path, validation": Case(50_000, 256, 10, validation=10_000, options=PATH),
    "auto": Case(200_000, 64, 10, options={"l2": "auto"}),
    "5 folds": Case(100_000, 64, 10, options={"l2": 1e-3, "cv": 5}),
    "newton-cg": Case(200_000, 64, 20, options={"l2": 1e-3, "solver": "newton-cg"}),
    "svrg": Case(200_000, 64, 20, options={"l2": 1e-3, "solver": "svrg"}),
    "adam": Case(400_000, 64, 20, options={"l2": 1e-2, "solver": "adam"}),
}
OTHERS = {
    "5 classes": Case(20_000, 300, 5),
    "20 classes": Case(3_000, 2_000, 20),
    "100 classes": Case(30_000, 512, 100),
    "100 concepts": Case(20_000, 128, 2, concepts=100),
    "few rows, float64": Case(5_000, 784, 10, torch.float64),
    "bfloat16, path": Case(60_000, 384, 10, torch.bfloat16, options=PATH),
    "wide, 5 classes": Case(1_500, 8_192, 5),
    "2 classes": Case(100_000, 128, 2),
    "loaded, more features": Case(50_000, 768, 10, torch.bfloat16, stored=True),
    "3 folds": Case(60_000, 50, 7, options={"l2": 1e-3, "cv": 3}),
}
"""Cases by which no constant of `estimate` was chosen."""


@dataclass(frozen=True)
class Row:
    """A row of the table: bytes, passes and seconds, told and measured."""

    told: int
    measured: int
    passes: tuple[float, float]
    seconds: tuple[float, float]

    @property
    def ratio(self) -> float:
        """Memory told over memory measured."""
        return self.told / self.measured


def data(case: Case, rows: int, seed: int) -> tuple[Tensor, Tensor]:
    """Gaussian rows of unequal scales, and noisy linear labels of them."""
    g = torch.Generator().manual_seed(0)
    scales = torch.logspace(0, -1.5, case.features)
    w = torch.randn(case.features, case.concepts or case.classes, generator=g)
    g = torch.Generator().manual_seed(seed)
    x = torch.empty(rows, case.features, dtype=case.dtype)
    labels = torch.empty((rows, case.concepts) if case.concepts else rows, dtype=torch.int64)
    for start in range(0, rows, STEP):
        part = torch.randn(min(STEP, rows - start), case.features, generator=g) * scales
        z = part @ w
        z += torch.randn(z.shape, generator=g)
        x[start : start + STEP] = part
        labels[start : start + STEP] = (z > 0).long() if case.concepts else z.argmax(1)
    return x, labels


def peak() -> int:
    """Bytes of this process's largest resident set so far."""
    unit = 1 if sys.platform == "darwin" else 1024
    return unit * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


def forget_peak() -> None:
    """Give back what is free, and let the peak start anew where the system can (Linux)."""
    gc.collect()
    if sys.platform == "linux":
        ctypes.CDLL("libc.so.6").malloc_trim(0)
        Path("/proc/self/clear_refs").write_text("5")


def measure(case: Case, folder: str) -> Row:
    """The row of a case, in this process."""
    torch.set_num_threads(1)
    x, labels = data(case, case.rows, 0)
    rows: Any = x
    targets: Any = labels
    options = dict(case.options)
    if case.validation:
        options["validation"] = data(case, case.validation, 1)
    if case.stored:
        batches = DataLoader(TensorDataset(x, labels), batch_size=4096)
        cxp.extract(torch.nn.Identity(), batches, "input", dtype="bfloat16", out=folder)
        rows, targets = cxp.open_activations(folder)
    del x, labels
    cxp.fit_probes(torch.randn(300, 4), torch.arange(300) % 3, l2=1.0)  # loads what is loaded late
    told = cxp.estimate(rows, targets, **options).total
    forget_peak()
    before, started = peak(), time.perf_counter()
    probes = cxp.fit_probes(rows, targets, **options)
    seconds = time.perf_counter() - started
    passes = max(probe.passes for probe in probes.values())
    return Row(told.host, peak() - before, (told.passes, passes), (told.seconds, seconds))


def in_child(name: str) -> Row:
    """`measure` in a process of its own."""
    command = [sys.executable, "-m", "benchmarks.estimate", "--case", name, "--child"]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(f"{name}: {done.stderr}")
    return Row(**json.loads(done.stdout.splitlines()[-1]))


def print_table(names: Iterable[str], run: Callable[[str], Row] = in_child) -> list[str]:
    """Print the table; the names of cases whose memory is not within `CLOSE`."""
    print(
        "| case | rows x features x classes | told, MB | measured, MB | told / measured |", end=""
    )
    print(" passes told / made | seconds told / taken |\n|---|---|---|---|---|---|---|")
    missed = []
    for name in names:
        case, row = (CASES | OTHERS)[name], run(name)
        sizes = f"{case.rows} x {case.features} x {case.classes}"
        memory = f"{row.told / 1e6:.0f} | {row.measured / 1e6:.0f} | {row.ratio:.2f}"
        passes = "{:.0f} / {:.0f}".format(*row.passes)
        seconds = "{:.2g} / {:.2g}".format(*row.seconds)
        print(f"| {name} | {sizes} | {memory} | {passes} | {seconds} |", flush=True)
        if abs(row.ratio - 1.0) > CLOSE:
            missed.append(name)
    return missed


def main() -> None:
    """Print the table, or a child's row; exit with 1 if memory told is too far off."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--case", choices=CASES | OTHERS, help="this case alone")
    parser.add_argument("--others", action="store_true", help="cases that chose no constant")
    parser.add_argument("--child", action="store_true", help="measure in this process")
    settings = parser.parse_args()
    if settings.child:
        with tempfile.TemporaryDirectory() as folder:
            print(json.dumps(vars(measure((CASES | OTHERS)[settings.case], folder))))
        return
    missed = print_table([settings.case] if settings.case else OTHERS if settings.others else CASES)
    if missed:
        sys.exit(f"more than {CLOSE:.0%} off: {', '.join(missed)}")


if __name__ == "__main__":
    main()
