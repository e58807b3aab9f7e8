"""`convexprobe demo`: a small network, probed before and after its training."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from convexprobe.extraction.extract import extract
from convexprobe.probes.fit import fit_probes
from convexprobe.report.report import write_report

_READ = """
How to read it
  A row is a layer, and its probe the best softmax-linear classifier of the layer's activations.
  test error   how much of the answer a linear classifier finds there, on rows that it has not seen.
               Training lowers it from layer to layer; an untrained network only mixes the pixels.
  gap          a proof: no parameters whatever have an objective that is lower by more (nats).
  gap/H(Y)     the gap as a part of the label entropy. "certified" says that it is below tol, 0.1 %.
               So what differs between two rows is the network, and not how well a probe was fitted.
  The report has the figures, and the penalties that were tried.

Your own features next:
  convexprobe fit features.npz --labels y --out run
  convexprobe report run -o report.html"""


def run_demo(out: Path) -> tuple[str, dict[str, Any]]:
    """Train a network on scikit-learn's digits, and write the probes and their report to `out`.

    Returns:
        What to print, and the numbers by stage.

    Raises:
        OSError: `out` cannot be written.
    """
    from sklearn.datasets import load_digits  # here: it is slow to import, and only used here

    images, digits = load_digits(return_X_y=True)
    order = torch.randperm(len(images), generator=torch.Generator().manual_seed(0))
    x = torch.tensor(images, dtype=torch.float32)[order] / 16
    y = torch.tensor(digits)[order]
    train, test = (x[:1200], y[:1200]), (x[1200:], y[1200:])
    out.mkdir(parents=True, exist_ok=True)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = nn.Sequential(
            nn.Identity(), nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 32), nn.ReLU(),
            nn.Linear(32, 10),
        )  # fmt: skip
    lines: list[str] = []
    numbers: dict[str, Any] = {}
    for stage in ("untrained", "trained"):
        if stage == "trained":
            _train(model, *train)
        rows, labels = extract(model, [train], progress=False)
        held_out = extract(model, [test], progress=False)
        probes = fit_probes(rows, labels, l2=[1e-4, 1e-3, 1e-2], progress=False)
        scores = probes.evaluate(*held_out, bootstrap=200)
        lines += [f"{stage} network", str(probes)]
        lines += ["test error: " + "  ".join(f"{n} {s.error:.1%}" for n, s in scores.items()), ""]
        numbers[stage] = {
            row["layer"]: {**row, "test_error": scores[row["layer"]].error}
            for row in probes.table()
        }
        probes.save(out / f"{stage}.safetensors")
        write_report(
            probes,
            out / f"{stage}.html",
            scores=scores,
            settings={"network": f"64-64-32-10 on scikit-learn's digits, {stage}"},
            repeat="convexprobe demo",
        )
    lines += [f"wrote {out / 'untrained.html'} and {out / 'trained.html'}: open them", _READ]
    return "\n".join(lines), numbers


def _train(model: nn.Module, x: Tensor, y: Tensor) -> None:
    """Twenty epochs of Adam; the order of the rows has a generator of its own."""
    optimizer = torch.optim.Adam(model.parameters(), lr=2e-3)
    shuffle = torch.Generator().manual_seed(0)
    for _ in range(20):
        for rows in torch.randperm(len(x), generator=shuffle).split(64):
            optimizer.zero_grad()
            nn.functional.cross_entropy(model(x[rows]), y[rows]).backward()
            optimizer.step()
