"""A sweep over the checkpoints of a training: passes, seconds, and the loops it replaces.

    python -m benchmarks.sweep --out out

The MNIST convnet, 40 checkpoints evenly spaced over two epochs (made once, kept in `out`), its ten
probe points (feature maps reduced to 1 000 fixed random features), 20 000 rows, 10 000 held out.

1. The sweep: passes of a probe, and seconds of solving beside seconds of extracting.
2. On a few of the checkpoints, evenly spaced among the later ones, every probe again: ours as in
   the sweep (transferred from the checkpoint before), and scikit-learn's `LogisticRegression`,
   lbfgs or newton-cg, whichever is faster, from zero and with `warm_start=True` from our probe of
   the checkpoint before. It arrives when the same certificate that stops us, evaluated in float64
   at its coefficients, gives a gap of at most `tol H(Y)`: the same gap for both. Beside it, how
   long it takes to be as close in truth, which nobody could know: `F - L <= tol H(Y)` with the
   lower bound `L` of a ten times tighter solve. Its `tol` is divided by 4 until it arrives, and
   only the run that did is timed, one after another with ours in one process.
3. There, too, our probes from zero: held-out errors within 0.1 percentage points of the warm ones,
   objectives within the two gaps.
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
from benchmarks.families import Task, as_ours, fit
from convexprobe.certificate import lower_bound
from convexprobe.objective import Problem
from convexprobe.sample import Sample
from convexprobe.sources import Rows
from examples.mnist_convnet import BATCH, PROBE_POINTS, VALIDATION_ROWS, ConvNet, normalise, train

TOL = 1e-3
SOLVERS = ("lbfgs", "newton-cg")


def make_checkpoints(directory: Path, count: int, epochs: float) -> list[Path]:
    """Train once; the files, by step."""
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
    """Fitted and held-out images, and the activations of a checkpoint."""

    def __init__(self, rows: int, features: int) -> None:
        (x, y), (xt, yt) = cxp.mnist("train"), cxp.mnist("test")
        self.fit = normalise(x[:rows]), torch.from_numpy(y[:rows])
        self.test = normalise(xt[: max(rows // 2, 1)]), torch.from_numpy(yt[: max(rows // 2, 1)])
        self.pool = {"conv*": cxp.random_features(features), "*": "flatten"}

    def activations(self, file: Path, *, test: bool = False) -> dict[str, torch.Tensor]:
        """By layer."""
        model = ConvNet(0)
        model.load_state_dict(torch.load(file, weights_only=True)["model"])
        x, y = self.test if test else self.fit
        loader = list(zip(x.split(250), y.split(250), strict=True))
        return cxp.extract(model, loader, list(PROBE_POINTS), pool=self.pool, progress=False)[0]


def sweep(data: Images, files: list[Path], l2: float, out: Path) -> cxp.ProbeHistory:
    """The sweep, and what it cost."""
    history = cxp.probe_checkpoints(
        ConvNet(0), files, *data.fit, test=data.test, layers=list(PROBE_POINTS), pool=data.pool,
        l2=l2, tol=TOL, out=out / f"sweep_{l2:g}",
    )  # fmt: skip
    passes = np.array([[r.passes for r in entry.layers] for entry in history.entries])
    later = passes[5:] if len(passes) > 5 else passes
    solve = sum(e.solve_seconds for e in history.entries)
    extract = sum(e.extract_seconds for e in history.entries)
    results = [r for e in history.entries for r in e.layers]
    certified = sum(r.status == "certified" for r in results)
    print(f"\nl2 = {l2:g}: {len(history)} checkpoints, {certified} of {len(results)} certified")
    starts = {s: sum(r.start == s for r in results) for s in ("zero", "copied", "transferred")}
    print(f"  starts {starts}")
    report("passes, median after the first five checkpoints", np.median(later), 5.0, at_most=True)
    report("passes, mean over all", passes.mean(), 9.0, at_most=True)
    report(f"solving / extracting ({solve:.1f} / {extract:.1f} s)", solve / extract, 1 / 3,
           at_most=True)  # fmt: skip
    medians = zip(history.layers, np.median(later, axis=0), strict=True)
    by_layer = ", ".join(f"{layer} {value:.1f}" for layer, value in medians)
    print(f"  median passes by layer: {by_layer}", flush=True)
    return history


def report(what: str, value: float, target: float, *, at_most: bool) -> None:
    """A line with its verdict."""
    met = value <= target if at_most else value >= target
    word = "at most" if at_most else "at least"
    print(f"  {what}: {value:.2f}, target {word} {target:.3g}, {'met' if met else 'MISSED'}")


def loosest(
    x: np.ndarray, task: Task, start: LogisticRegression | None, most: float
) -> tuple[float, str]:
    """Seconds and name of the faster solver at the largest tol that arrives, or `most`."""
    best, name = most, "none"
    for solver in SOLVERS:
        tol, spent = 0.1, 0.0
        while tol > 1e-9 and spent < 4 * best:
            seconds, model = fit(x, task, solver, tol, start)
            spent += seconds
            if task.reached(as_ours(model)):
                if seconds < best:
                    best, name = seconds, solver
                break
            tol /= 4
    return best, name


class Judge:
    """Whether coefficients `(p,)` have arrived, in float64; see the module's docstring."""

    def __init__(self, x: torch.Tensor, y: torch.Tensor, l2: float, bound: float) -> None:
        self.problem = Problem(Rows(x.double()), y, l2, classes=10)
        self.target, self.bound = TOL * float(self.problem.label_entropy[0]), bound

    def close(self, w: np.ndarray) -> bool:
        """In truth."""
        at = self.problem.evaluate(torch.from_numpy(w)[None])
        return float(at.value[0]) - self.bound <= self.target

    def proved(self, w: np.ndarray) -> bool:
        """By the certificate."""
        if not self.close(w):
            return False
        problem = self.problem
        at = problem.evaluate(torch.from_numpy(w)[None], keep=True)
        sample = Sample.draw(problem, at, problem.n, np.random.default_rng(0))
        best = max(float(lower_bound(problem, at, s)[0]) for s in (None, sample))
        return float(at.value[0]) - best <= self.target


def model_of(probe: cxp.Probe) -> LogisticRegression:
    """scikit-learn's model with a probe's coefficients."""
    model = LogisticRegression()
    model.coef_, model.intercept_ = np.array(probe.weights), np.array(probe.bias)
    model.classes_ = np.arange(10)
    return model


def compare(data: Images, files: list[Path], history: cxp.ProbeHistory, l2: float, count: int,
            layers: list[str], most: float) -> None:  # fmt: skip
    """Ours, scikit-learn cold and warm, and ours cold, at a few checkpoints."""
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
            judge = Judge(now[layer], y, l2, tight.objective - tight.gap)
            starts = {"cold": None, "warm": model_of(old[layer])}
            found = {}
            for how, start in kinds:
                task = Task(y.numpy(), 1 / (l2 * len(y)), getattr(judge, how))
                found[how, start] = loosest(now[layer].numpy(), task, starts[start], most)
                total[how, start] += found[how, start][0]
                late += found[how, start][1] == "none"
            total["ours"] += ours
            scores = [p.evaluate(held[layer], data.test[1]).error for p in (probe, cold)]
            error = max(error, abs(scores[0] - scores[1]))
            apart = max(apart, abs(probe.objective - cold.objective) - probe.gap - cold.gap)
            theirs = ", ".join(
                f"{how} {start} {seconds:.2f} s ({name})"
                for (how, start), (seconds, name) in found.items()
            )
            print(f"  step {steps[at]} {layer}: ours {ours:.2f} s ({probe.passes:.1f} passes, "
                  f"{probe.start}); scikit-learn {theirs}", flush=True)  # fmt: skip
    more = (
        f"; {late} of their loops were given up after {most:g} s, which is counted" if late else ""
    )
    print(f"  {len(chosen)} checkpoints of {len(steps)}, {len(layers)} layers{more}")
    for start, target in (("cold", 40.0), ("warm", 15.0)):
        ratio = total["proved", start] / total["ours"]
        report(f"scikit-learn {start} / ours, to the same gap", ratio, target, at_most=False)
    truth = [total["close", start] / total["ours"] for start in ("cold", "warm")]
    print(f"  to be as close in truth: cold {truth[0]:.2f}, warm {truth[1]:.2f}")
    report("warm and cold, held-out error, percentage points", 100 * error, 0.1, at_most=True)
    report("warm and cold, objectives further apart than the gaps, nats", apart, 0, at_most=True)


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--out", type=Path, default=Path("out"))
    parser.add_argument("--rows", type=int, default=20_000)
    parser.add_argument("--features", type=int, default=1_000)
    parser.add_argument("--checkpoints", type=int, default=40)
    parser.add_argument("--epochs", type=float, default=2.0)
    parser.add_argument("--l2", type=float, nargs="+", default=[1e-3, 1e-5])
    parser.add_argument("--compared", type=int, default=3, help="checkpoints for slow competitors")
    parser.add_argument("--layers", nargs="+", default=list(PROBE_POINTS), help="of those")
    parser.add_argument("--most", type=float, default=60.0, help="seconds for one of their fits")
    settings = parser.parse_args(argv)
    warnings.simplefilter("ignore")  # scikit-learn's, about tolerances not reached
    where = settings.out / f"checkpoints_{settings.checkpoints}_{settings.epochs:g}"
    files = make_checkpoints(where, settings.checkpoints, settings.epochs)
    data = Images(settings.rows, settings.features)
    for l2 in settings.l2:
        history = sweep(data, files, l2, settings.out)
        compare(data, files, history, l2, settings.compared, settings.layers, settings.most)


if __name__ == "__main__":
    main()
