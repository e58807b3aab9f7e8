"""Activations larger than memory: peak memory of a fit, and speed of a pass against the disk.

    python -m benchmarks.streaming --dir DIR [--gigabytes 12] [--features 2048]

Writes synthetic bfloat16 activations of one layer with ten classes to DIR with `extract(out=DIR)`,
and deletes them at the end. Both sides of every ratio are measured in the same run:

- A sequential read of the files, and a streamed pass (one value and gradient), each after the page
  cache was told to drop the files. Each is done four times, taking turns at going first, and the
  best time counts: how long the system takes to find memory for its cache varies by a factor of
  two, and depends on what was dropped before.
- A streamed pass over files in the page cache, and a pass over the same rows in memory, in turns,
  on as many blocks as fit 2 GB. The medians of five are compared.
- A certified fit in a process of its own, whose peak resident memory is read from `VmHWM`, without
  the page cache. `ru_maxrss` would include the process that started it, where that was larger.
"""

from __future__ import annotations

import argparse
import os
import shutil
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from statistics import median

import torch
from torch import Tensor

import convexprobe as cxp
from benchmarks.harness.targets import verdict
from convexprobe.activations.directory import DirectoryRows
from convexprobe.activations.manifest import Manifest
from convexprobe.activations.source import Rows, Source
from convexprobe.activations.stream import Stream
from convexprobe.problem.objective import Problem

CLASSES = 10
BATCH = 4096
CACHED = 2e9
"""Most bytes of the rows that are compared in the page cache and in memory."""


def batches(rows: int, features: int) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield batches of Gaussian rows, and classes by a noisy linear map of them."""
    g = torch.Generator().manual_seed(0)
    w = torch.randn(features, CLASSES, generator=g) / features**0.5
    for start in range(0, rows, BATCH):
        x = torch.randn(min(BATCH, rows - start), features, generator=g)
        yield x, (2 * x @ w + torch.randn(len(x), CLASSES, generator=g)).argmax(1)


def write(directory: Path, rows: int, features: int) -> float:
    """Extract to the directory; return the peak resident memory of this process in bytes."""
    data = batches(rows, features)
    cxp.extract(torch.nn.Identity(), data, "input", dtype="bfloat16", out=directory)
    return peak()


def fit(directory: Path, limit: float) -> tuple[float, float, str]:
    """Fit in at most `limit` bytes; return this process's peak memory in bytes, passes, status."""
    activations, labels = cxp.open_activations(directory)
    probe = cxp.fit_probes(activations, labels, l2=1e-3, memory_limit=limit)["input"]
    return peak(), probe.passes, probe.status.name.lower()


def peak() -> float:
    """Return the peak resident memory of this process so far in bytes (Linux only)."""
    status = Path("/proc/self/status").read_text().splitlines()
    return 1024.0 * next(int(line.split()[1]) for line in status if line.startswith("VmHWM"))


def drop(directory: Path) -> None:
    """Ask the page cache to forget the files."""
    for path in directory.iterdir():
        with open(path, "rb") as file:
            os.fsync(file.fileno())
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def read(directory: Path) -> None:
    """Read all bytes of the files in order into one reused buffer."""
    buffer = bytearray(8 << 20)
    for path in sorted(directory.glob("*.safetensors")):
        with open(path, "rb", buffering=0) as file:
            while file.readinto(buffer):
                pass


def a_pass(source: Source, labels: Tensor) -> Callable[[], None]:
    """Return a function that evaluates value and gradient once, in one pass over the rows."""
    problem = Problem(source, labels, [1e-3], classes=CLASSES)
    w = problem.constant_classifier() + 1e-3  # not the origin itself, where no pass is needed
    return lambda: (problem.evaluate(w), None)[1]


def seconds(work: Callable[[], None]) -> float:
    """Return how long `work` takes."""
    started = time.perf_counter()
    work()
    return time.perf_counter() - started


def in_child(work: Callable, *args: object) -> object:
    """Run in a fresh process, whose peak memory is that of `work` alone."""
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
        return pool.submit(work, *args).result()


def run(directory: Path, gigabytes: float, features: int) -> None:
    """Write the activations, measure all three comparisons, and print them."""
    rows = int(gigabytes * 1e9 / 2 / features)
    started = time.perf_counter()
    used = in_child(write, directory, rows, features)
    size = sum(path.stat().st_size for path in directory.iterdir())
    print(
        f"{rows} x {features} bfloat16, {size / 1e9:.2f} GB, written in "
        f"{time.perf_counter() - started:.0f} s with {used / 1e9:.2f} GB resident; "
        f"{torch.get_num_threads()} threads"
    )

    activations, labels = cxp.open_activations(directory)
    shards = activations["input"]
    stream = a_pass(Stream(shards, "cpu", 1e9), labels)  # has checked every block once
    raw: list[float] = []
    streamed: list[float] = []
    turn = [(raw, lambda: read(directory)), (streamed, stream)]
    for _ in range(4):
        for times, work in turn:
            drop(directory)
            times.append(seconds(work))
        turn.reverse()
    for name, times in (("read", raw), ("streamed", streamed)):
        print(f"{name:10}" + "".join(f"{size / t / 1e9:6.2f}" for t in sorted(times)), "GB/s")
    ratio = min(raw) / min(streamed)
    verdict("speed of a streamed pass / sequential read", ratio, 0.6, at_most=False)

    blocks = Manifest.read(directory).blocks
    blocks = blocks[: max(1, int(len(blocks) * min(1.0, CACHED / size)))]
    part = DirectoryRows(directory, blocks, shards.layer)
    part_labels = labels[: part.shape[0]]
    stream = a_pass(Stream(part, "cpu", 1e9), part_labels)
    memory = a_pass(Rows(part.load()), part_labels)
    pairs = [(seconds(stream), seconds(memory)) for _ in range(5)]
    slower = median(s for s, _ in pairs) / median(m for _, m in pairs)
    print(f"{part.nbytes / 1e9:.2f} GB in the page cache: a pass over the same rows in memory "
          f"takes {median(m for _, m in pairs):.3f} s")  # fmt: skip
    verdict("time of a streamed pass / pass in memory", slower, 1.3, at_most=True)

    limit = min(1e9, size / 4)  # so that small runs are streamed too
    estimate = cxp.estimate(activations, labels, l2=1e-3, memory_limit=limit).total
    started = time.perf_counter()
    used, passes, status = in_child(fit, directory, limit)
    print(f"fit: {status}, {passes:.1f} passes, {time.perf_counter() - started:.0f} s; estimated "
          f"beforehand: {estimate.host / 1e9:.2f} GB, and 0.3 GB for the libraries")  # fmt: skip
    verdict("resident memory of the fit, GB", used / 1e9, 2.0, at_most=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--dir", type=Path, required=True, help="new folder, deleted at the end")
    parser.add_argument("--gigabytes", type=float, default=12.0)
    parser.add_argument("--features", type=int, default=2048)
    args = parser.parse_args()
    if args.dir.exists():
        parser.error(f"--dir {args.dir}: already exists; name a folder that does not")
    try:
        run(args.dir, args.gigabytes, args.features)
    finally:
        shutil.rmtree(args.dir, ignore_errors=True)


if __name__ == "__main__":
    main()
