"""The four layers, each at a checkpoint and at the one before it.

easy: `fc1_postact` of the MNIST convnet after 440 steps, l2 of 1e-2 (in units of the mean variance
of a feature, here and below). hard: `conv1_postpool` of the same network, reduced to 512 random
features, l2 of 1e-5. bert: see `language`, l2 of 1e-3. classes: 5 000 made rows, 128 features, a
thousand classes, l2 of 1e-4; its earlier checkpoint has other features of the same rows, a tenth of
each replaced by noise and all of them rotated.

Rows are made once and kept in `out`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

import convexprobe as cxp
from benchmarks.future_work import language
from benchmarks.problems.classes import rows as made_rows
from benchmarks.sweep import make_checkpoints
from examples.mnist_convnet import BATCH, VALIDATION_ROWS, ConvNet, normalise

ROWS, FEATURES, CHECKPOINTS, EVERY = 10_000, 512, 11, 44


@dataclass(frozen=True)
class Layer:
    """A problem.

    Attributes:
        name, title: for files and tables, and for the figure.
        x, before: float32 `(n, d)` of the same rows at this checkpoint and at the one before.
        y: labels `0..k-1`, `(n,)`; each class occurs.
        l2: the penalty.
    """

    name: str
    title: str
    x: Tensor
    before: Tensor
    y: Tensor
    l2: float

    @property
    def k(self) -> int:
        """Number of classes."""
        return int(self.y.max()) + 1


Make = Callable[[Path], tuple[Tensor, Tensor, Tensor]]
"""Makes the rows before, the rows now, and the labels."""


def convnet(out: Path, point: str, pool: object) -> tuple[Tensor, Tensor, Tensor]:
    """Activations of two consecutive checkpoints."""
    (images, labels), last = cxp.mnist("train"), (CHECKPOINTS - 1) * EVERY
    epochs = (last + 0.5) * BATCH / (len(images) - VALIDATION_ROWS)
    files = make_checkpoints(out / f"steps_{last}", CHECKPOINTS, epochs)
    x, y = normalise(images[:ROWS]), torch.from_numpy(labels[:ROWS]).long()
    found = []
    for file in files[-2:]:
        model = ConvNet(0)
        model.load_state_dict(torch.load(file, weights_only=True)["model"])
        loader = list(zip(x.split(250), y.split(250), strict=True))
        found.append(cxp.extract(model, loader, point, pool=pool, progress=False)[0][point])
    return *found, y


def classes(_: Path) -> tuple[Tensor, Tensor, Tensor]:
    """A thousand classes, and the same rows as another checkpoint would have them."""
    x, y = made_rows(1000)
    generator = torch.Generator().manual_seed(1)
    turn, _ = torch.linalg.qr(torch.randn(x.shape[1], x.shape[1], generator=generator))
    noise = torch.randn(x.shape, generator=generator) * x.std()
    return (0.99**0.5 * x + 0.1 * noise) @ turn, x, y


LAYERS: dict[str, tuple[str, float, Make]] = {
    "easy": ("easy layer", 1e-2, lambda out: convnet(out, "fc1_postact", "flatten")),
    "hard": (
        "hard layer",
        1e-5,
        lambda out: convnet(out, "conv1_postpool", cxp.random_features(FEATURES)),
    ),
    "bert": ("a layer of a BERT", 1e-3, lambda _: language.words(ROWS)),
    "classes": ("a thousand classes", 1e-4, classes),
}
"""Title, penalty in units of the mean variance of a feature, and how the rows are made."""


def load(name: str, out: Path) -> Layer | None:
    """The layer, from `out` or made and kept there; None where the BERT is not installed."""
    title, relative, make = LAYERS[name]
    file = out / f"{name}.npz"
    if not file.exists():
        if name == "bert" and not language.installed():
            return None
        before, x, y = make(out)
        np.savez(file, before=before.numpy(), x=x.numpy(), y=y.numpy())
    kept = np.load(file)
    x, before, y = (torch.from_numpy(kept[part]) for part in ("x", "before", "y"))
    l2 = relative * float(x.double().var(dim=0, correction=0).mean())
    return Layer(name, title, x, before, y, l2)
