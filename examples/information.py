"""The paper's section 2: layers lose information and gain usable information.

    python examples/information.py [--quick] [--out out]

Proposition 1: H(Y | A1) <= H(Y | A2) <= ... for the layers A1, A2, ... of a network, so that no
layer knows more of Y than its input does. Here all these are computed exactly. X is uniform on the
4 096 vectors of 12 signs. Y is one of four classes: two parities, of three signs each. With
probability 1/16 it is noise instead, or 1/2 where three other signs are all positive; the last
three signs do not matter. The network rounds its activations to multiples of 1/4 and its weights to
multiples of 1/64. So every layer is a discrete variable, and float64 sums are exact: activations
are equal if and only if their bits are.

Usable information (Xu et al. 2020) is H(Y) less the lowest cross-entropy of a family of predictors,
in bits. Here the family is softmax(W h + b) with ||W|| at most that of the fitted probe. No member
has a larger `l2/2 ||W||^2` than the probe, so the probe's gap bounds how much better one can be:

    H(Y) - loss  <=  usable information  <=  H(Y) - loss + gap.

The probe is fitted to the distribution itself: one row of weight P(x, y) for each x and y.
"""

from __future__ import annotations

import argparse
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import numpy as np
import torch
from torch import Tensor, nn

import convexprobe as cxp

BITS, CLASSES = 12, 4
WIDTHS = (24, 24, 16, 12, 8, 4)


class Rounded(nn.Module):
    """A linear layer and a ReLU clipped at 4, both rounded; gradients ignore the rounding."""

    def __init__(self, width: int, out: int, generator: torch.Generator) -> None:
        super().__init__()
        weight = torch.randn(out, width, generator=generator, dtype=torch.float64)
        self.weight = nn.Parameter(weight * (2 / width) ** 0.5)
        self.bias = nn.Parameter(torch.zeros(out, dtype=torch.float64))

    def forward(self, x: Tensor) -> Tensor:
        z = x @ rounded(self.weight, 64).mT + rounded(self.bias, 64)
        return rounded(z.clamp(0, 4), 4)


def rounded(x: Tensor, unit: int) -> Tensor:
    """Round to the nearest multiple of `1/unit`; the gradient is that of the identity."""
    return x + (torch.round(x * unit) / unit - x).detach()


def network(seed: int = 0) -> nn.Sequential:
    """Make a float64 network of six rounded layers and a classifier of four classes."""
    generator = torch.Generator().manual_seed(seed)
    model = nn.Sequential()
    model.add_module("input", nn.Identity())
    for at, (width, out) in enumerate(zip((BITS, *WIDTHS), WIDTHS, strict=False), start=1):
        model.add_module(f"layer {at}", Rounded(width, out, generator))
    classifier = nn.utils.skip_init(nn.Linear, WIDTHS[-1], CLASSES, dtype=torch.float64)
    nn.init.normal_(classifier.weight, std=0.5, generator=generator)
    nn.init.zeros_(classifier.bias)
    model.add_module("logits", classifier)
    return model


def distribution() -> tuple[Tensor, Tensor]:
    """Return all inputs `(4096, 12)`, equally likely, and `P(y | x)` `(4096, 4)`."""
    x = (torch.arange(2**BITS)[:, None] >> torch.arange(BITS)) & 1
    truth = 2 * (x[:, 0:3].sum(1) % 2) + x[:, 3:6].sum(1) % 2
    noise = torch.where(x[:, 6:9].all(1), 1 / 2, 1 / 16).double()
    clean = nn.functional.one_hot(truth, CLASSES)
    return x.double() * 2 - 1, (1 - noise)[:, None] * clean + noise[:, None] / CLASSES


def train(model: nn.Module, x: Tensor, p: Tensor, steps: int) -> None:
    """Train with Adam on the expected cross-entropy over all inputs."""
    optimizer = torch.optim.Adam(model.parameters(), lr=5e-3)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    for _ in range(steps):
        loss = nn.functional.cross_entropy(model(x), p)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()


def entropy(p: np.ndarray) -> np.ndarray:
    """Return the entropies, in bits, of the distributions along the last axis."""
    return -np.sum(p * np.log2(np.where(p > 0, p, 1.0)), axis=-1)


def conditional_entropy(layer: np.ndarray, p: np.ndarray) -> tuple[float, int]:
    """Return `H(Y | A)` in bits and how many different values A has.

    `layer` holds A at every input, `p` holds `P(y | x)`.
    """
    _, group = np.unique(layer, axis=0, return_inverse=True)
    counts = np.bincount(group)
    joint = np.stack([np.bincount(group, weights=column) for column in p.T], axis=1)
    return float(entropy(joint / counts[:, None]) @ counts / len(p)), len(counts)


@dataclass(frozen=True)
class Layer:
    """What is known about one layer A.

    Attributes:
        conditional: `H(Y | A)`, bits.
        usable: `H(Y) - loss` of the probe, bits.
        gap: how much more the usable information may be, bits.
        values: how many different values the layer has over all inputs.
    """

    conditional: float
    usable: float
    gap: float
    values: int


def measure(model: nn.Module, x: Tensor, p: Tensor) -> dict[str, Layer]:
    """Measure both kinds of information in every layer."""
    points = ["input", *(f"layer {at}" for at in range(1, 1 + len(WIDTHS)))]
    activations, _ = cxp.extract(model, [x], points, progress=False)
    label_entropy = float(entropy(p.mean(0).numpy()))
    truth = np.tile(np.arange(CLASSES), len(x))
    layers = {}
    for name, h in activations.items():
        unit = float(h.var(0).mean())
        rows, weights = h.repeat_interleave(CLASSES, 0), p.flatten().numpy()
        l2 = 1e-6 * (unit if unit > 0 else 1.0)
        probes = cxp.fit_probes(rows, truth, sample_weight=weights, l2=l2, progress=False)
        probe = probes["activations"]
        conditional, values = conditional_entropy(h.numpy(), p.numpy())
        usable, gap = label_entropy - probe.loss / np.log(2), probe.gap / np.log(2)
        layers[name] = Layer(conditional, usable, gap, values)
    return layers


def draw(panels: dict[str, dict[str, Layer]], label_entropy: float, path: Path) -> None:
    """Draw a panel for each network: information above, usable information and its gap below."""
    figure, axes = plt.subplots(1, 2, figsize=(9.2, 3.7), sharey=True, layout="constrained")
    for ax, (title, layers) in zip(axes, panels.items(), strict=True):
        shannon = [label_entropy - layer.conditional for layer in layers.values()]
        usable = [layer.usable for layer in layers.values()]
        at = np.arange(len(layers))
        ax.fill_between(at, usable, shannon, color="tab:gray", alpha=0.12, lw=0)
        ax.plot(at, shannon, "s-", color="tab:gray", ms=4, label="information, H(Y) - H(Y | layer)")
        bars = np.array([[0.0, layer.gap] for layer in layers.values()]).T
        ax.errorbar(at, usable, bars, fmt="o-", color="tab:blue", ms=4, capsize=3,
                    label="usable by a linear classifier, with its gap")  # fmt: skip
        ax.set(title=title, ylim=(-0.05, 1.12 * max(shannon)))
        ax.set_xticks(at, list(layers), rotation=30, ha="right", rotation_mode="anchor")
        ax.grid(axis="y", alpha=0.3)
    axes[0].set_ylabel("bits about the label")
    axes[0].legend(frameon=False, fontsize=9, loc="center left")
    figure.savefig(path, dpi=110)


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="300 steps of training, not 1 000")
    parser.add_argument("--out", type=Path, default=Path("out"))
    settings = parser.parse_args(argv)
    settings.out.mkdir(parents=True, exist_ok=True)
    x, p = distribution()
    label_entropy = float(entropy(p.mean(0).numpy()))
    model, steps = network(), 300 if settings.quick else 1_000
    panels, ordered, below = {}, True, True
    for title in ("untrained", f"trained, {steps} steps"):
        if panels:
            train(model, x, p, steps)
        layers = panels[title] = measure(model, x, p)
        print(f"\n{title}: H(Y) = {label_entropy:.4f} bits")
        print("  layer    values   H(Y|layer)   information   usable + gap, in bits")
        for name, layer in layers.items():
            shannon = label_entropy - layer.conditional
            print(f"  {name:8s} {layer.values:6d} {layer.conditional:12.4f} {shannon:13.4f} "
                  f"{layer.usable:10.4f} + {layer.gap:.4f}")  # fmt: skip
            below &= layer.usable <= shannon + 1e-9
        conditional = [layer.conditional for layer in layers.values()]
        ordered &= all(a <= b + 1e-12 for a, b in pairwise(conditional))
        usable = [layer.usable for layer in layers.values()]
        rises = sum(b > a for a, b in pairwise(usable))
        print(f"  usable information rises at {rises} of {len(usable) - 1} layers, "
              f"from {usable[0]:.4f} to {usable[-1]:.4f} bits")  # fmt: skip
    print(f"\nH(Y | layer) never falls with depth, as Proposition 1 says: {ordered}; "
          f"usable information is never above information: {below}")  # fmt: skip
    path = settings.out / ("information_quick.png" if settings.quick else "information.png")
    draw(panels, label_entropy, path)
    print(f"wrote {path}")


if __name__ == "__main__":
    main()
