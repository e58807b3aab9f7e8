"""Probes at the size of ImageNet: passes, seconds, throughput against ceilings, and a cost model.

    python -m benchmarks.scale --out out                   # the processor, ten minutes
    python -m benchmarks.scale --out out --device cuda     # 1 281 167 x 2 048 x 1 000

Activations are synthetic (`benchmarks.scale.spectrum`), in half precision; the penalty is 1e-3
times their mean variance, and `tol=1e-3`. A cold solve starts from zero, a warm one from the probe
of a checkpoint that has drifted by 0.1. Two ceilings are measured in the same run on the same
device: a copy of a matrix, and the product of float32 rows with weights in the shapes of a pass.

First a grid of sizes is solved, to which the cost model is fitted, and other sizes, on which it is
tested. Then a processor solves the largest part of the ImageNet problem for which the model expects
enough time; a GPU solves the whole problem for `--probes` layers, cold and warm. For comparison,
torch.optim.LBFGS, and cuML if it is installed, solve one layer, and the forward pass of Inception
v3, if torchvision is installed, is timed on a few batches and extrapolated to all images.

Writes `imagenet_scale.json`, and prints the table that it writes to `imagenet_scale.md`.
"""

from __future__ import annotations

import argparse
import json
import time
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from benchmarks.harness.table import machine, versions
from benchmarks.scale.cost_model import CostModel, Measurement, sample_rows
from benchmarks.scale.measure import Run, ceilings, cold_and_warm
from benchmarks.scale.peers import inception, torch_lbfgs
from benchmarks.scale.spectrum import Features
from convexprobe import estimate
from convexprobe.activations.placement import free_memory

IMAGES, FEATURES, CLASSES = 1_281_167, 2_048, 1_000
FURTHER = 5.0
"""Passes added to the model's for the largest size: with 2 048 features and 1 000 classes a solve
needs some more, and the model of passes knows nothing of classes."""

GRIDS = {
    "cpu": [
        (8_000, 128, 100), (16_000, 128, 100), (32_000, 128, 100), (64_000, 128, 100),
        (128_000, 128, 100), (32_000, 64, 100), (32_000, 256, 100), (32_000, 512, 100),
        (32_000, 1_024, 100), (32_000, 128, 10), (32_000, 128, 30), (32_000, 128, 300),
        (32_000, 128, 1_000), (24_000, 1_024, 1_000),
    ],
    "cuda": [
        (40_000, 512, 300), (80_000, 512, 300), (160_000, 512, 300), (320_000, 512, 300),
        (640_000, 512, 300), (160_000, 256, 300), (160_000, 1_024, 300), (160_000, 2_048, 300),
        (160_000, 512, 30), (160_000, 512, 100), (160_000, 512, 1_000),
    ],
}  # fmt: skip
HELD_OUT = {
    "cpu": [(48_000, 192, 200), (96_000, 384, 50), (20_000, 1_536, 600)],
    "cuda": [(240_000, 768, 200), (480_000, 384, 500), (160_000, 1_536, 800)],
}


def fit_models(run: Run, grid: list[tuple[int, ...]], judges: list[tuple[int, ...]]) -> CostModel:
    """Measure all sizes; fit a cold and a warm model to `grid`, test them on `judges`.

    Returns the cold model.
    """
    cold_and_warm(run, Features(*grid[0]))  # not counted: the first solve also sets up libraries
    measured: list[Measurement] = []
    for size in grid:
        measured += cold_and_warm(run, Features(*size))
        run.keep("grid", [asdict(m) for m in measured])
    held_out = [m for size in judges for m in cold_and_warm(run, Features(*size))]
    run.keep("held_out", [asdict(m) for m in held_out])
    models = {}
    for start in ("cold", "warm"):
        here = [m for m in measured if m.start == start]
        model = CostModel.fit(here, run.results["ceilings"]["flops"])
        judged = [m for m in held_out if m.start == start]
        models[start], errors = model, model.errors(judged)
        run.keep(f"model_{start}", {**asdict(model), "held_out_predicted_over_measured": errors})
        seconds = model.expected_seconds(IMAGES, FEATURES, CLASSES)
        run.keep(f"expected_{start}_one_probe_seconds", seconds)
    return models["cold"]


def largest(run: Run, model: CostModel, d: int, k: int) -> None:
    """Solve for as many rows of `d` features and `k` classes as time and memory allow.

    At least `4 sample_rows`: of fewer rows all may be sampled, which the model does not cover.
    """
    free = 0.8 * free_memory(torch.device("cpu"))
    n = IMAGES
    while n > 4 * sample_rows(d):
        passes = model.expected_passes(n, d) + FURTHER
        # A cold and a warm solve; 0.7 leaves time to make the rows twice.
        seconds = 2.0 * model.expected_seconds(n, d, k, passes)
        if seconds <= 0.7 * run.left and expected_bytes(n, d, k) <= free:
            break
        n = int(0.9 * n)
    solves = cold_and_warm(run, Features(n, d, k), limit=max(20.0, 0.4 * run.left))
    run.keep("largest", [asdict(m) for m in solves])


def whole(run: Run, probes: int, size: tuple[int, int, int]) -> None:
    """Solve all layers cold, and warm at the next checkpoint; one layer is in memory at a time."""
    solves: list[Measurement] = []
    for layer in range(probes):
        solves += cold_and_warm(run, Features(*size, seed=layer))
        run.keep("whole", [asdict(m) for m in solves])
    for start in ("cold", "warm"):
        run.keep(f"whole_{start}_seconds", sum(m.seconds for m in solves if m.start == start))


def expected_bytes(n: int, d: int, k: int) -> float:
    """Return the host bytes of float16 rows and of a fit to them, by `convexprobe.probes.cost`."""
    x = torch.empty((n, d), dtype=torch.float16, device="meta")
    return 2.0 * n * d + estimate(x, torch.arange(n) % k, l2=1.0).total.host


def table(results: dict[str, Any]) -> str:
    """Write the measurements as a Markdown table, and all other results as a list below it."""
    lines = [
        "| rows | features | classes | start | passes | seconds | gap / H(Y) | status "
        "| GB/s of rows | GFLOP/s | of product |",
        "|" + "---|" * 11,
    ]
    ceiling = results["ceilings"]
    for part in ("grid", "held_out", "largest", "whole"):
        for entry in results.get(part, []):
            m = Measurement(**entry)
            lines.append(
                f"| {m.n} | {m.d} | {m.k} | {m.start} | {m.passes:.1f} | {m.seconds:.2f} "
                f"| {m.gap:.1e} | {m.status.lower()} | {m.bandwidth / 1e9:.2f} "
                f"| {m.flops / 1e9:.1f} | {m.flops / ceiling['flops']:.0%} |"
            )
    lines += ["", f"{results['machine']}; {results['versions']}", ""]
    for name, value in results.items():
        if name not in ("grid", "held_out", "largest", "whole", "machine", "versions"):
            lines.append(f"- {name}: {json.dumps(value)}")
    return "\n".join(lines) + "\n"


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    parser.add_argument("--seconds", type=float, default=600, help="time for the whole command")
    parser.add_argument("--probes", type=int, default=20, help="layers of the whole problem (GPU)")
    parser.add_argument("--shrink", type=int, default=1, help="divide all sizes by this, for tests")
    settings = parser.parse_args(arguments)
    run = Run(settings.device, time.perf_counter() + settings.seconds, settings.out)
    d, k = max(16, FEATURES // settings.shrink), max(10, CLASSES // settings.shrink)
    run.keep("machine", machine())
    run.keep("versions", versions())
    run.keep("ceilings", ceilings(run, d, k))

    def shrunk(sizes: list[tuple[int, int, int]]) -> list[tuple[int, ...]]:
        least = (200, 8, 3)
        return [
            tuple(max(low, s // settings.shrink) for s, low in zip(size, least, strict=True))
            for size in sizes
        ]

    model = fit_models(run, shrunk(GRIDS[run.device]), shrunk(HELD_OUT[run.device]))
    inception(run, IMAGES)
    if run.device == "cuda":
        n = IMAGES // settings.shrink
        whole(run, settings.probes, (n, d, k))
        torch_lbfgs(run, Features(n, d, k), limit=max(10.0, run.left - 30.0))
    else:
        torch_lbfgs(run, Features(*shrunk(GRIDS["cpu"])[3]), limit=max(10.0, 0.2 * run.left))
        largest(run, model, d, k)
    text = table(run.results)
    (run.out / "imagenet_scale.md").write_text(text)
    print(text)
