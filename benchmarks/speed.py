"""Time and passes to a given accuracy on MNIST activations, against scikit-learn and torch L-BFGS.

    python -m benchmarks.speed --out out            (about 20 minutes on two cores)

Cases: five layers of the convnet, untrained and trained, 50 000 rows, l2 of 1e-3 and 1e-5, from
zero. Accuracy is `(F(w) - F*) / H(Y)`, the scale of `tol`, for every competitor by our own float64
evaluation of its coefficients; `F*` is the highest lower bound certified for the case.

All minimise the same objective: mean cross-entropy + l2/2 ||W||^2, intercept free, so
`C = 1 / (n l2)` for scikit-learn. A competitor's iterates are recorded as it evaluates them and its
clock stops meanwhile; it is credited with the first evaluation that reaches the target. Each runs
in float32 and, where that ends above a target before its time is up, in float64. Our clock runs
from the raw activations (set-up, samples, preconditioners and certificates included).
"""

from __future__ import annotations

import argparse
import csv
import platform
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import suppress
from math import exp, log
from pathlib import Path

import numpy as np
import sklearn
import torch
from sklearn.linear_model import LogisticRegression
from sklearn.linear_model._linear_loss import LinearModelLoss

from convexprobe import extract, mnist
from convexprobe.objective import Problem
from convexprobe.solve import Record, solve
from convexprobe.solvers import SOLVERS
from convexprobe.sources import Rows
from examples.mnist_convnet import VALIDATION_ROWS, ConvNet, load_or_train, normalise

LAYERS = ("input", "conv2_postpool", "fc1_preact", "fc1_postact", "logits")
TARGETS = (1e-3, 1e-5)
PENALTIES = (1e-3, 1e-5)
ROWS = 50_000


class OutOfTime(Exception):
    """Raised inside a competitor when its time is up."""


class Arrived(Exception):
    """Raised by our callback when everything to be timed has happened."""


class Recorder:
    """A clock that stops while it keeps a copy of the coefficients."""

    def __init__(self, limit: float) -> None:
        self.limit, self.paused, self.started = limit, 0.0, time.perf_counter()
        self.seen: list[tuple[float, np.ndarray]] = []

    def __call__(self, coefficients: np.ndarray) -> None:
        now = time.perf_counter()
        self.seen.append((now - self.started - self.paused, np.array(coefficients, copy=True)))
        if now - self.started - self.paused > self.limit:
            raise OutOfTime
        self.paused += time.perf_counter() - now


def run_sklearn(solver: str, x: np.ndarray, y: np.ndarray, l2: float, limit: float) -> Recorder:
    """scikit-learn, every evaluation of its loss recorded."""
    names = ("loss_gradient", "loss", "gradient", "gradient_hessian", "gradient_hessian_product")
    kept = {name: getattr(LinearModelLoss, name) for name in names}
    model = LogisticRegression(C=1 / (len(x) * l2), solver=solver, tol=1e-12, max_iter=5000)
    record = Recorder(limit)

    def spy(method: Callable) -> Callable:
        def recorded(self, *args, **kwargs):
            result = method(self, *args, **kwargs)
            record(args[0] if args else kwargs["coef"])
            return result

        return recorded

    try:
        for name, method in kept.items():
            setattr(LinearModelLoss, name, spy(method))
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            model.fit(x, y)
    except OutOfTime:
        pass
    finally:
        for name, method in kept.items():
            setattr(LinearModelLoss, name, method)
    k = int(y.max()) + 1
    record.seen = [(s, c.reshape(k, -1, order="F") if c.ndim == 1 else c) for s, c in record.seen]
    return record


def run_torch(x: np.ndarray, y: np.ndarray, l2: float, limit: float) -> Recorder:
    """torch.optim.LBFGS with its strong Wolfe line search, every closure call recorded."""
    rows, labels = torch.from_numpy(x), torch.from_numpy(y)
    layer = torch.nn.Linear(x.shape[1], int(y.max()) + 1, dtype=rows.dtype)
    torch.nn.init.zeros_(layer.weight)
    torch.nn.init.zeros_(layer.bias)
    optimiser = torch.optim.LBFGS(
        layer.parameters(), max_iter=5000, max_eval=10**6, tolerance_grad=0,
        tolerance_change=0, history_size=10, line_search_fn="strong_wolfe",
    )  # fmt: skip
    record = Recorder(limit)

    def closure() -> torch.Tensor:
        optimiser.zero_grad()
        loss = torch.nn.functional.cross_entropy(layer(rows), labels)
        loss = loss + 0.5 * l2 * layer.weight.square().sum()
        loss.backward()
        record(torch.cat([layer.weight, layer.bias[:, None]], 1).detach().numpy())
        return loss

    with suppress(OutOfTime):
        optimiser.step(closure)
    return record


def first_reached(
    record: Recorder, value: Callable[[np.ndarray], float], target: float
) -> float | None:
    """Seconds of the first recorded evaluation at or below the target.

    Bisection over the record (values fall but for line-search trials), then the lowest neighbour:
    a handful of evaluations instead of one for each iterate.
    """
    seen = record.seen
    if not seen or min(value(c) for _, c in seen[-3:]) > target:
        return None
    low, high = 0, len(seen) - 1
    while low < high:
        middle = (low + high) // 2
        if value(seen[middle][1]) <= target:
            high = middle
        else:
            low = middle + 1
    return seen[low][0]


def run_ours(
    x: torch.Tensor, y: torch.Tensor, l2: float, solver: str, optimum: float, repeats: int
) -> dict[str, float]:
    """Median seconds, and passes, until each target is true and until 1e-3 is certified."""
    runs = []
    for _ in range(repeats):
        started = time.perf_counter()
        problem = Problem(Rows(x), y, [l2], classes=10)
        setup = time.perf_counter() - started
        entropy = float(problem.label_entropy[0])
        history: list[Record] = []

        def watch(record: Record, history: list[Record] = history, h: float = entropy) -> None:
            history.append(record)
            if record.value[0] - optimum <= TARGETS[-1] * h and record.gap[0] <= 1e-3 * h:
                raise Arrived

        with suppress(Arrived):
            solve(problem, SOLVERS[solver](), tol=1e-7, max_passes=400, callbacks=[watch])
        row: dict[str, float] = {}
        for target in TARGETS:
            hit = [r for r in history if r.value[0] - optimum <= target * entropy]
            row[f"seconds {target:g}"] = setup + hit[0].seconds if hit else float("nan")
            row[f"passes {target:g}"] = hit[0].passes if hit else float("nan")
        hit = [r for r in history if r.gap[0] <= 1e-3 * entropy]
        row["certified passes 0.001"] = hit[0].passes if hit else float("nan")
        row["certified seconds 0.001"] = setup + hit[0].seconds if hit else float("nan")
        runs.append(row)
    return {key: float(np.median([run[key] for run in runs])) for key in runs[0]}


def reference(x: torch.Tensor, y: torch.Tensor, l2: float) -> tuple[float, Problem]:
    """A lower bound on the optimum within about 1e-6 H(Y) of a value, and the float64 judge."""
    judge = Problem(Rows(x.double()), y, [l2], classes=10)
    start = solve(Problem(Rows(x), y, [l2], classes=10), SOLVERS["newton-cg"](), tol=1e-4).w
    solution = solve(judge, SOLVERS["newton-cg"](), start, tol=1e-6, max_seconds=60)
    print(f"    F* known within {solution.gap[0] / judge.label_entropy[0]:.1e} H(Y)", flush=True)
    return float(solution.value[0] - solution.gap[0]), judge


def cases(cache: Path, done: set) -> Iterator[tuple[str, str, torch.Tensor, torch.Tensor]]:
    """State, layer, activations and labels of each case not yet done."""
    images, labels = mnist("train")
    trained = load_or_train(cache, images[VALIDATION_ROWS:], labels[VALIDATION_ROWS:])
    y = torch.from_numpy(labels[:ROWS])
    x = normalise(images[:ROWS])
    batches = [(x[i : i + 500], y[i : i + 500]) for i in range(0, ROWS, 500)]
    for state, model in (("untrained", ConvNet(0)), ("trained", trained)):
        for layer in LAYERS:
            if layer == "input" and state == "trained":
                continue  # the same rows as before training
            if all((state, layer, l2) in done for l2 in PENALTIES):
                continue
            activations, _ = extract(model, batches, layer)
            yield state, layer, activations[layer], y


def kept(path: Path) -> list[dict]:
    """The cases of an earlier run that was cut off; delete the file to measure them again."""
    if not path.exists():
        return []
    words = {"state", "layer"} | {f"sklearn solver {t:g}" for t in TARGETS}
    with open(path, newline="") as file:
        return [
            {k: v if k in words else float(v) if v else None for k, v in row.items()}
            for row in csv.DictReader(file)
        ]


def geometric_mean(values: list[float]) -> float:
    """Of positive numbers."""
    return exp(sum(map(log, values)) / len(values))


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--out", type=Path, default=Path("out"))
    parser.add_argument("--solver", default="newton-cg", choices=list(SOLVERS))
    parser.add_argument("--limit", type=float, default=10.0, help="seconds per competitor's run")
    parser.add_argument("--repeats", type=int, default=3, help="of ours; the median counts")
    parser.add_argument("--layers", nargs="*", default=list(LAYERS))
    parser.add_argument("--ours-only", action="store_true")
    settings = parser.parse_args()
    settings.out.mkdir(parents=True, exist_ok=True)
    machine = f"{platform.processor() or platform.machine()}, {torch.get_num_threads()} threads"
    versions = f"torch {torch.__version__}, scikit-learn {sklearn.__version__}"
    print(f"{machine}; {versions}\n", flush=True)
    table = kept(settings.out / "speed.csv")
    done = {(row["state"], row["layer"], row["l2"]) for row in table}
    for state, layer, x, y in cases(settings.out / "mnist_convnet.pt", done):
        if layer not in settings.layers:
            continue
        for l2 in PENALTIES:
            if (state, layer, l2) in done:
                continue
            print(f"{state} {layer} l2={l2:g}", flush=True)
            optimum, judge = reference(x, y, l2)
            entropy = float(judge.label_entropy[0])

            def value(c: np.ndarray, judge: Problem = judge) -> float:
                w = np.concatenate([c[:, :-1].ravel(), c[:, -1]]).astype(np.float64)
                return float(judge.evaluate(torch.from_numpy(w)[None, :]).value[0])

            row: dict = {"state": state, "layer": layer, "l2": l2, "limit": settings.limit}
            row |= run_ours(x, y, l2, settings.solver, optimum, settings.repeats)
            best: dict[float, tuple[float, str]] = dict.fromkeys(TARGETS, (np.inf, "none"))
            solvers = ["lbfgs", "newton-cg"] + (["newton-cholesky"] if x.shape[1] <= 64 else [])
            for name in [] if settings.ours_only else [*solvers, "torch"]:
                for dtype in (np.float32, np.float64):
                    data, truth = x.numpy().astype(dtype), y.numpy()
                    if name == "torch":
                        record = run_torch(data, truth, l2, settings.limit)
                    else:
                        record = run_sklearn(name, data, truth, l2, settings.limit)
                    arrived = True
                    for target in TARGETS:
                        seconds = first_reached(record, value, optimum + target * entropy)
                        row[f"{name} {np.dtype(dtype).name} {target:g}"] = seconds
                        arrived &= seconds is not None
                        if name != "torch" and seconds is not None:
                            best[target] = min(best[target], (seconds, name))
                    late = record.seen[-1][0] > settings.limit
                    if arrived or late:  # float64 does the same iterates at twice the price
                        break
            for target in TARGETS:
                row[f"sklearn {target:g}"], row[f"sklearn solver {target:g}"] = best[target]
                row[f"ratio {target:g}"] = best[target][0] / row[f"seconds {target:g}"]
            print("   ", {k: round(v, 3) if isinstance(v, float) else v for k, v in row.items()})
            table.append(row)
            columns = list(dict.fromkeys(key for r in table for key in r))
            with open(settings.out / "speed.csv", "w", newline="") as file:
                writer = csv.DictWriter(file, columns)
                writer.writeheader()
                writer.writerows(table)
    summarise(table)


def summarise(table: list[dict]) -> None:
    """The table as Markdown, then every target of the benchmark with its number."""
    print("\n| network | layer | l2 | passes to 1e-3 / 1e-5 | certified 1e-3 | ours, s "
          "| best scikit-learn, s | ratio |\n|---|---|---|---|---|---|---|---|")  # fmt: skip
    for r in table:
        theirs = " / ".join(
            f"{r[f'sklearn {t:g}']:.2f}"
            if np.isfinite(r[f"sklearn {t:g}"])
            else f"> {r['limit']:g}"
            for t in TARGETS
        )
        ratios = " / ".join(
            f"{r[f'ratio {t:g}']:.1f}"
            if np.isfinite(r[f"ratio {t:g}"])
            else f"> {r['limit'] / r[f'seconds {t:g}']:.1f}"
            for t in TARGETS
        )
        print(
            f"| {r['state']} | {r['layer']} | {r['l2']:g} | {r['passes 0.001']:.0f} / "
            f"{r['passes 1e-05']:.0f} | {r['certified passes 0.001']:.0f} | "
            f"{r['seconds 0.001']:.2f} / {r['seconds 1e-05']:.2f} | {theirs} | {ratios} |"
        )
    # A competitor that did not arrive within the limit counts as if it had just then.
    ratios = [
        r[f"ratio {t:g}"] if np.isfinite(r[f"ratio {t:g}"]) else r["limit"] / r[f"seconds {t:g}"]
        for r in table
        for t in TARGETS
    ]
    print(f"\nspeed against the best scikit-learn solver of each case: geometric mean "
          f"{geometric_mean(ratios):.1f}, lowest {min(ratios):.2f}")  # fmt: skip
    for target in TARGETS:
        passes = [r[f"passes {target:g}"] for r in table]
        print(f"passes to {target:g}: geometric mean {geometric_mean(passes):.1f}, "
              f"most {max(passes):.1f}")  # fmt: skip
    lag = [r["certified passes 0.001"] / r["passes 0.001"] for r in table]
    print(f"passes until 1e-3 is certified / until it is true: geometric mean "
          f"{geometric_mean(lag):.2f}, most {max(lag):.2f}")  # fmt: skip


if __name__ == "__main__":
    main()
