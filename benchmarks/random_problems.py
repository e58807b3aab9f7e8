"""Solve random problems by default and hold each certificate against a float64 optimum.

    python -m benchmarks.random_problems [--count 10000] [--seed 0] [--concepts]

Up to 2 000 rows, 300 features and 20 classes; penalties of 1e-8 to 1 of the mean feature variance;
feature scales over up to three decades, means up to a hundred deviations, dependent columns, ReLU
and integer features; row weights over three decades in a third of them; float32 in four of five. It
prints every problem that is not certified to 1e-3, every certificate above the truth, and the sums.
With `--concepts` a problem is a family of two to seven concepts with two to eight classes each, not
all of whose rows have labels, and no row weights.
"""

from __future__ import annotations

import argparse
from collections import Counter
from dataclasses import dataclass

import numpy as np

import convexprobe as cxp


@dataclass(frozen=True)
class Random:
    """A problem: rows `(n, d)`, labels `(n,)`, also by concept, row weights `(n,)` or None, the
    penalty."""

    x: np.ndarray
    y: np.ndarray | dict[str, np.ndarray]
    weights: np.ndarray | None
    l2: float

    @classmethod
    def draw(cls, seed: int, *, concepts: bool = False) -> Random:
        """The problem of a seed."""
        rng = np.random.default_rng(seed)
        n, d = (int(np.exp(rng.uniform(*np.log(limits)))) for limits in ((10, 2000), (1, 301)))
        k = min(int(rng.integers(2, 21)), n // 3)
        mean = rng.standard_normal(d) * 10 ** rng.uniform(-2, 2)
        x = rng.standard_normal((n, d)) * 10 ** rng.uniform(-rng.uniform(0, 3), 0, d) + mean
        kind = int(rng.integers(4))
        if kind == 1 and d > 3:
            x[:, d // 2 :] = x[:, : d - d // 2] + 1e-3 * x[:, d // 2 :]
        elif kind == 2:
            x = np.maximum(x - mean, 0.0)
        elif kind == 3:
            x = np.round(x)
        y: np.ndarray | dict[str, np.ndarray] = _labels(rng, x, k)
        weights = 10 ** rng.uniform(-3, 0, n) if rng.random() < 0.3 else None
        l2 = float(10 ** rng.uniform(-8, 0) * max(x.var(axis=0).mean(), 1e-12))
        x = x.astype(np.float32 if rng.random() < 0.8 else np.float64)
        if concepts:
            y, weights = _concepts(rng, x), None
        return cls(x, y, weights, l2)

    def fit(self, *, tol: float, exact: bool = False) -> cxp.ProbeSet:
        """The default solver's probes; `exact` widens the rows to float64."""
        x = self.x.astype(np.float64) if exact else self.x
        return cxp.fit_probes(
            x, self.y, l2=self.l2, tol=tol, sample_weight=self.weights, progress=False
        )


def _labels(rng: np.random.Generator, x: np.ndarray, k: int) -> np.ndarray:
    """Labels of `k` classes, linear in the rows or drawn; every class has rows."""
    linear = ((x - x.mean(axis=0)) @ rng.standard_normal((x.shape[1], k))).argmax(axis=1)
    y = linear if rng.random() < 0.5 else rng.integers(0, k, len(x))
    y[: 2 * k] = np.arange(2 * k)[: len(x)] % k
    return y


def _concepts(rng: np.random.Generator, x: np.ndarray) -> dict[str, np.ndarray]:
    """Labels by concept; -100 where one is unknown."""
    found = {}
    for number in range(int(rng.integers(2, 8))):
        k = min(int(rng.integers(2, 9)), len(x) // 3)
        y = _labels(rng, x, k)
        y[2 * k :][rng.random(len(x) - 2 * k) < rng.uniform(0.0, 0.5)] = -100
        found[f"concept {number}"] = y
    return found


def main() -> None:
    """Print what went wrong, and the sums."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--count", type=int, default=10_000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--concepts", action="store_true", help="families of concepts")
    settings = parser.parse_args()
    ends: Counter[str] = Counter()
    false, most = 0, 0.0
    for seed in range(settings.seed, settings.seed + settings.count):
        problem = Random.draw(seed, concepts=settings.concepts)
        probes, truths = problem.fit(tol=1e-3), problem.fit(tol=1e-8, exact=True)
        for name, probe in probes.items():
            ends[probe.status.name] += 1
            most = max(most, probe.passes)
            case = f"seed {seed}: {problem.x.shape} {problem.x.dtype}, l2 {problem.l2:.1e}"
            case += f", {probe.concept}" if settings.concepts else ""
            if probe.status.name != "CERTIFIED":
                gap = probe.gap / probe.label_entropy
                print(f"{case}: {probe.status.name}, gap {gap:.1e} of H(Y), "
                      f"{probe.passes:.0f} passes", flush=True)  # fmt: skip
            truth = truths[name].objective
            above = probe.objective - probe.gap - truth
            if above > 1e-9 * truth + 1e-12:
                false += 1
                print(f"{case}: the bound is {above:.1e} nats above the truth", flush=True)
    print(f"{sum(ends.values())} problems: {dict(ends)}; bounds above the truth: {false}; "
          f"most passes of one fit: {most:.0f}")  # fmt: skip


if __name__ == "__main__":
    main()
