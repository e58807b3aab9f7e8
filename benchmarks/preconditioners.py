"""Compare preconditioners: a table of problem x solver, CPU seconds and passes to a gap of 1e-3.

    python -m benchmarks.preconditioners [--rows 10000]

The rows are MNIST's pixels and a layer of random ReLU features of them, whose scales fall by a
factor of 100; the penalties are 1e-3 and 1e-5 of the mean feature variance. Every solve is alone on
one thread, and ends certified to 1e-3 or with the status shown. MNIST is downloaded once.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Iterator

import numpy as np
import torch

import convexprobe as cxp
from convexprobe.activations.source import Rows
from convexprobe.problem.eigen_blocks import EigenBlocks
from convexprobe.problem.objective import Problem
from convexprobe.solvers import LBFGS, Curvature, NewtonCG, Solver, Status, solve

SOLVERS: dict[str, Solver] = {
    "NewtonCG()": NewtonCG(),
    "LBFGS(Curvature())": LBFGS(Curvature()),
    "LBFGS(EigenBlocks())": LBFGS(EigenBlocks()),
    "LBFGS()": LBFGS(),
}
FEATURES = 512
TOL = 1e-3


def layers(rows: int, seed: int = 0) -> Iterator[tuple[str, np.ndarray, np.ndarray]]:
    """Name, float32 rows and labels of each layer."""
    images, labels = cxp.mnist("train")
    index = np.random.default_rng(seed).permutation(len(images))[:rows]
    x, y = images[index].reshape(rows, -1) / 255.0, labels[index]
    yield "pixels", x.astype(np.float32), y
    rng = np.random.default_rng(5)
    w = rng.standard_normal((x.shape[1], FEATURES)) / x.shape[1] ** 0.5
    z = (x - x.mean(axis=0)) @ w + 0.1 * rng.standard_normal(FEATURES)
    yield "random ReLU", (np.maximum(z, 0.0) * np.logspace(0, -2, FEATURES)).astype(np.float32), y


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rows", type=int, default=10_000)
    rows = parser.parse_args().rows
    torch.set_num_threads(1)
    print("| rows x features, l2 | " + " | ".join(SOLVERS) + " |")
    print("|---" * (len(SOLVERS) + 1) + "|")
    for name, x, y in layers(rows):
        for relative in (1e-3, 1e-5):
            cells = [f"{name} {x.shape[0]} x {x.shape[1]}, {relative:.0e}"]
            for solver in SOLVERS.values():
                started, l2 = time.process_time(), relative * float(x.var(axis=0).mean())
                problem = Problem(Rows(torch.tensor(x)), torch.tensor(y), [l2], classes=10)
                solution = solve(problem, solver, tol=TOL, max_passes=1000)
                seconds = time.process_time() - started
                (status,) = solution.status
                end = "" if status is Status.CERTIFIED else f" {status.name.lower()}"
                cells.append(f"{seconds:.2f} s, {solution.passes[0]:.0f} passes{end}")
            print(f"| {' | '.join(cells)} |", flush=True)


if __name__ == "__main__":
    main()
