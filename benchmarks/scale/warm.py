"""A checkpoint from zero, from the probe before it, and from what `remember` kept, side by side.

    python -m benchmarks.scale.warm
    python -m benchmarks.scale.warm --size 60000 640 250 --kept 8 --repeats 3

Activations and the checkpoint's drift are those of `benchmarks.scale`; a repeat is another layer.
`--kept` limits the logits that are remembered to so many rows a feature: the default of `remember`
keeps 8 of 192 293 rows with 2 048 features and 1 000 classes, and of smaller problems more. Prints
medians: passes, CPU seconds (those of `remember` included), and both relative to the cold start.
"""

from __future__ import annotations

import argparse
import time
from dataclasses import replace
from typing import Any

import numpy as np

from benchmarks.scale.measure import DRIFT, TOL
from benchmarks.scale.spectrum import Features
from convexprobe import fit_probes, remember

STARTS = ("cold", "copied", "remembered")


def measure(features: Features, kept: float) -> list[tuple[float, float, str]]:
    """Fit one layer's next checkpoint in three ways: passes, CPU seconds and status of each."""
    x, y = features.make()
    settings: dict[str, Any] = {"l2": 1e-3 * float(x[:4096].float().var(0).mean()), "tol": TOL}
    settings |= {"classes": range(features.k), "progress": False}
    before = fit_probes(x, y, **settings)
    began = time.process_time()
    memory = remember(before, x, max_bytes=int(4 * features.k * features.d * kept))
    spent = time.process_time() - began
    x, y = replace(features, drift=DRIFT).make()
    found = []
    for start, more in zip((None, before, memory), (0.0, 0.0, spent), strict=True):
        began = time.process_time()
        (probe,) = fit_probes(x, y, warm_start=start, **settings).values()
        seconds = time.process_time() - began + more
        found.append((probe.passes, seconds, probe.status.name.lower()))
    return found


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--size", type=int, nargs=3, default=[96_000, 1_024, 500],
                        metavar=("ROWS", "FEATURES", "CLASSES"))  # fmt: skip
    parser.add_argument("--kept", type=float, default=8.0, help="rows a feature")
    parser.add_argument("--repeats", type=int, default=3)
    settings = parser.parse_args(arguments)
    repeats = [
        measure(Features(*settings.size, seed=seed), settings.kept)
        for seed in range(settings.repeats)
    ]
    rows, d, k = settings.size
    print(f"| {rows} x {d} x {k} | passes | CPU seconds | of the cold passes | of its seconds | |")
    print("|" + "---|" * 6)
    medians = np.median([[run[:2] for run in repeat] for repeat in repeats], axis=0)
    for i, start in enumerate(STARTS):
        (passes, seconds), (part, share) = medians[i], medians[i] / medians[0]
        status = ", ".join(sorted({repeat[i][2] for repeat in repeats}))
        print(f"| {start} | {passes:.1f} | {seconds:.1f} | {part:.2f} | {share:.2f} | {status} |")


if __name__ == "__main__":
    main()
