"""TensorFlow's 2015-16 MNIST tutorial network (`models/image/mnist/convolutional.py`), in torch.

This is the network of the paper's figure 5, with the tutorial's initialisation, loss, optimiser and
order of examples. The tutorial's docstring announces a test error of 0.8 %.

    python examples/mnist_convnet.py --epochs 10 --cache mnist_convnet.pt
"""

from __future__ import annotations

import argparse
import os
import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.utils import skip_init
from tqdm import tqdm

from convexprobe.datasets.mnist import mnist

PROBE_POINTS: tuple[str, ...] = (
    "input",
    "conv1_preact",
    "conv1_postact",
    "conv1_postpool",
    "conv2_preact",
    "conv2_postact",
    "conv2_postpool",
    "fc1_preact",
    "fc1_postact",
    "logits",
)
VALIDATION_ROWS = 5_000  # the first training images, which the tutorial holds out
BATCH = 64


class ConvNet(nn.Module):
    """Two convolutions and two fully connected layers: `(n, 1, 28, 28)` in, logits `(n, 10)` out.

    Every probe point is a module of that name, `input` included, for hooks to read. The tutorial
    flattens in the order height, width, channel, and torch in the order channel, height, width.
    This only permutes the 3 136 features, which no probe is sensitive to. `seed` sets the weights.
    """

    def __init__(self, seed: int = 0) -> None:
        super().__init__()
        # skip_init, because torch's own initialisation draws from the global generator
        self.input = nn.Identity()
        self.conv1_preact = skip_init(nn.Conv2d, 1, 32, 5, padding=2)
        self.conv1_postact = nn.ReLU()
        self.conv1_postpool = nn.MaxPool2d(2)
        self.conv2_preact = skip_init(nn.Conv2d, 32, 64, 5, padding=2)
        self.conv2_postact = nn.ReLU()
        self.conv2_postpool = nn.MaxPool2d(2)
        self.fc1_preact = skip_init(nn.Linear, 64 * 7 * 7, 512)
        self.fc1_postact = nn.ReLU()
        self.dropout = nn.Dropout(0.5)
        self.logits = skip_init(nn.Linear, 512, 10)
        generator = torch.Generator().manual_seed(seed)
        for layer in (self.conv1_preact, self.conv2_preact, self.fc1_preact, self.logits):
            # TensorFlow's truncated_normal redraws what lies beyond two standard deviations
            nn.init.trunc_normal_(layer.weight, std=0.1, a=-0.2, b=0.2, generator=generator)
            nn.init.constant_(layer.bias, 0.0 if layer is self.conv1_preact else 0.1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.conv1_postpool(self.conv1_postact(self.conv1_preact(self.input(x))))
        x = self.conv2_postpool(self.conv2_postact(self.conv2_preact(x)))
        x = self.fc1_postact(self.fc1_preact(x.flatten(1)))
        return self.logits(self.dropout(x))


def normalise(images: np.ndarray) -> Tensor:
    """Map uint8 `(n, 28, 28)` to `(x - 127.5) / 255`, float32 `(n, 1, 28, 28)` in [-0.5, 0.5]."""
    if images.dtype != np.uint8 or images.shape[1:] != (28, 28):
        raise ValueError(f"images: expected uint8 (n, 28, 28), found {images.dtype} {images.shape}")
    return torch.from_numpy((images.astype(np.float32) - 127.5) / 255)[:, None]


def schedule(step: int, rows: int) -> tuple[float, int]:
    """Return the learning rate and the first row of a step, counted from 0; nothing is shuffled."""
    return 0.01 * 0.95 ** (step * BATCH // rows), step * BATCH % (rows - BATCH)


def train(
    model: ConvNet,
    images: np.ndarray,
    labels: np.ndarray,
    *,
    epochs: float = 10,
    seed: int = 0,
    callback: Callable[[int, float], None] | None = None,
) -> None:
    """Train `model` in place as the tutorial does, and leave it in evaluation mode.

    Args:
        images: uint8, `(n, 28, 28)`, n > 64; the tutorial takes all but the first 5 000.
        labels: integers 0 to 9, `(n,)`.
        epochs: passes over the rows, not always a whole number; 10 over 55 000 are 8 593 steps.
        seed: of the dropout. The global random states are not changed.
        callback: called after every step with the number of steps taken and the penalised loss
            (nats) before the last one. It may use the model, in any mode.

    Raises:
        ValueError: the images, the labels or the number of epochs are not as described.
    """
    rows = len(images)
    if rows <= BATCH or labels.shape != (rows,) or not np.isin(labels, np.arange(10)).all():
        expected = f"more than {BATCH} images, each with a label from 0 to 9"
        raise ValueError(f"expected {expected}; found {rows}, labels of shape {labels.shape}")
    if not 0 <= epochs < float("inf"):
        raise ValueError(f"epochs: expected a finite number >= 0, found {epochs}")
    fully_connected = [*model.fc1_preact.parameters(), *model.logits.parameters()]
    # torch's momentum, v = 0.9 v + g and w -= rate v, is also TensorFlow's
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01, momentum=0.9)
    device = model.logits.weight.device
    gpus = [device] if device.type == "cuda" else []
    # only this device's generator, because torch.manual_seed would reseed all devices
    default = torch.cuda.default_generators[device.index] if gpus else torch.default_generator
    dropout_seeds = torch.Generator().manual_seed(seed)
    for step in tqdm(range(int(epochs * rows) // BATCH), disable=None):  # None: terminal only
        optimizer.param_groups[0]["lr"], start = schedule(step, rows)
        x = normalise(images[start : start + BATCH]).to(device)
        y = torch.from_numpy(labels[start : start + BATCH].astype(np.int64)).to(device)
        model.train()
        # nn.Dropout can only draw from the global generator. Forking at every step, not once
        # around the loop, keeps the training and a callback's draws independent of each other.
        with torch.random.fork_rng(devices=gpus):
            default.manual_seed(int(torch.randint(2**62, (), generator=dropout_seeds)))
            loss = nn.functional.cross_entropy(model(x), y)
        loss = loss + 5e-4 * sum(p.square().sum() / 2 for p in fully_connected)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        if callback is not None:
            callback(step + 1, loss.item())
    model.eval()


@torch.no_grad()
def test_error(model: nn.Module, images: np.ndarray, labels: np.ndarray) -> float:
    """Return the fraction, 0 to 1, of the uint8 images `(n, 28, 28)` that are misclassified."""
    was_training, device = model.training, next(model.parameters()).device
    model.eval()
    blocks = (normalise(images[i : i + 1_000]).to(device) for i in range(0, len(images), 1_000))
    predicted = torch.cat([model(x).argmax(1).cpu() for x in blocks]).numpy()
    model.train(was_training)
    return float((predicted != labels).mean())


def load_or_train(
    path: Path, images: np.ndarray, labels: np.ndarray, epochs: float = 10, seed: int = 0
) -> ConvNet:
    """Read the trained network from the file `path`, or train it and write it there.

    It is returned in evaluation mode. `seed` sets the weights and the dropout; the rest is as in
    `train`.

    Raises:
        ValueError: the file holds a network of other settings or rows, or something else. It is
            not overwritten, because it may have taken long to make.
    """
    path = Path(path)
    crc32 = zlib.crc32(labels.astype(np.int64).tobytes(), zlib.crc32(images.tobytes()))
    settings = {"epochs": float(epochs), "seed": int(seed), "rows": len(images), "crc32": crc32}
    model = ConvNet(seed)
    if path.exists():
        try:
            saved = torch.load(path, map_location="cpu", weights_only=True)
            saved_settings, parameters = saved["settings"], saved["parameters"]
        except Exception as error:  # torch.load may raise anything for a foreign file
            raise ValueError(f"{path}: expected a file of load_or_train: {error}") from error
        if saved_settings != settings:
            expected = f"expected {settings}, found {saved_settings}"
            raise ValueError(f"{path}: {expected}; delete it to retrain")
        model.load_state_dict(parameters)
        return model.eval()
    train(model, images, labels, epochs=epochs, seed=seed)
    path.parent.mkdir(parents=True, exist_ok=True)
    # Written under another name first, so that a kill cannot leave half a file under `path`.
    temporary = path.with_name(f"{path.name}.{os.getpid()}.tmp")
    torch.save({"settings": settings, "parameters": model.state_dict()}, temporary)
    os.replace(temporary, path)
    return model


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--epochs", type=float, default=10)
    parser.add_argument("--cache", type=Path, default=Path("mnist_convnet.pt"))
    settings = parser.parse_args()
    images, labels = (rows[VALIDATION_ROWS:] for rows in mnist("train"))
    model = load_or_train(settings.cache, images, labels, settings.epochs)
    print(f"test error {100 * test_error(model, *mnist('test')):.2f} %")


if __name__ == "__main__":
    main()
