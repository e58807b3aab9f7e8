"""What figures 7 and 8 share: 129 probes at every checkpoint of one run, frames and a movie.

The figures use 50 000 rows, with the activations of all layers in memory, 9 GB; a movie uses 5 000
rows and every fourth layer. At every checkpoint a layer is centred by its mean over the rows and
divided by the root of its mean feature variance, then probed. The probe has a free bias, so it
solves the same problem as on the layer itself, with `l2` in units of that variance. This matters
for two reasons. The scale runs from 1e-14 (untrained, layer 128) to 1 (trained), so that no fixed
`l2` means the same everywhere. And where a mean is 1e7 times the deviation, float32 products lose
the deviation unless the mean is subtracted first.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import numpy as np
import torch
from deep_mlp import BATCH, RATE, UNITS, DeepMLP, load_or_train
from mnist_convnet import normalise
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

import convexprobe as cxp

# l2 in units of a layer's mean feature variance, and the step between the layers that are probed.
# A movie takes a larger l2: fewer rows need it, and over 60 frames are solved faster with it.
STILL, MOVIE = (1e-5, 1), (1e-3, 4)


class Standard(nn.Module):
    """Subtracts a mean `(d,)` from rows `(n, d)`, and divides by one scale for all features."""

    mean: Tensor
    scale: Tensor

    def __init__(self, width: int) -> None:
        super().__init__()
        self.register_buffer("mean", torch.zeros(width))
        self.register_buffer("scale", torch.ones(()))

    def measure(self, x: Tensor) -> None:
        """Set the mean, and the scale to the root of the mean feature variance of the rows."""
        self.mean.copy_(x.mean(0, dtype=torch.float64))
        scale = (x - self.mean).square().mean(dtype=torch.float64).sqrt()
        self.scale.copy_(torch.where(scale > 0, scale, 1.0))

    def forward(self, x: Tensor) -> Tensor:
        """`(x - mean) / scale`."""
        return (x - self.mean) / self.scale


class Probed(nn.Module):
    """A network and a `Standard` for layers 0 (the input), `every`, `2 every`, ... to probe.

    The `Standard`s read the layers and do not change what the network computes.
    """

    def __init__(self, model: DeepMLP, every: int = 1) -> None:
        super().__init__()
        self.model = model
        self.points = [str(at) for at in range(0, len(model.layers) + 1, every)]
        for point in self.points:
            self.add_module(point, Standard(784 if point == "0" else UNITS))

    def layers_of(self, x: Tensor) -> Iterator[tuple[Standard, Tensor]]:
        """Yield each `Standard` with its layer's activations `(n, d)`."""
        for at, h in enumerate(self.model.hidden(x)):
            if str(at) in self.points:
                standard = self.get_submodule(str(at))
                assert isinstance(standard, Standard)
                yield standard, h

    def forward(self, x: Tensor) -> None:
        """Run each `Standard` on its layer, for `extract` to read its output."""
        for standard, h in self.layers_of(x):
            standard(h)

    @torch.no_grad()
    def at_checkpoints(
        self, paths: Mapping[int, Path], x: Tensor
    ) -> Iterator[tuple[int, dict[str, Tensor]]]:
        """Yield the step and the state of each checkpoint, its `Standard`s measured on `x`."""
        for step, path in paths.items():
            self.model.load_state_dict(load_file(path))
            for standard, h in self.layers_of(x):
                standard.measure(h)
            yield step, self.state_dict()


@dataclass(frozen=True)
class Figure:
    """What differs between figure 7 and figure 8.

    Attributes:
        name: prefix of the names of files.
        build: makes the network, given its number of layers.
        frames: numbers of minibatches after which the paper shows the errors, from 0.
        marks: returns the layers to mark, given the number of layers.
        paper: what the paper says, in lines.
        check: takes the errors `(depth + 1,)` of every frame; returns claims and whether they hold.
        without: makes the network without what the figure is about, to train for comparison.
    """

    name: str
    build: Callable[[int], DeepMLP]
    frames: tuple[int, ...]
    marks: Callable[[int], list[int]]
    paper: tuple[str, ...]
    check: Callable[[list[np.ndarray]], dict[str, bool]]
    without: Callable[[int], DeepMLP] | None = None


def rows_of(quick: bool) -> tuple[np.ndarray, np.ndarray]:
    """Load 50 000 images of MNIST, or, to avoid a download, scikit-learn's digits enlarged."""
    if not quick:
        images, labels = cxp.mnist("train")
        return images[:50_000], labels[:50_000]
    from sklearn.datasets import load_digits

    small, labels = load_digits(return_X_y=True)
    large = np.kron(small.reshape(-1, 8, 8) * 15, np.ones((3, 3)))
    return np.pad(large, ((0, 0), (2, 2), (2, 2))).astype(np.uint8)[:1_000], labels[:1_000]


def probe(
    model: DeepMLP,
    paths: Mapping[int, Path],
    images: np.ndarray,
    labels: np.ndarray,
    out: Path,
    quality: tuple[float, int] = STILL,
) -> cxp.ProbeHistory:
    """Probe the input and the layers at every checkpoint; results are kept in `out`."""
    l2, every = quality
    probed, x = Probed(model, every), normalise(images)
    y, states = torch.from_numpy(labels.astype(np.int64)), probed.at_checkpoints(paths, x)
    return cxp.probe_checkpoints(probed, states, x, y, layers=probed.points, l2=l2, out=out)


def errors(history: cxp.ProbeHistory, step: int) -> np.ndarray:
    """Return the probes' training errors `(depth + 1,)` at one step, as fractions."""
    return np.array([probe.train_error for probe in history[step].values()])


@torch.no_grad()
def own_loss(model: DeepMLP, path: Path, images: np.ndarray, labels: np.ndarray) -> str:
    """Return a text: the network's own loss and error on the first 5 000 rows."""
    model.load_state_dict(load_file(path))
    z, y = model(normalise(images[:5_000])), torch.from_numpy(labels[:5_000].astype(np.int64))
    wrong = float((z.argmax(1) != y).double().mean())
    return f"loss {float(cross_entropy(z, y)):.3f} nats, error {100 * wrong:.1f} %"


def draw(frames: Mapping[int, np.ndarray], marks: list[int], path: Path) -> None:
    """Draw one panel for each frame: the errors by layer."""
    figure, axes = plt.subplots(
        1, len(frames), figsize=(11, 3.3), sharey=True, layout="constrained"
    )
    for ax, (step, error) in zip(axes, frames.items(), strict=True):
        for mark in marks:
            ax.axvline(mark, color="tab:orange", lw=0.8, alpha=0.6)
        ax.plot(np.arange(len(error)), 100 * error, ".-", ms=3.5, lw=1)
        ax.set(title=f"{step} minibatches", xlabel="layer (0: the image)")
        ax.grid(axis="y", alpha=0.3)
    highest = max(float(error.max()) for error in frames.values())
    axes[0].set(ylabel="training error of the probe (%)", ylim=(0, 108 * highest + 1))
    figure.savefig(path, dpi=100)


def run(figure: Figure, argv: list[str] | None) -> None:
    """Run the command line of a figure."""
    parser = argparse.ArgumentParser(description=f"The paper's {figure.name}")
    parser.add_argument("--quick", action="store_true", help="8 layers, scikit-learn's digits")
    parser.add_argument(
        "--movie", action="store_true", help="also make a movie of over 60 checkpoints"
    )
    parser.add_argument("--out", type=Path, default=Path("out"))
    settings = parser.parse_args(argv)
    name = figure.name + ("_quick" if settings.quick else "")
    depth, at = (8, (0, 20, 60)) if settings.quick else (128, figure.frames)
    dense = [round(at[-1] * (i / 64) ** 2) for i in range(65)]  # more checkpoints early
    images, labels = rows_of(settings.quick)
    model = figure.build(depth)
    started = time.process_time()
    paths = load_or_train(
        settings.out / f"{name}_checkpoints", model, images, labels, {*dense, *at}
    )
    print(f"{depth} layers, {len(labels)} rows, Adam at {RATE:g}, minibatches of {BATCH}: trained "
          f"or read in {time.process_time() - started:.0f} CPU seconds")  # fmt: skip
    started = time.process_time()
    kept = settings.out / f"{name}_probes"
    history = probe(figure.build(depth), {s: paths[s] for s in at}, images, labels, kept)
    spent = time.process_time() - started
    print(f"{history}\nextracted and probed in {spent:.0f} CPU seconds")
    frames = {step: errors(history, step) for step in at}
    shown = sorted({0, 1, *range(depth // 8, depth + 1, depth // 8)})
    print("training error, %, at layer\n  step  " + "".join(f"{layer:6d}" for layer in shown))
    for step, error in frames.items():
        print(f"  {step:6d}" + "".join(f"{100 * error[layer]:6.1f}" for layer in shown))
    print("the paper:", *figure.paper, sep="\n  ")
    if not settings.quick:  # 8 layers train too easily to show what the paper describes
        for words, seen in figure.check(list(frames.values())).items():
            print(f"  {'seen' if seen else 'NOT SEEN'}: {words}")
    end = at[-1]
    print(f"the network after {end}: {own_loss(model, paths[end], images, labels)}")
    if figure.without is not None:
        model = figure.without(depth)
        alone = load_or_train(settings.out / f"{name}_without", model, images, labels, [end])
        print(f"without the auxiliary losses: {own_loss(model, alone[end], images, labels)}")
    path = settings.out / f"{name}.png"
    draw(frames, figure.marks(depth), path)
    print(f"wrote {path}")
    if settings.movie:
        few = slice(0, 5_000)
        some = dict(list(paths.items())[:: 12 if settings.quick else 1])
        kept = settings.out / f"{name}_movie_probes"
        history = probe(figure.build(depth), some, images[few], labels[few], kept, MOVIE)
        path = settings.out / f"{name}.gif"
        history.animate(path)
        print(f"{history}\nwrote {path}: {len(history)} frames, every fourth layer, "
              f"{len(labels[few])} rows")  # fmt: skip
