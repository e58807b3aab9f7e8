"""Activations larger than memory: peak memory of a fit, and the speed of a pass against the disk.

    python -m benchmarks.streaming --dir DIR [--gigabytes 12] [--features 2048]

Writes synthetic bfloat16 activations of one layer to DIR with `extract(out=DIR)`, ten classes, and
deletes them at the end. Every ratio is of numbers of the same run:

- a sequential read of the files and a streamed pass (a value and gradient of ten classes), each
  after the page cache has been told to drop them; each four times, first and second in turns, and
  the best one counts (how long a system takes to find memory for its cache differs by a factor of
  two, and depends on what was dropped before);
- a streamed pass over files in the page cache and the pass over the same rows in memory, in turns,
  on as many blocks as 2 GB hold; medians of five;
- a certified fit in a process of its own, of which the largest resident memory is taken
  (`VmHWM`; the page cache is not part of it. `ru_maxrss` would be that of the process which
  started it, where that was larger).
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
from convexprobe.manifest import Manifest
from convexprobe.objective import Problem
from convexprobe.shards import Shards
from convexprobe.sources import Rows, Source
from convexprobe.streaming import Stream

CLASSES = 10
BATCH = 4096
CACHED = 2e9
"""Bytes of the comparison with rows in memory."""


def batches(rows: int, features: int) -> Iterator[tuple[Tensor, Tensor]]:
    """Gaussian rows whose class is that of a noisy linear map."""
    g = torch.Generator().manual_seed(0)
    w = torch.randn(features, CLASSES, generator=g) / features**0.5
    for start in range(0, rows, BATCH):
        x = torch.randn(min(BATCH, rows - start), features, generator=g)
        yield x, (2 * x @ w + torch.randn(len(x), CLASSES, generator=g)).argmax(1)


def write(directory: Path, rows: int, features: int) -> float:
    """Extract to the directory; the peak resident memory of this process, bytes."""
    data = batches(rows, features)
    cxp.extract(torch.nn.Identity(), data, "input", dtype="bfloat16", out=directory)
    return peak()


def fit(directory: Path, limit: float) -> tuple[float, float, str]:
    """Peak resident memory, bytes, beside a fit; its passes and its status."""
    activations, labels = cxp.open_activations(directory)
    probe = cxp.fit_probes(activations, labels, l2=1e-3, memory_limit=limit)["input"]
    return peak(), probe.passes, probe.status.name.lower()


def peak() -> float:
    """Largest resident memory of this process so far, bytes (Linux)."""
    status = Path("/proc/self/status").read_text().splitlines()
    return 1024.0 * next(int(line.split()[1]) for line in status if line.startswith("VmHWM"))


def drop(directory: Path) -> None:
    """Ask the page cache to forget the files."""
    for path in directory.iterdir():
        with open(path, "rb") as file:
            os.fsync(file.fileno())
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def read(directory: Path) -> None:
    """All bytes of the files, in order, into one buffer."""
    buffer = bytearray(8 << 20)
    for path in sorted(directory.glob("*.safetensors")):
        with open(path, "rb", buffering=0) as file:
            while file.readinto(buffer):
                pass


def a_pass(source: Source, labels: Tensor) -> Callable[[], None]:
    """A value and gradient away from the start, whose weights are zero."""
    problem = Problem(source, labels, [1e-3], classes=CLASSES)
    w = problem.origin() + 1e-3
    return lambda: (problem.evaluate(w), None)[1]


def seconds(work: Callable[[], None]) -> float:
    started = time.perf_counter()
    work()
    return time.perf_counter() - started


def in_child(work: Callable, *args: object) -> object:
    """Run in a fresh process, whose memory is its own."""
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
        return pool.submit(work, *args).result()


def verdict(name: str, value: str, target: str, met: bool) -> None:
    print(f"{name:58}{value:>12}   target {target}: {'met' if met else 'missed'}")


def run(directory: Path, gigabytes: float, features: int) -> None:
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
    stream = a_pass(Stream(shards, "cpu", 1e9), labels)  # which has checked every block
    raw: list[float] = []
    streamed: list[float] = []
    turn = [(raw, lambda: read(directory)), (streamed, stream)]
    for _ in range(4):
        for found, work in turn:
            drop(directory)
            found.append(seconds(work))
        turn.reverse()
    for name, times in (("read", raw), ("streamed", streamed)):
        print(f"{name:10}" + "".join(f"{size / t / 1e9:6.2f}" for t in sorted(times)), "GB/s")
    ratio = min(raw) / min(streamed)
    verdict("speed of a streamed pass / sequential read", f"{ratio:.2f}", ">= 0.6", ratio >= 0.6)

    blocks = Manifest.read(directory).blocks
    blocks = blocks[: max(1, int(len(blocks) * min(1.0, CACHED / size)))]
    part = Shards(directory, blocks, shards.layer)
    part_labels = labels[: part.shape[0]]
    stream = a_pass(Stream(part, "cpu", 1e9), part_labels)
    memory = a_pass(Rows(part.load()), part_labels)
    times = [(seconds(stream), seconds(memory)) for _ in range(5)]
    slower = median(s for s, _ in times) / median(m for _, m in times)
    print(f"{part.nbytes / 1e9:.2f} GB in the page cache: {median(m for _, m in times):.3f} s "
          "a pass in memory")  # fmt: skip
    verdict("time of a streamed pass / pass in memory", f"{slower:.2f}", "<= 1.3", slower <= 1.3)

    limit = min(1e9, size / 4)  # small runs are streamed too
    told = cxp.estimate(activations, labels, l2=1e-3, memory_limit=limit).total
    started = time.perf_counter()
    used, passes, status = in_child(fit, directory, limit)
    print(f"fit: {status}, {passes:.1f} passes, {time.perf_counter() - started:.0f} s; told "
          f"before: {told.host / 1e9:.2f} GB beside the libraries' 0.3")  # fmt: skip
    verdict("resident memory of the fit, GB", f"{used / 1e9:.2f}", "< 2", used < 2e9)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--dir", type=Path, required=True, help="made, filled, and deleted")
    parser.add_argument("--gigabytes", type=float, default=12.0)
    parser.add_argument("--features", type=int, default=2048)
    args = parser.parse_args()
    if args.dir.exists():
        parser.error(f"--dir {args.dir}: exists already")
    try:
        run(args.dir, args.gigabytes, args.features)
    finally:
        shutil.rmtree(args.dir, ignore_errors=True)


if __name__ == "__main__":
    main()
