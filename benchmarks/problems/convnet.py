"""Activations at ten points of the MNIST convnet of figure 5, untrained and trained.

The input is one case only, because training does not change it.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import lru_cache, partial

import torch

from benchmarks.harness.cases import Case, Settings
from convexprobe import extract, mnist
from examples.mnist_convnet import PROBE_POINTS, VALIDATION_ROWS, ConvNet, load_or_train, normalise

WEAK = ("fc1_preact", "fc1_postact", "logits")
"""Points with a second case, of the weaker penalty 1e-5."""

ENTRIES = 30_000_000
"""Most entries of a matrix: 25 088 features get 1 195 rows, so that peers finish in minutes."""


@lru_cache(maxsize=1)  # the penalties of one point share its rows; two points may not fit
def activations(settings: Settings, state: str, point: str) -> tuple[torch.Tensor, torch.Tensor]:
    """Extract the float32 rows and the labels of a point; state is "untrained" or "trained".

    There are `settings.rows` rows, or as many as `ENTRIES` allows.
    """
    images, labels = mnist("train")
    trained = (images[VALIDATION_ROWS:], labels[VALIDATION_ROWS:])
    cache = settings.out / "mnist_convnet.pt"
    model = load_or_train(cache, *trained) if state == "trained" else ConvNet(0)
    x = normalise(images[: settings.rows])
    y = torch.from_numpy(labels[: settings.rows]).long()
    layers, _ = extract(model, list(zip(x.split(500), y.split(500), strict=True)), point)
    rows = min(settings.rows, ENTRIES // layers[point].shape[1])
    return layers[point][:rows].contiguous(), y[:rows]


def cases(settings: Settings) -> Iterator[Case]:
    """Yield the cases; those of one point and state are adjacent, to share its cached rows."""
    for state in ("untrained", "trained"):
        for point in PROBE_POINTS:
            if point == "input" and state == "trained":
                continue
            name = f"mnist {point}" if point == "input" else f"mnist {state} {point}"
            for l2 in (1e-3, 1e-5) if point in WEAK else (1e-3,):
                yield Case(
                    f"{name} l2={l2:g}", partial(activations, settings, state, point), (l2,), 10
                )
