"""The paper's figure 3: probes on an untrained 32-layer network, certified optimum and RMSProp.

    python examples/reproduce_figure3.py [--quick] [--large] [--out out]

There are 100 data sets, X ~ N(0, I_128) and y = sign(x.w), each with an untrained network of its
own: 32 layers of 128 units, LeakyReLU(0.5), glorot_normal, zero biases. The input and every layer
are probed, and the error is measured on 10 000 new rows. The paper does not state the number of
rows, the learning rate or the steps. Here there are 1 000 and 10 000 rows (with `--large` also
100 000, on 20 data sets). RMSProp starts from zero and takes 2 000 minibatches of 100 at rate 1e-3,
on the first 25 data sets only, because it takes far longer.

The optimum should be that without a penalty, so `l2` is only 1e-8 of the layer's feature variance.
Its effect is printed: the penalty at the optimum, and the change of error at a hundred times `l2`.
"""

from __future__ import annotations

import argparse
import time
from dataclasses import dataclass, field
from pathlib import Path

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import numpy as np
import torch
from torch.nn.functional import cross_entropy, leaky_relu

import convexprobe as cxp

LAYERS, UNITS, TEST_ROWS = 32, 128, 10_000
L2 = 1e-8  # in units of the layer's mean feature variance
RATE, BATCH, RMSPROP_SETS = 1e-3, 100, 25
SHOWN = (0, 1, 2, 4, 8, 16, 24, 32)


def toy(seed: int, rows: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Make an untrained network's activations `(33, rows, 128)` and labels `(rows,)`, 0 or 1."""
    generator = torch.Generator().manual_seed(seed)

    def normal(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=generator)

    direction = normal(UNITS)
    weights = normal(LAYERS, UNITS, UNITS) * (2 / (UNITS + UNITS)) ** 0.5  # glorot_normal
    out = torch.empty(1 + LAYERS, rows, UNITS)
    out[0] = normal(rows, UNITS)
    for layer, w in enumerate(weights):
        out[layer + 1] = leaky_relu(out[layer] @ w, 0.5)
    return out, (out[0] @ direction > 0).long()


def optimum(x: torch.Tensor, y: torch.Tensor, relative_l2: float) -> list[cxp.Probe]:
    """Fit a certified probe to every layer of `x` `(33, n, 128)`."""
    return [
        cxp.fit_probes(
            h, y.numpy(), l2=relative_l2 * float(np.var(h, axis=0).mean()), progress=False
        )["activations"]
        for h in x.numpy()
    ]


def rmsprop(x: torch.Tensor, y: torch.Tensor, steps: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Fit every layer's probe by RMSProp; return weights `(33, 2, 128)` and biases `(33, 1, 2)`.

    RMSProp treats each parameter by itself, so one optimiser for all layers equals one for each.
    """
    w = torch.zeros(len(x), 2, UNITS, requires_grad=True)
    b = torch.zeros(len(x), 1, 2, requires_grad=True)
    optimizer = torch.optim.RMSprop([w, b], lr=RATE, alpha=0.9)
    shuffle = torch.Generator().manual_seed(0)
    order: list[torch.Tensor] = []
    for _ in range(steps):
        if not order:
            order = list(torch.randperm(len(y), generator=shuffle).split(BATCH))
        rows = order.pop()
        z = torch.bmm(x[:, rows], w.mT) + b
        loss = cross_entropy(z.flatten(0, 1), y[rows].repeat(len(x)), reduction="sum") / len(rows)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return w.detach(), b.detach()


def scores(
    x: torch.Tensor, y: torch.Tensor, w: torch.Tensor, b: torch.Tensor
) -> tuple[np.ndarray, np.ndarray]:
    """Return the error (a fraction) and the loss (nats) of every layer's probe, `(33,)` each."""
    z = torch.bmm(x, w.mT) + b
    loss = cross_entropy(z.mT, y.expand(len(x), -1), reduction="none").mean(1)
    return (z.argmax(2) != y).float().mean(1).numpy(), loss.numpy()


@dataclass
class Curves:
    """Results at one number of rows: lists with an array `(33,)` for each data set.

    `rmsprop` and `excess` only have the first `RMSPROP_SETS` data sets.
    """

    optimum: list[np.ndarray] = field(default_factory=list)  # test error
    rmsprop: list[np.ndarray] = field(default_factory=list)
    train: list[np.ndarray] = field(default_factory=list)  # the optimum's training error
    excess: list[np.ndarray] = field(default_factory=list)  # RMSProp's loss above a lower bound
    penalty: list[np.ndarray] = field(default_factory=list)  # the optimum's, nats
    passes: list[np.ndarray] = field(default_factory=list)
    deepest: list[float] = field(default_factory=list)  # root mean square of layer 32
    certified: int = 0
    seconds: dict[str, float] = field(default_factory=lambda: {"optimum": 0.0, "rmsprop": 0.0})

    def add(self, seed: int, rows: int, steps: int) -> None:
        """Add one data set: make its network, fit both kinds of probes, test them on new rows."""
        started = time.process_time()
        x, y = toy(seed, rows + TEST_ROWS)
        (fit, test), (truth, held) = x.split([rows, TEST_ROWS], 1), y.split([rows, TEST_ROWS])
        probes = optimum(fit, truth, L2)
        w = torch.stack([torch.from_numpy(p.weights) for p in probes])
        b = torch.stack([torch.from_numpy(p.bias)[None] for p in probes])
        self.optimum.append(scores(test, held, w, b)[0])
        self.seconds["optimum"] += time.process_time() - started
        self.train.append(np.array([p.train_error for p in probes]))
        self.penalty.append(np.array([p.objective - p.loss for p in probes]))
        self.passes.append(np.array([p.passes for p in probes]))
        self.certified += sum(p.status is cxp.Status.CERTIFIED for p in probes)
        self.deepest.append(float(fit[-1].square().mean().sqrt()))

        if seed >= RMSPROP_SETS:
            return
        started = time.process_time()
        w, b = rmsprop(fit, truth, steps)
        self.rmsprop.append(scores(test, held, w, b)[0])
        self.seconds["rmsprop"] += time.process_time() - started
        self.excess.append(scores(fit, truth, w, b)[1] - np.array([p.loss for p in probes]))


def report(rows: int, curves: Curves) -> None:
    """Print the numbers of one panel, and what the paper states."""
    few = len(curves.rmsprop)
    fitted = f"{len(curves.optimum)} data sets x {1 + LAYERS} probes, {curves.certified} certified"
    print(f"\n{rows} rows, {fitted}; RMSProp on {few} of the data sets")
    print("  layer                    " + "".join(f"{at:8d}" for at in SHOWN))

    def line(name: str, values: np.ndarray, form: str = "8.3f") -> None:
        print(f"  {name:25s}" + "".join(f"{v:{form}}" for v in values[list(SHOWN)]))

    line("optimum, test error", np.mean(curves.optimum, 0))
    line("  spread over data sets", np.std(curves.optimum, 0))
    line("optimum, training error", np.mean(curves.train, 0))
    line("RMSProp, test error", np.mean(curves.rmsprop, 0))
    line("  spread over data sets", np.std(curves.rmsprop, 0))
    line("RMSProp, excess loss", np.mean(curves.excess, 0), "8.4f")
    line("penalty at the optimum", np.mean(curves.penalty, 0), "8.0e")
    passes, rms = np.concatenate(curves.passes), np.mean(curves.deepest)
    optimum, rmsprop = (f"{curves.seconds[name]:.0f}" for name in ("optimum", "rmsprop"))
    best, usual = np.mean(curves.optimum, 0)[-1], np.mean(curves.rmsprop, 0)[-1]
    print(f"  {passes.min():.0f} to {passes.max():.0f} passes a probe, mean {passes.mean():.0f}")
    print(f"  CPU seconds: optimum {optimum}, with network and test; RMSProp {rmsprop}")
    print("  the paper: zero error at the input, a climb towards 0.50, no underflow "
          f"(here the root mean square of layer 32 is {rms:.0e})")  # fmt: skip
    print(f"  layer 32, error below 0.5: optimum by {0.5 - best:.3f}, RMSProp by {0.5 - usual:.3f}")


def draw(panels: dict[int, Curves], path: Path) -> None:
    """Draw a panel for each number of rows: means, and standard deviations over data sets."""
    size = (4.6 * len(panels), 3.8)
    figure, axes = plt.subplots(1, len(panels), figsize=size, sharey=True, squeeze=False,
                                layout="constrained")  # fmt: skip
    depth = np.arange(1 + LAYERS)
    for ax, (rows, curves) in zip(axes[0], panels.items(), strict=True):
        for name, errors, colour in (
            ("RMSProp, rate 1e-3", curves.rmsprop, "tab:orange"),
            ("certified optimum", curves.optimum, "tab:blue"),
        ):
            mean, spread = np.mean(errors, 0), np.std(errors, 0)
            ax.fill_between(depth, mean - spread, mean + spread, color=colour, alpha=0.2, lw=0)
            ax.plot(depth, mean, ".-", color=colour, ms=4, lw=1.2, label=name)
        ax.axhline(0.5, color="black", ls=":", lw=1)
        ax.set(
            title=f"{rows:,} rows".replace(",", " "), xlabel="layer (0: the data)", ylim=(0, 0.53)
        )
        ax.grid(axis="y", alpha=0.3)
    axes[0, 0].set_ylabel("test error of the probe")
    axes[0, -1].legend(loc="lower right", frameon=False)
    figure.savefig(path, dpi=110)


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="two data sets of 1 000 rows")
    parser.add_argument("--large", action="store_true", help="100 000 rows too, on 20 data sets")
    parser.add_argument("--out", type=Path, default=Path("out"))
    settings = parser.parse_args(argv)
    settings.out.mkdir(parents=True, exist_ok=True)
    sets = {1_000: 2} if settings.quick else {1_000: 100, 10_000: 100}
    if settings.large:
        sets[100_000] = 20
    steps = 200 if settings.quick else 2_000

    panels = {rows: Curves() for rows in sets}
    for rows, count in sets.items():
        for seed in range(count):
            panels[rows].add(seed, rows, steps)
        report(rows, panels[rows])

    few = min(sets)
    x, y = toy(0, few)
    light, heavy = optimum(x, y, L2), optimum(x, y, 100 * L2)
    moved = max(
        abs(b.train_error - a.train_error) for a, b in zip(light[1:], heavy[1:], strict=True)
    )
    print(f"\na hundred times the penalty, on one data set of {few} rows: the training error of"
          f"\nlayers 1 to {LAYERS} changes by at most {moved:.4f}")  # fmt: skip
    path = settings.out / ("figure3_quick.png" if settings.quick else "figure3.png")
    draw(panels, path)
    certified = all(curves.certified == np.size(curves.optimum) for curves in panels.values())
    print(f"every probe certified: {certified}\nwrote {path}")


if __name__ == "__main__":
    main()
