"""Probes at the size of ImageNet: passes, seconds, throughput against ceilings, and a cost model.

    python -m benchmarks.imagenet_scale --out out                   # the processor, ten minutes
    python -m benchmarks.imagenet_scale --out out --device cuda     # 1 281 167 x 2 048 x 1 000

Activations are those of `benchmarks.spectrum`, kept in half precision; the penalty is 1e-3 times
their mean variance, `tol=1e-3`. A cold solve starts from nothing, a warm one from the probe of a
checkpoint that has drifted by 0.1. Ceilings are measured in the same run on the same device: a copy
of a matrix, and the product of float32 rows with weights, in the shapes that a pass has.

The first half of the time goes to a grid of sizes, to which the cost model is fitted, and to others
that judge it. The rest, on a processor, to the largest part of the ImageNet problem for which the
model promises to be done in time, and on a GPU to the whole of it: `--probes` cold and warm, beside
torch.optim.LBFGS (and cuML where it is importable) on one layer and the forward pass of Inception
v3 (where torchvision is) over as many images, extrapolated from a few batches.

Writes `imagenet_scale.json` and prints the table that it writes to `imagenet_scale.md`.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field, replace
from importlib.util import find_spec
from math import inf
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from benchmarks.cost_model import CostModel, Measurement, sample_rows
from benchmarks.spectrum import Features
from benchmarks.table import machine, versions
from convexprobe import Probe, ProbeSet, estimate, fit_probes, remember
from convexprobe.remembered import Remembered
from convexprobe.streaming import free_memory

IMAGES, FEATURES, CLASSES = 1_281_167, 2_048, 1_000
DRIFT = 0.1
TOL = 1e-3
FURTHER = 5.0
"""Passes that the largest size is given beyond the model's, which knows of no class count: 2 048
features and 1 000 classes need some steps more."""

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


@dataclass
class Run:
    """What is measured, as it goes into the JSON.

    Attributes:
        device: where.
        deadline: on the clock of `time.perf_counter`.
        out: folder of the results, which are written after every part.
        results: by name of the part.
    """

    device: str
    deadline: float
    out: Path
    results: dict[str, Any] = field(default_factory=dict)

    @property
    def left(self) -> float:
        """Seconds that are left."""
        return self.deadline - time.perf_counter()

    def keep(self, part: str, value: Any) -> None:
        """Add a part and write everything: a run that is ended early leaves what it had."""
        self.results[part] = value
        self.out.mkdir(parents=True, exist_ok=True)
        temporary = self.out / "imagenet_scale.json.tmp"
        temporary.write_text(json.dumps(self.results, indent=1))
        temporary.replace(self.out / "imagenet_scale.json")

    def clock(self) -> float:
        """Seconds, with the device's work done."""
        if self.device == "cuda":
            torch.cuda.synchronize()
        return time.perf_counter()


def best_of(run: Run, work: Callable[[], Any], repeats: int = 5) -> float:
    """Seconds of the fastest of some repeats, after one that is not counted."""
    work()
    seconds = []
    for _ in range(repeats):
        started = run.clock()
        work()
        seconds.append(run.clock() - started)
    return min(seconds)


def ceilings(run: Run, d: int, k: int) -> dict[str, float]:
    """Bytes a second of a copy (read and written) and flop a second of the product of a pass."""
    rows = 1 << 16 if run.device == "cuda" else 1 << 13
    x, w = torch.randn(rows, d, device=run.device), torch.randn(k, d, device=run.device)
    other, z = torch.empty_like(x), torch.empty(k, rows, device=run.device)
    copy = best_of(run, lambda: other.copy_(x))
    product = best_of(run, lambda: torch.mm(w, x.T, out=z))
    return {"bytes_per_second": 2.0 * x.nbytes / copy, "flops": 2.0 * rows * d * k / product}


def solve(
    run: Run,
    features: Features,
    x: Tensor,
    y: Tensor,
    before: Remembered | None = None,
    limit: float = inf,
) -> tuple[ProbeSet, Measurement]:
    """One layer's probe, timed; a `limit` in seconds that runs out is its status."""
    l2 = 1e-3 * float(x[:4096].float().var(0).mean())
    started = run.clock()
    probes = fit_probes(
        x,
        y,
        l2=l2,
        tol=TOL,
        warm_start=before,
        classes=range(features.k),
        max_seconds=limit,
        progress=False,
    )
    seconds = run.clock() - started
    probe = probes["activations"]
    entropy = label_entropy(y)
    start = "cold" if before is None else "warm"
    size = (features.n, features.d, features.k)
    return probes, Measurement(
        *size, start, seconds, probe.passes, probe.gap / entropy, probe.status.name, x.itemsize
    )


def label_entropy(y: Tensor) -> float:
    """`H(Y)`, nats."""
    share = torch.bincount(y).double() / len(y)
    share = share[share > 0]
    return float(-(share * share.log()).sum())


def cold_and_warm(run: Run, features: Features, limit: float = inf) -> list[Measurement]:
    """A checkpoint, and the next one from what is remembered of it, which the warm one pays for."""
    x, y = features.make(run.device)
    probes, cold = solve(run, features, x, y, limit=limit)
    started = run.clock()
    memory = remember(probes, x)
    spent = run.clock() - started
    del x, y  # one checkpoint in memory at a time
    later = replace(features, drift=DRIFT)
    _, warm = solve(run, later, *later.make(run.device), memory, limit)
    return [cold, replace(warm, seconds=warm.seconds + spent)]


def fit_models(run: Run, grid: list[tuple[int, ...]], judges: list[tuple[int, ...]]) -> CostModel:
    """Measure the sizes, fit cold and warm, judge both; returns the cold model."""
    cold_and_warm(run, Features(*grid[0]))  # the first of all also sets up libraries
    measured: list[Measurement] = []
    for size in grid:
        measured += cold_and_warm(run, Features(*size))
        run.keep("grid", [asdict(m) for m in measured])
    others = [m for size in judges for m in cold_and_warm(run, Features(*size))]
    run.keep("held_out", [asdict(m) for m in others])
    models = {}
    for start in ("cold", "warm"):
        here = [m for m in measured if m.start == start]
        model = CostModel.fit(here, run.results["ceilings"]["flops"])
        judged = [m for m in others if m.start == start]
        models[start] = model
        run.keep(
            f"model_{start}",
            {**asdict(model), "held_out_predicted_over_measured": model.errors(judged)},
        )
        run.keep(
            f"expected_{start}_one_probe_seconds",
            model.expected_seconds(IMAGES, FEATURES, CLASSES),
        )
    return models["cold"]


def largest(run: Run, model: CostModel, d: int, k: int) -> None:
    """The most rows of `d` features and `k` classes that time and memory are enough for.

    At least `4 sample_rows`: of fewer rows the sample may be all, which the model does not know.
    """
    free = 0.8 * free_memory(torch.device("cpu"))
    n = IMAGES
    while n > 4 * sample_rows(d):
        passes = model.expected_passes(n, d) + FURTHER
        # cold and warm, and the rows are made twice
        seconds = 2.0 * model.expected_seconds(n, d, k, passes)
        if seconds <= 0.7 * run.left and expected_bytes(n, d, k) <= free:
            break
        n = int(0.9 * n)
    found = cold_and_warm(run, Features(n, d, k), limit=max(20.0, 0.4 * run.left))
    run.keep("largest", [asdict(m) for m in found])


def whole(run: Run, probes: int, size: tuple[int, int, int]) -> None:
    """All layers cold, and again at the next checkpoint, one layer in memory at a time."""
    found: list[Measurement] = []
    for layer in range(probes):
        found += cold_and_warm(run, Features(*size, seed=layer))
        run.keep("whole", [asdict(m) for m in found])
    for start in ("cold", "warm"):
        run.keep(f"whole_{start}_seconds", sum(m.seconds for m in found if m.start == start))


def expected_bytes(n: int, d: int, k: int) -> float:
    """Host memory of the rows in float16 and of a fit to them, as `convexprobe.estimate` tells."""
    x = torch.empty((n, d), dtype=torch.float16, device="meta")
    return 2.0 * n * d + estimate(x, torch.arange(n) % k, l2=1.0).total.host


class Arrived(Exception):
    """Ends torch.optim.LBFGS where a user would want it to end."""


def torch_lbfgs(run: Run, features: Features, limit: float) -> None:
    """torch.optim.LBFGS on the same rows to the same tolerance, by our bound, or out of time.

    Its gradient is written out over blocks of rows, as someone with that many would do.
    """
    x, y = features.make(run.device)
    probes, ours = solve(run, features, x, y)
    probe = probes["activations"]
    bound, entropy = probe.objective - probe.gap, label_entropy(y)
    w = torch.zeros(features.k, features.d + 1, device=run.device, requires_grad=True)
    optimiser = torch.optim.LBFGS(
        [w], max_iter=10_000, max_eval=10**6, tolerance_grad=0, tolerance_change=0,
        history_size=10, line_search_fn="strong_wolfe",
    )  # fmt: skip
    best, evaluations, started = np.inf, 0, run.clock()

    def closure() -> Tensor:
        nonlocal best, evaluations
        total = torch.zeros((), device=run.device, dtype=torch.float64)
        gradient = torch.zeros_like(w)
        with torch.no_grad():
            for rows, classes in zip(x.split(1 << 15), y.split(1 << 15), strict=True):
                block = rows.float()
                z = torch.nn.functional.linear(block, w[:, :-1], w[:, -1])
                log_p = z.log_softmax(1)
                total -= log_p.gather(1, classes[:, None]).sum(dtype=torch.float64)
                p = log_p.exp_()
                p[torch.arange(len(p), device=p.device), classes] -= 1.0
                gradient[:, :-1] += p.T @ block
                gradient[:, -1] += p.sum(0)
            gradient /= features.n
            gradient[:, :-1] += probe.l2 * w[:, :-1]
            value = total / features.n + 0.5 * probe.l2 * w[:, :-1].square().sum()
        w.grad = gradient
        best, evaluations = min(best, float(value)), evaluations + 1
        if best - bound <= TOL * entropy or run.clock() - started > limit:
            raise Arrived
        return value.float()

    try:
        optimiser.step(closure)
        status = "stopped by itself"
    except Arrived:
        status = "arrived" if best - bound <= TOL * entropy else f"not within {limit:.0f} s"
    run.keep(
        "torch_lbfgs",
        {
            "size": [features.n, features.d, features.k],
            "seconds": run.clock() - started,
            "evaluations": evaluations,
            "at_most_above_optimum": (best - bound) / entropy,
            "status": status,
            "ours_seconds": ours.seconds,
        },
    )
    cuml_lbfgs(run, features, x, y, probe, bound, entropy)


def cuml_lbfgs(
    run: Run, features: Features, x: Tensor, y: Tensor, probe: Probe, bound: float, entropy: float
) -> None:
    """cuML's LogisticRegression with its own stopping, judged by our bound."""
    if run.device != "cuda" or find_spec("cuml") is None:
        run.keep("cuml", "not run: cuml is not importable, or no CUDA device")
        return
    from cuml.linear_model import LogisticRegression

    model = LogisticRegression(C=1 / (features.n * probe.l2), output_type="numpy", max_iter=1000)
    started = run.clock()
    model.fit(x.float(), y.float())
    seconds = run.clock() - started
    weights, bias = (
        torch.as_tensor(np.asarray(part), device=run.device, dtype=torch.float32)
        for part in (model.coef_, model.intercept_)
    )
    loss = 0.0
    for rows, classes in zip(x.split(1 << 15), y.split(1 << 15), strict=True):
        z = torch.nn.functional.linear(rows.float(), weights, bias)
        loss += float(torch.nn.functional.cross_entropy(z, classes, reduction="sum"))
    value = loss / features.n + 0.5 * probe.l2 * float(weights.square().sum())
    run.keep("cuml", {"seconds": seconds, "at_most_above_optimum": (value - bound) / entropy})


def inception(run: Run, batches: int = 5) -> None:
    """Seconds of Inception v3's forward pass over all of ImageNet, from a few batches."""
    try:
        from torchvision.models import inception_v3
    except Exception as error:  # a torchvision built for another torch fails in its own ways
        run.keep("inception", f"not run: torchvision is not importable ({type(error).__name__})")
        return
    half = run.device == "cuda"
    dtype, size = (torch.float16, 256) if half else (torch.float32, 4)
    model = inception_v3(weights=None, init_weights=False, aux_logits=True).eval()
    model = model.to(run.device, dtype, memory_format=torch.channels_last)
    x = torch.randn(size, 3, 299, 299, device=run.device, dtype=dtype)
    x = x.to(memory_format=torch.channels_last)
    with torch.inference_mode():
        seconds = best_of(run, lambda: model(x), batches)
    run.keep(
        "inception",
        {"images_per_second": size / seconds, "extrapolated_seconds": IMAGES * seconds / size},
    )


def table(results: dict[str, Any]) -> str:
    """The measurements in Markdown, and under them what follows from them."""
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
    parser.add_argument("--seconds", type=float, default=600, help="for all of it")
    parser.add_argument("--probes", type=int, default=20, help="layers of the whole problem (GPU)")
    parser.add_argument("--shrink", type=int, default=1, help="divide all sizes, to try it out")
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
    inception(run)
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


if __name__ == "__main__":
    main()
