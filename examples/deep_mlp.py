"""The paper's pathologically deep network: 128 fully connected layers of 128 units on MNIST.

Figures 7 and 8 use this network, its training and the checkpoints. The paper states the depth, the
units, Glorot initialisation, leaky ReLU, an auxiliary classifier at every 16 layers (figure 7), and
that layer 64 has the network's input as a second input (figure 8). Chosen here are a slope of 0.5,
as in its section 3.2, zero biases, and Adam at 5e-5 on shuffled minibatches of 128.
"""

from __future__ import annotations

import json
import os
import zlib
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import numpy as np
import torch
from mnist_convnet import normalise
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from torch.nn.utils import skip_init
from tqdm import tqdm

UNITS, SLOPE = 128, 0.5
RATE, BATCH = 5e-5, 128


class DeepMLP(nn.Module):
    """`depth` layers of 128 leaky ReLUs: images `(n, 1, 28, 28)` in, logits `(n, 10)` out.

    Args:
        depth: number of layers without the classifier.
        guide_every: number of layers between auxiliary classifiers; None for no classifiers.
        bridge_to: the layer, counted from 1, that also takes the network's input; None for none.
        seed: of the weights. The global random state is not changed.
    """

    def __init__(
        self,
        depth: int = 128,
        *,
        guide_every: int | None = None,
        bridge_to: int | None = None,
        seed: int = 0,
    ) -> None:
        super().__init__()
        self.guide_every, self.bridge_to = guide_every, bridge_to
        generator = torch.Generator().manual_seed(seed)

        def linear(width: int, out: int) -> nn.Linear:
            # skip_init, because torch's own initialisation draws from the global generator
            layer = skip_init(nn.Linear, width, out)
            nn.init.xavier_normal_(layer.weight, generator=generator)
            nn.init.zeros_(layer.bias)
            return layer

        widths = [784] + [UNITS] * (depth - 1)
        if bridge_to is not None:
            widths[bridge_to - 1] += 784
        self.layers = nn.ModuleList(
            nn.Sequential(linear(width, UNITS), nn.LeakyReLU(SLOPE)) for width in widths
        )
        guided = range(guide_every, depth, guide_every) if guide_every else []
        self.guides = nn.ModuleDict({str(at): linear(UNITS, 10) for at in guided})
        self.logits = linear(UNITS, 10)

    def hidden(self, x: Tensor) -> Iterator[Tensor]:
        """Yield the flat input `(n, 784)`, then the output of every layer `(n, 128)`."""
        x = h = x.flatten(1)
        yield x
        for at, layer in enumerate(self.layers, start=1):
            h = layer(torch.cat([h, x], dim=1) if at == self.bridge_to else h)
            yield h

    def classifiers(self, x: Tensor) -> list[Tensor]:
        """Return the logits `(n, 10)` of every auxiliary classifier and, last, of the network."""
        guides = []
        for at, h in enumerate(self.hidden(x)):
            if str(at) in self.guides:
                guides.append(self.guides[str(at)](h))
        return [*guides, self.logits(h)]

    def forward(self, x: Tensor) -> Tensor:
        """Return the network's logits `(n, 10)`."""
        return self.classifiers(x)[-1]


def train(
    model: DeepMLP,
    images: np.ndarray,
    labels: np.ndarray,
    steps: int,
    *,
    seed: int = 0,
    callback: Callable[[int], None] | None = None,
) -> None:
    """Train the model in place on the sum of all classifiers' cross-entropies.

    Args:
        images: uint8, `(n, 28, 28)`.
        labels: integers 0 to 9, `(n,)`.
        steps: number of minibatches.
        seed: of the shuffles, one for each epoch. The global random state is not changed.
        callback: called with the number of steps taken, first with 0.
    """
    x, y = normalise(images), torch.from_numpy(labels.astype(np.int64))
    optimizer = torch.optim.Adam(model.parameters(), lr=RATE)
    shuffle = torch.Generator().manual_seed(seed)
    rows: list[Tensor] = []
    if callback is not None:
        callback(0)
    for step in tqdm(range(steps), disable=None):  # None shows the bar on a terminal only
        if not rows:
            rows = list(torch.randperm(len(y), generator=shuffle).split(BATCH))
        batch = rows.pop()
        loss = sum(cross_entropy(z, y[batch]) for z in model.classifiers(x[batch]))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        if callback is not None:
            callback(step + 1)


def load_or_train(
    directory: Path,
    model: DeepMLP,
    images: np.ndarray,
    labels: np.ndarray,
    at: Sequence[int],
    seed: int = 0,
) -> dict[int, Path]:
    """Return the checkpoint files of one run by step; train and write them if any is missing.

    Each is a safetensors file `step-000500.safetensors` with the settings of its run in it. It is
    written completely or not at all. Training starts from `model` as it is.

    Raises:
        ValueError: a file in the directory is of another run. The file is not touched.
    """
    start = b"".join(v.numpy().tobytes() for v in model.state_dict().values())
    data = zlib.crc32(labels.astype(np.int64).tobytes(), zlib.crc32(images.tobytes()))
    settings = {"crc32": zlib.crc32(start, data), "rate": RATE, "batch": BATCH, "seed": seed}
    run = json.dumps({**settings, "guides": model.guide_every, "bridge": model.bridge_to})
    directory.mkdir(parents=True, exist_ok=True)
    paths = {step: directory / f"step-{step:06d}.safetensors" for step in sorted(at)}
    for path in filter(Path.exists, paths.values()):
        with safe_open(path, framework="pt") as file:
            saved = (file.metadata() or {}).get("run")
        if saved != run:
            raise ValueError(f"{path}: expected run {run}, found {saved}; delete it to retrain")

    def save(step: int) -> None:
        if step in paths:
            temporary = paths[step].with_suffix(f".{os.getpid()}.tmp")
            save_file(model.state_dict(), temporary, {"run": run})
            os.replace(temporary, paths[step])

    if not all(path.exists() for path in paths.values()):
        train(model, images, labels, max(paths), seed=seed, callback=save)
    return paths
