"""The time that bootstrap samples of every measure take.

    python -m benchmarks.measures [--rows 28000] [--classes 17] [--samples 1000]

It draws samples of the rows, one by one and in groups of ten, and prints the CPU seconds of all
measures of all samples. The target is two seconds for 1 000 samples of 28 000 rows and 17 classes.
"""

from __future__ import annotations

import argparse
import time

import numpy as np

from convexprobe.metrics.predictions import predictions
from convexprobe.metrics.score import score

TARGET = 2.0
"""CPU seconds."""


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--rows", type=int, default=28_000)
    parser.add_argument("--classes", type=int, default=17)
    parser.add_argument("--samples", type=int, default=1_000)
    settings = parser.parse_args(argv)
    n, k = settings.rows, settings.classes
    rng = np.random.default_rng(0)
    truth = rng.integers(0, k, n)
    logits = (rng.standard_normal((n, k)) + 2.0 * np.eye(k)[truth]).astype(np.float32)
    for name, groups in {"rows alone": None, "groups of ten rows": np.arange(n) // 10}.items():
        rows = predictions(logits, truth, None, rank=True)
        started = time.process_time()
        once = score(rows, groups)
        measured = time.process_time()
        drawn = score(rows, groups, samples=settings.samples)
        seconds = time.process_time() - measured
        low, high = drawn.interval("auroc")
        print(f"{name}: the measures {measured - started:.2f} s, {settings.samples} samples of "
              f"them {seconds:.2f} s of CPU (target {TARGET:g}: "
              f"{'reached' if seconds <= TARGET else 'missed'}); "
              f"AUROC {once.auroc:.4f}, {low:.4f} to {high:.4f}")  # fmt: skip


if __name__ == "__main__":
    main()
