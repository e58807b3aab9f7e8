"""Probe every layer of a small convnet on scikit-learn's digits, before and after training.

    python examples/digits.py [--out out]

Prints a table of probes for each stage, what to read in it, and writes `digits.png`: the test
error of the optimal linear classifier at each layer, and `digits.html`, a report. Takes less than a
minute on a laptop and downloads nothing.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import matplotlib

matplotlib.use("Agg")
import numpy as np
import torch
from sklearn.datasets import load_digits
from torch import nn

import convexprobe as cxp

LAYERS = ["input", "conv1", "relu1", "pool1", "conv2", "relu2", "pool2", "fc1", "relu3", "logits"]


def network(seed: int = 0) -> nn.Sequential:
    """Make a convnet for 8x8 images in which every step is a named module."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        modules: dict[str, nn.Module] = {
            "input": nn.Identity(),
            "conv1": nn.Conv2d(1, 16, 3, padding=1),
            "relu1": nn.ReLU(),
            "pool1": nn.MaxPool2d(2),
            "conv2": nn.Conv2d(16, 32, 3, padding=1),
            "relu2": nn.ReLU(),
            "pool2": nn.MaxPool2d(2),
            "flatten": nn.Flatten(),
            "fc1": nn.Linear(128, 64),
            "relu3": nn.ReLU(),
            "logits": nn.Linear(64, 10),
        }
    model = nn.Sequential()
    for name, module in modules.items():
        model.add_module(name, module)
    return model


def train(model: nn.Module, x: torch.Tensor, y: torch.Tensor, epochs: int) -> None:
    """Train with Adam on minibatches of 64, shuffled by a generator of its own."""
    optimiser = torch.optim.Adam(model.parameters(), lr=2e-3)
    shuffle = torch.Generator().manual_seed(0)
    for _ in range(epochs):
        for rows in torch.randperm(len(x), generator=shuffle).split(64):
            optimiser.zero_grad()
            nn.functional.cross_entropy(model(x[rows]), y[rows]).backward()
            optimiser.step()


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--out", type=Path, default=Path("out"))
    parser.add_argument("--epochs", type=int, default=20)
    settings = parser.parse_args()
    settings.out.mkdir(parents=True, exist_ok=True)

    images, labels = load_digits(return_X_y=True)
    x = torch.tensor(images, dtype=torch.float32).reshape(-1, 1, 8, 8) / 16
    y = torch.tensor(labels)
    order = torch.tensor(np.random.default_rng(0).permutation(len(x)))
    train_rows, test_rows = order[:1200], order[1200:]

    model = network()
    print(f"""\
A convnet with {len(LAYERS)} layers, and {len(x)} images of handwritten digits, 8 x 8 pixels.
What does each layer know of the digit? A probe is the best linear classifier of a layer's
activations, fitted to {len(train_rows)} images; the other {len(test_rows)} images test it.""")
    curves: dict[str, dict[str, float]] = {}
    for stage in ("before training", "after training"):
        if stage == "after training":
            train(model, x[train_rows], y[train_rows], settings.epochs)
        fitted, truth = cxp.extract(model, [(x[train_rows], y[train_rows])], LAYERS)
        held_out, held_truth = cxp.extract(model, [(x[test_rows], y[test_rows])], LAYERS)
        probes = cxp.fit_probes(fitted, truth)
        scores = probes.evaluate(held_out, held_truth)
        curves[stage] = {layer: score.error for layer, score in scores.items()}
        print(f"\n{stage.capitalize()}:\n\n{probes}")

    print("\nTest error in per cent:\n")
    print(f"{'':16}" + "".join(f"{layer:>7}" for layer in LAYERS))
    for stage, curve in curves.items():
        print(f"{stage:16}" + "".join(f"{100 * curve[layer]:7.1f}" for layer in LAYERS))
    before, after = (curve["logits"] for curve in curves.values())
    print(f"""
Random layers keep the digit up to relu2 and then lose it: {100 * before:.1f} % at the logits.
Training changes that: {100 * after:.1f} % at the logits. "certified" says that no classifier has an
objective lower by more than 0.1 % of the label entropy, so a difference between two layers is
not the optimiser's. On {len(test_rows)} images, differences of less than a point may be chance.""")

    axes = cxp.plot_errors(curves, ylabel="test error")
    axes.set_title("Optimal linear classifier at every layer (digits)", fontsize=10)
    path = settings.out / "digits.png"
    axes.figure.savefig(path, dpi=130)
    report = settings.out / "digits.html"
    cxp.write_report(probes, report, scores=scores, repeat="python examples/digits.py")
    print(f"\nThe figure: {path}\nThe report on the trained network: {report}")


if __name__ == "__main__":
    main()
