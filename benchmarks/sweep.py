"""Probe every checkpoint of a training; compare with the scikit-learn loops that this replaces.

    python -m benchmarks.sweep --out out

The network is the MNIST convnet, with 40 checkpoints evenly spaced over two epochs (made once, kept
in `out`) and ten probe points (feature maps reduced to 1 000 fixed random features). There are
20 000 rows, and 10 000 held out.

1. The sweep: passes of a probe, and seconds of solving against seconds of extracting.
2. On a few later checkpoints every probe is fitted again: ours as in the sweep (transferred from
   the checkpoint before), and scikit-learn's lbfgs and newton-cg, of which the faster counts, from
   zero and with `warm_start=True` from our probe of the checkpoint before. scikit-learn has arrived
   when our certificate, evaluated in float64 at its coefficients, gives the gap that stops us,
   `tol H(Y)`. Also timed is when it is as close in truth, which no user could know:
   `F - L <= tol H(Y)` with the lower bound `L` of a ten times tighter solve. Its `tol` is divided
   by 4 until it arrives, and only the run that did is timed.
3. Our probes of these checkpoints from zero: held-out errors have to be within 0.1 percentage
   points of the warm ones, and objectives within the two gaps.
"""

from __future__ import annotations

import argparse
import time
import warnings
from pathlib import Path

import numpy as np
import torch
from sklearn.linear_model import LogisticRegression

import convexprobe as cxp
from benchmarks.harness.cases import Judge, multiclass
from benchmarks.harness.sklearn_loop import Fit, loosest_fit
from benchmarks.harness.targets import verdict
from convexprobe import Status
from convexprobe.activations.source import Rows
from convexprobe.problem.certificate import lower_bound
from convexprobe.problem.objective import Problem
from convexprobe.problem.row_sample import Sample
from examples.mnist_convnet import BATCH, PROBE_POINTS, VALIDATION_ROWS, ConvNet, normalise, train

TOL = 1e-3
SOLVERS = ("lbfgs", "newton-cg")


def make_checkpoints(directory: Path, count: int, epochs: float) -> list[Path]:
    """Train, unless it has been done; return the checkpoint files in the order of steps."""
    images, labels = (rows[VALIDATION_ROWS:] for rows in cxp.mnist("train"))
    last = int(epochs * len(images)) // BATCH
    steps = np.unique(np.linspace(0, last, count).astype(int)).tolist()
    files = [directory / f"step_{step}.pt" for step in steps]
    if all(file.exists() for file in files):
        return files
    directory.mkdir(parents=True, exist_ok=True)
    model = ConvNet(0)

    def keep(step: int, _: float = 0.0) -> None:
        if step in steps:
            torch.save({"step": step, "model": model.state_dict()}, directory / f"step_{step}.pt")

    keep(0)
    train(model, images, labels, epochs=epochs, callback=keep)
    return files


class Images:
    """Images to fit on and held-out ones, and the activations of a checkpoint on either."""

    def __init__(self, rows: int, features: int) -> None:
        (x, y), (xt, yt) = cxp.mnist("train"), cxp.mnist("test")
        self.fit = normalise(x[:rows]), torch.from_numpy(y[:rows])
        self.test = normalise(xt[: max(rows // 2, 1)]), torch.from_numpy(yt[: max(rows // 2, 1)])
        self.pool = {"conv*": cxp.random_features(features), "**": "flatten"}

    def activations(self, file: Path, *, test: bool = False) -> dict[str, torch.Tensor]:
        """Return a checkpoint's activations by layer."""
        model = ConvNet(0)
        model.load_state_dict(torch.load(file, weights_only=True)["model"])
        x, y = self.test if test else self.fit
        loader = list(zip(x.split(250), y.split(250), strict=True))
        return cxp.extract(model, loader, list(PROBE_POINTS), pool=self.pool, progress=False)[0]


def sweep(data: Images, files: list[Path], l2: float, out: Path) -> cxp.ProbeHistory:
    """Run the sweep and print what it cost."""
    history = cxp.probe_checkpoints(
        ConvNet(0), files, *data.fit, test=data.test, layers=list(PROBE_POINTS), pool=data.pool,
        l2=l2, tol=TOL, out=out / f"sweep_{l2:g}",
    )  # fmt: skip
    passes = np.array([[r.passes for r in entry.layers] for entry in history.entries])
    later = passes[5:] if len(passes) > 5 else passes
    solve = sum(e.solve_seconds for e in history.entries)
    extract = sum(e.extract_seconds for e in history.entries)
    results = [r for e in history.entries for r in e.layers]
    certified = sum(r.status is Status.CERTIFIED for r in results)
    print(f"\nl2 = {l2:g}: {len(history)} checkpoints, {certified} of {len(results)} certified")
    starts = {s: sum(r.start == s for r in results) for s in ("zero", "copied", "transferred")}
    print(f"  starts {starts}")
    verdict("passes, median after the first five checkpoints", np.median(later), 5.0, at_most=True)
    verdict("passes, mean over all", passes.mean(), 9.0, at_most=True)
    verdict(f"solving / extracting ({solve:.1f} / {extract:.1f} s)", solve / extract, 1 / 3,
            at_most=True)  # fmt: skip
    medians = zip(history.layers, np.median(later, axis=0), strict=True)
    by_layer = ", ".join(f"{layer} {value:.1f}" for layer, value in medians)
    print(f"  median passes by layer: {by_layer}", flush=True)
    return history


def faster(
    x: np.ndarray, task: Fit, start: LogisticRegression | None, most: float
) -> tuple[float, str]:
    """Return seconds and name of the faster solver at its loosest tol, or `most` and "none"."""
    best, name = most, "none"
    for solver in SOLVERS:
        seconds, *_ = loosest_fit(x, task, solver, start, divide=4, least=1e-9, most=4 * best)
        if seconds < best:
            best, name = seconds, solver
    return best, name


class ArrivalJudge:
    """Whether coefficients of a probe have arrived, in float64; see the module's docstring."""

    def __init__(self, x: torch.Tensor, y: torch.Tensor, l2: float, bound: float) -> None:
        self.judge, self.l2 = Judge(x, y, 10), l2
        self.problem = Problem(Rows(x.double()), y, l2, classes=10)
        self.target, self.bound = TOL * self.judge.entropy, bound

    def close(self, c: np.ndarray) -> bool:
        """Whether they are close enough in truth, by a lower bound that no user has."""
        return self.judge.value(c, self.l2) - self.bound <= self.target

    def proved(self, c: np.ndarray) -> bool:
        """Whether our certificate proves that they are close enough."""
        if not self.close(c):
            return False
        problem, w = self.problem, torch.from_numpy(multiclass(c, 10, c.shape[1] - 1))
        point = problem.join(w[None, :, :-1], w[None, :, -1])
        at = problem.evaluate(point, keep=True)
        sample = Sample.draw(problem, at, problem.n, np.random.default_rng(0))
        best = max(float(lower_bound(problem, at, s)[0]) for s in (None, sample))
        return float(at.value[0]) - best <= self.target


def model_of(probe: cxp.Probe) -> LogisticRegression:
    """Return a scikit-learn model with a probe's coefficients, to start from."""
    model = LogisticRegression()
    model.coef_, model.intercept_ = np.array(probe.weights), np.array(probe.bias)
    model.classes_ = np.arange(10)
    return model


def compare(data: Images, files: list[Path], history: cxp.ProbeHistory, l2: float, count: int,
            layers: list[str], most: float) -> None:  # fmt: skip
    """Compare ours, warm and cold, with scikit-learn, warm and cold, at a few checkpoints."""
    steps, y = list(history), data.fit[1]
    chosen = np.unique(np.linspace(min(6, len(steps) - 1), len(steps) - 1, count).astype(int))
    kinds = [(judge, start) for judge in ("proved", "close") for start in ("cold", "warm")]
    total = {"ours": 0.0, **dict.fromkeys(kinds, 0.0)}
    late, error, apart = 0, 0.0, -np.inf
    for at in chosen.tolist():
        before, now = data.activations(files[at - 1]), data.activations(files[at])
        held = data.activations(files[at], test=True)
        for layer in layers:
            old = cxp.ProbeSet({layer: history[steps[at - 1]][layer]})
            memory, x = cxp.remember(old, {layer: before[layer]}), {layer: now[layer]}
            options = {"l2": l2, "tol": TOL, "progress": False}
            began = time.perf_counter()
            probe = cxp.fit_probes(x, y, warm_start=memory, **options)[layer]
            cxp.remember(cxp.ProbeSet({layer: probe}), x)
            ours = time.perf_counter() - began
            cold = cxp.fit_probes(x, y, **options)[layer]
            tight = cxp.fit_probes(x, y, warm_start=probe, **{**options, "tol": TOL / 10})[layer]
            judge = ArrivalJudge(now[layer], y, l2, tight.objective - tight.gap)
            starts = {"cold": None, "warm": model_of(old[layer])}
            fastest = {}
            for how, start in kinds:
                task = Fit(y.numpy(), 1 / (l2 * len(y)), getattr(judge, how))
                fastest[how, start] = faster(now[layer].numpy(), task, starts[start], most)
                total[how, start] += fastest[how, start][0]
                late += fastest[how, start][1] == "none"
            total["ours"] += ours
            scores = [p.evaluate(held[layer], data.test[1]).error for p in (probe, cold)]
            error = max(error, abs(scores[0] - scores[1]))
            apart = max(apart, abs(probe.objective - cold.objective) - probe.gap - cold.gap)
            theirs = ", ".join(
                f"{how} {start} {seconds:.2f} s ({name})"
                for (how, start), (seconds, name) in fastest.items()
            )
            print(f"  step {steps[at]} {layer}: ours {ours:.2f} s ({probe.passes:.1f} passes, "
                  f"{probe.start}); scikit-learn {theirs}", flush=True)  # fmt: skip
    more = f"; {late} scikit-learn fits did not arrive and count as {most:g} s" if late else ""
    print(f"  {len(chosen)} checkpoints of {len(steps)}, {len(layers)} layers{more}")
    for start, target in (("cold", 40.0), ("warm", 15.0)):
        ratio = total["proved", start] / total["ours"]
        verdict(f"scikit-learn {start} / ours, to the same gap", ratio, target, at_most=False)
    truth = [total["close", start] / total["ours"] for start in ("cold", "warm")]
    print(f"  scikit-learn / ours, as close in truth: cold {truth[0]:.2f}, warm {truth[1]:.2f}")
    verdict("our warm and cold held-out errors apart, percentage points", 100 * error, 0.1,
            at_most=True)  # fmt: skip
    verdict("our warm and cold objectives apart beyond their gaps, nats", apart, 0, at_most=True)


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--out", type=Path, default=Path("out"))
    parser.add_argument("--rows", type=int, default=20_000)
    parser.add_argument("--features", type=int, default=1_000, help="features of a feature map")
    parser.add_argument("--checkpoints", type=int, default=40)
    parser.add_argument("--epochs", type=float, default=2.0)
    parser.add_argument("--l2", type=float, nargs="+", default=[1e-3, 1e-5])
    parser.add_argument("--compared", type=int, default=3, help="checkpoints for scikit-learn")
    parser.add_argument("--layers", nargs="+", default=list(PROBE_POINTS), help="for scikit-learn")
    parser.add_argument("--most", type=float, default=60.0,
                        help="seconds that a scikit-learn fit without success counts")  # fmt: skip
    settings = parser.parse_args(argv)
    warnings.simplefilter("ignore")  # scikit-learn warns of tolerances that it did not reach
    where = settings.out / f"checkpoints_{settings.checkpoints}_{settings.epochs:g}"
    files = make_checkpoints(where, settings.checkpoints, settings.epochs)
    data = Images(settings.rows, settings.features)
    for l2 in settings.l2:
        history = sweep(data, files, l2, settings.out)
        compare(data, files, history, l2, settings.compared, settings.layers, settings.most)


if __name__ == "__main__":
    main()
