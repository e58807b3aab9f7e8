"""Compare the dtypes in which activations may be stored: a table of dtype x tol.

    python -m benchmarks.precision [--rows 20000] [--features 512] [--solver auto]

One synthetic layer of ten classes, condition about 1e4, is rounded to each dtype, and a probe is
fitted to the rounded rows at every tol. The table has the status, the certified gap and the goal in
nats, passes, seconds, and the test error on rows of the same dtype. A second table says how far
rounding the rows moved the optimum itself: the difference between the lowest objectives, in nats.
"""

from __future__ import annotations

import argparse

import torch
from torch import Tensor

import convexprobe as cxp
from benchmarks.harness.cases import label_entropy

DTYPES = ("float64", "float32", "float16", "bfloat16")
TOLS = (1e-2, 1e-3, 1e-4, 1e-5, 1e-6, 1e-7)
CLASSES = 10
L2 = 1e-4


def layer(rows: int, features: int, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Make float64 rows with a mean and features of unequal scale, and their classes."""
    g = torch.Generator().manual_seed(seed)
    scale = torch.logspace(0, -2, features, dtype=torch.float64)
    fixed = torch.Generator().manual_seed(1)  # the same layer for training and test rows
    w = torch.randn(features, CLASSES, generator=fixed, dtype=torch.float64)
    mean = torch.randn(features, generator=fixed, dtype=torch.float64)
    x = torch.randn(rows, features, generator=g, dtype=torch.float64) * scale
    noise = -torch.empty(rows, CLASSES, dtype=torch.float64).exponential_(generator=g).log()
    return x + mean, (x @ w + noise).argmax(1)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rows", type=int, default=20_000)
    parser.add_argument("--features", type=int, default=512)
    parser.add_argument("--solver", default="auto")
    args = parser.parse_args()
    x, y = layer(args.rows, args.features)
    held_x, held_y = layer(args.rows, args.features, seed=2)
    print("| stored | tol | status | gap | goal | passes | s | test error |")
    print("|---|---|---|---|---|---|---|---|")
    best = {}
    for name in DTYPES:
        dtype = getattr(torch, name)
        rows, held = x.to(dtype), held_x.to(dtype)
        for tol in TOLS:
            probes = cxp.fit_probes(rows, y, args.solver, l2=L2, tol=tol, max_passes=500)
            probe = probes["activations"]
            score = probe.evaluate(held, held_y)
            goal = tol * label_entropy(y)
            best[name] = min(best.get(name, probe), probe, key=lambda probe: probe.objective)
            print(
                f"| {name} | {tol:.0e} | {probe.status.name.lower()} | {probe.gap:.1e} "
                f"| {goal:.1e} | {probe.passes:.0f} | {probe.seconds:.2f} | {score.error:.2%} |"
            )
    print("\n| stored | lowest objective | above that of float64 |\n|---|---|---|")
    for name, probe in best.items():
        moved = probe.objective - best["float64"].objective
        print(f"| {name} | {probe.objective:.8f} | {moved:+.1e} |")


if __name__ == "__main__":
    main()
