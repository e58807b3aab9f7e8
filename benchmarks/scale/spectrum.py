"""Synthetic activations of any size with the spectrum of deep features, made block by block.

    python -m benchmarks.scale.spectrum --cache CACHE     # compare with real activations

A row of class y is `x = relu(u A)`, `u = signal M_y + e`, with `M` `(k, d)` and `e` standard normal
and `A` `(d, d)` Gaussian with rows scaled by `i^(-decay/2)`: before the ReLU the covariance has
eigenvalues close to `i^-decay`. Real deep features have such spectra: the command fits
`log lambda_i = c - alpha log i` to the eigenvalues of rank 2 to d/4 of the MNIST convnet's
`fc1_postact` (10 000 rows: alpha 1.14 untrained, 1.27 after one epoch, R^2 0.99 and above) and of
rows made here, whose default decay gives an alpha between these two. A later checkpoint of the
network has the same rows with `A' = sqrt(1 - drift^2) A + drift A_2`: all features move together.

A row depends only on the seed and on its block. So only one block of temporaries is in memory, and
a part of the matrix can be made without the rest.
"""

from __future__ import annotations

import argparse
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from convexprobe import extract, mnist
from examples.mnist_convnet import VALIDATION_ROWS, ConvNet, load_or_train, normalise

BLOCK = 4096


@dataclass(frozen=True)
class Features:
    """A synthetic layer, and the checkpoint that its activations come from.

    Attributes:
        n, d, k: rows, features, classes.
        seed: of the layer; all layers of the same `n` and `k` have the same labels.
        decay: exponent of the spectrum before the ReLU.
        signal: distance between class means, in units of the noise.
        drift: how far the checkpoint is from the first one, 0 to 1.
    """

    n: int
    d: int
    k: int
    seed: int = 0
    decay: float = 1.45
    signal: float = 0.25
    drift: float = 0.0

    def make(
        self, device: str = "cpu", dtype: torch.dtype = torch.float16, part: slice | None = None
    ) -> tuple[Tensor, Tensor]:
        """Make the rows `(r, d)` and labels `(r,)` of `part`, whole blocks; by default of all."""
        rows = part or slice(0, self.n)
        mixing, means = self._layer(device)
        x = torch.empty((rows.stop - rows.start, self.d), dtype=dtype, device=device)
        y = torch.empty(rows.stop - rows.start, dtype=torch.int64, device=device)
        for start in range(rows.start, rows.stop, BLOCK):
            size = min(BLOCK, self.n - start)
            labels = _generator(device, 1, start)
            classes = torch.randint(self.k, (size,), generator=labels, device=device)
            noise = torch.randn(
                (size, self.d), generator=_generator(device, 2, self.seed, start), device=device
            )
            here = slice(start - rows.start, start - rows.start + size)
            x[here] = ((noise + means[classes]) @ mixing).relu_().to(dtype)
            y[here] = classes
        return x, y

    def _layer(self, device: str) -> tuple[Tensor, Tensor]:
        """Return `A` `(d, d)` at this drift, and `signal M` `(k, d)`."""

        def normal(name: int, *shape: int) -> Tensor:
            return torch.randn(shape, generator=_generator(device, name, self.seed), device=device)

        scale = torch.arange(1, self.d + 1, device=device, dtype=torch.float32) ** (-self.decay / 2)
        mixing = (1 - self.drift**2) ** 0.5 * normal(3, self.d, self.d)
        if self.drift:
            mixing += self.drift * normal(4, self.d, self.d)
        return scale[:, None] * mixing, self.signal * normal(5, self.k, self.d)


def _generator(device: str, *key: int) -> torch.Generator:
    """Return a random generator whose stream depends on the key only."""
    seed = int(np.random.SeedSequence(key).generate_state(1, np.uint64)[0] >> np.uint64(1))
    return torch.Generator(device).manual_seed(seed)


def decay(x: Tensor) -> tuple[float, float]:
    """Fit `alpha` to the covariance's eigenvalues of rank 2 to d/4; return it and the R^2."""
    values = torch.linalg.eigvalsh(torch.cov(x.double().T)).flip(0).clamp_min(1e-300)
    ranks = torch.arange(2, len(values) // 4)
    a, b = ranks.double().log().numpy(), values[ranks - 1].log().numpy()
    slope = float(np.polyfit(a, b, 1)[0])
    return -slope, float(np.corrcoef(a, b)[0, 1] ** 2)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--cache", type=Path, required=True, help="folder for the trained network")
    parser.add_argument("--epochs", type=float, default=1, help="of training the network")
    settings = parser.parse_args()
    images, labels = mnist("train")
    trained = load_or_train(
        settings.cache / f"convnet_{settings.epochs:g}.pt",
        images[VALIDATION_ROWS:],
        labels[VALIDATION_ROWS:],
        settings.epochs,
    )
    x = normalise(images[:10_000])
    print(f"{'activations':32s} alpha   R^2  zeros")
    for name, model in (("untrained", ConvNet(0).eval()), ("trained", trained)):
        rows, _ = extract(model, list(x.split(500)), "fc1_postact", progress=False)
        show(f"fc1_postact, {name}, d = 512", rows["fc1_postact"])
    for d in (512, 2048):
        made, _ = Features(4 * d, d, 10).make(dtype=torch.float32)
        show(f"synthetic, d = {d}", made)


def show(name: str, x: Tensor) -> None:
    """Print one line of the table."""
    alpha, fit = decay(x)
    print(f"{name:32s} {alpha:5.2f} {fit:5.2f} {float((x == 0).float().mean()):5.0%}")


if __name__ == "__main__":
    main()
