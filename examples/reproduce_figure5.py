"""The paper's figure 5: probes at ten points of the MNIST convnet, before and after training.

    python examples/reproduce_figure5.py [--quick] [--movie] [--out out]

Full feature maps are probed: 50 000 rows to fit, 10 000 to choose l2, and the 10 000 test images
for the error. Only one layer is in memory, at most 12 GB for 25 088 columns. l2 is chosen on the
validation rows from four values fitted to a tenth of the rows; a third of it is used on all rows.

Inequalities that must hold exactly are checked. An affine layer `h' = A h + c` cannot enlarge the
class of affine probes: a probe `W'` of h' is also a probe `W' A` of h with the same loss, so

    objective(h) - gap(h)  <=  F*(h)  <=  loss(h') + l2/2 ||W' A||^2.

Both sides are printed. From input to conv1_preact A is injective, so the same holds backwards with
its pseudo-inverse: a difference between these two layers comes from regularisation only.

`--movie` instead trains two epochs and probes the network 64 times meanwhile, more often early. It
takes 3 000 rows, 3 000 test images and 1 000 fixed random features of every map; l2 is chosen once.
"""

from __future__ import annotations

import argparse
import resource
import time
from collections.abc import Callable
from pathlib import Path

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import numpy as np
import torch
from mnist_convnet import (
    BATCH,
    PROBE_POINTS,
    VALIDATION_ROWS,
    ConvNet,
    load_or_train,
    normalise,
    test_error,
    train,
)
from torch.nn.functional import conv_transpose2d, cross_entropy

import convexprobe as cxp

PAPER = {"untrained": "8 % at the input, 2 % at the best random layers", "trained": "no numbers"}
SEARCH = (1e-4, 1e-3, 1e-2, 1e-1)  # in units of the mean feature variance


def batches(images: np.ndarray, labels: np.ndarray) -> list[tuple[torch.Tensor, torch.Tensor]]:
    """Split into batches of 500 normalised images with their labels."""
    x, y = normalise(images), torch.from_numpy(labels)
    return list(zip(x.split(500), y.split(500), strict=True))


def probe_layer(model: ConvNet, layer: str, fit: list, choose: list) -> cxp.ProbeSet:
    """Fit the certified probe of one layer, with l2 chosen on the validation rows."""
    x, y = cxp.extract(model, fit, layer, progress=False)
    validation = cxp.extract(model, choose, layer, progress=False)
    some = np.random.default_rng(0).permutation(len(y))[: max(500, len(y) // 10)]
    part = x[layer][some]
    unit = float(part.var(dim=0).mean())
    # To choose l2 a loose tolerance is enough, and lbfgs is the fastest solver where there are more
    # features than rows.
    first = cxp.fit_probes(
        {layer: part}, y[some], solver="lbfgs", l2=[s * unit for s in SEARCH],
        validation=validation, tol=1e-2, max_passes=100, progress=False,
    )  # fmt: skip
    del part
    # Ten times the rows need a smaller penalty: a third lies between the same and a tenth of it.
    return cxp.fit_probes(
        x, y, l2=first[layer].l2 / 3, validation=validation, warm_start=first, progress=False
    )


def probe_network(
    model: ConvNet, fit: list, choose: list, test: list
) -> tuple[cxp.ProbeSet, dict[str, float]]:
    """Fit and print the probes of all ten points; return them and their test errors."""
    probes, errors = cxp.ProbeSet({}), {}
    for layer in PROBE_POINTS:
        started = time.perf_counter()
        probes |= probe_layer(model, layer, fit, choose)
        scores = probes.evaluate(*cxp.extract(model, test, layer, progress=False))
        errors[layer], probe = scores[layer].error, probes[layer]
        print(
            f"  {layer:15s} test error {100 * errors[layer]:5.2f} %   l2 {probe.l2:.1e}   loss "
            f"{probe.loss:.4f}   gap {probe.gap:.1e}   {probe.passes:3.0f} passes   "
            f"{probe.status.name.lower()}   {time.perf_counter() - started:5.1f} s",
            flush=True,
        )
    return probes, errors


def oracles(model: ConvNet, probes: cxp.ProbeSet, fit: list) -> list[tuple[str, float, float]]:
    """Return each inequality's name, its certified lower bound, and the upper bound, in nats."""

    def weights(layer: str, *shape: int) -> torch.Tensor:
        return probes[layer].weights.reshape(10, *shape)

    def through(conv: torch.nn.Conv2d, w: torch.Tensor) -> torch.Tensor:
        return conv_transpose2d(w, conv.weight.detach(), padding=2)

    def bound(of: str, source: str, pulled: torch.Tensor) -> tuple[str, float, float]:
        probe = probes[of]
        upper = probes[source].loss + 0.5 * probe.l2 * float(pulled.square().sum())
        return f"F*({of}) <= pulled back from {source}", probe.objective - probe.gap, upper

    conv1, conv2, fc1, logits = (
        getattr(model, n) for n in ("conv1_preact", "conv2_preact", "fc1_preact", "logits")
    )
    # A as a matrix (25088, 784). Its pseudo-inverse turns a probe of the input into one of conv1.
    a = torch.nn.functional.conv2d(
        torch.eye(784).reshape(784, 1, 28, 28), conv1.weight.detach(), padding=2
    ).reshape(784, -1)
    forward = torch.linalg.solve((a @ a.T).double(), probes["input"].weights.double().T)
    out = [
        bound("input", "conv1_preact", through(conv1, weights("conv1_preact", 32, 28, 28))),
        bound("conv1_preact", "input", (forward.T.float() @ a)),
        bound(
            "conv1_postpool", "conv2_preact", through(conv2, weights("conv2_preact", 64, 14, 14))
        ),
        bound("conv2_postpool", "fc1_preact", weights("fc1_preact", 512) @ fc1.weight.detach()),
        bound("fc1_postact", "logits", weights("logits", 10) @ logits.weight.detach()),
    ]
    with torch.no_grad():
        own = sum(float(cross_entropy(model(x), y, reduction="sum")) for x, y in fit)
    own /= sum(len(y) for _, y in fit)
    probe = probes["logits"]
    lower = probe.objective - probe.gap
    return [*out, ("F*(logits) <= the network's own loss", lower, own + 5 * probe.l2)]


def draw(panels: dict[str, dict[str, float]], path: Path) -> None:
    """Draw both panels up to twice the error at the input; higher errors are written as text."""
    figure, axes = plt.subplots(1, 2, figsize=(11, 4), layout="constrained")
    top = 2.0 * next(iter(panels.values()))["input"]
    for ax, (title, errors) in zip(axes, panels.items(), strict=True):
        cxp.plot_errors({"": {k: min(e, 1.5 * top) for k, e in errors.items()}}, ax=ax)
        ax.set(title=title, ylabel="test error (%)", ylim=(0, 100 * top))
        for at, (layer, error) in enumerate(errors.items()):
            if error > top:
                ax.annotate(f"{layer}: {100 * error:.1f} %", (at, 96 * top), xytext=(-28, 0),
                            textcoords="offset points", ha="right", va="center",
                            fontsize=8)  # fmt: skip
    figure.savefig(path, dpi=110)


def movie(images: np.ndarray, labels: np.ndarray, held: list, out: Path, *, quick: bool) -> None:
    """Train and probe the network; `held` has the images and labels for the test error."""
    epochs, rows, frames, features = (1.0, 500, 4, 200) if quick else (2.0, 3_000, 64, 1_000)
    training = slice(VALIDATION_ROWS, VALIDATION_ROWS + 2_000 if quick else None)
    model, name = ConvNet(0), "figure5_quick" if quick else "figure5"
    last = int(epochs * len(labels[training])) // BATCH
    steps = {round(last * (i / frames) ** 2) for i in range(1 + frames)}
    monitor = cxp.ProbeMonitor(
        normalise(images[:rows]),
        torch.from_numpy(labels[:rows].astype(np.int64)),
        layers=PROBE_POINTS,
        pool={"conv*": cxp.random_features(features), "**": "flatten"},
        test=(normalise(held[0][:rows]), torch.from_numpy(held[1][:rows].astype(np.int64))),
        out=out / f"{name}_movie_probes",
    )

    def record(step: int, loss: float = 0.0) -> None:
        if step in steps:
            monitor.record(model, step)

    started = time.process_time()
    record(0)
    train(model, images[training], labels[training], epochs=epochs, callback=record)
    path = out / f"{name}.gif"
    monitor.history.animate(path)
    spent = time.process_time() - started
    print(f"{monitor.history}\nwrote {path}: {len(steps)} frames, {spent:.0f} CPU seconds in all")


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="300 rows and seven epochs of them")
    parser.add_argument("--movie", action="store_true", help="make the movie, not the figure")
    parser.add_argument("--out", type=Path, default=Path("out"))
    settings = parser.parse_args(argv)
    settings.out.mkdir(parents=True, exist_ok=True)
    images, labels = cxp.mnist("train")
    held, held_labels = cxp.mnist("test")
    if settings.movie:
        movie(images, labels, [held, held_labels], settings.out, quick=settings.quick)
        return
    rows, spare, epochs = (300, 150, 7.0) if settings.quick else (50_000, 10_000, 10.0)
    training = slice(VALIDATION_ROWS, None)
    if settings.quick:
        training = slice(VALIDATION_ROWS, VALIDATION_ROWS + rows)
        held, held_labels = held[:spare], held_labels[:spare]
    fit = batches(images[:rows], labels[:rows])
    choose = batches(images[rows : rows + spare], labels[rows : rows + spare])
    test = batches(held, held_labels)
    cache = settings.out / ("mnist_quick.pt" if settings.quick else "mnist_convnet.pt")

    untrained: Callable[[], ConvNet] = lambda: ConvNet(0).eval()  # noqa: E731
    trained: Callable[[], ConvNet] = lambda: load_or_train(  # noqa: E731
        cache, images[training], labels[training], epochs
    )
    titles = ("(a) after initialisation, no training", f"(b) after {epochs:g} epochs")
    panels: dict[str, dict[str, float]] = {}
    certified = held_true = True
    for (stage, make), title in zip(
        (("untrained", untrained), ("trained", trained)), titles, strict=True
    ):
        model = make()
        error = test_error(model, held, held_labels)
        print(f"\n{stage} network, test error {100 * error:.2f} %; the paper: {PAPER[stage]}")
        started = time.perf_counter()
        probes, errors = probe_network(model, fit, choose, test)
        print(f"  ten probes extracted and fitted in {time.perf_counter() - started:.0f} s")
        certified &= all(p.status is cxp.Status.CERTIFIED for p in probes.values())
        for name, lower, upper in oracles(model, probes, fit):
            verdict = "holds" if lower <= upper else "VIOLATED"
            held_true &= lower <= upper
            print(f"  oracle {name:45s} {lower:.5f} <= {upper:.5f}  {verdict}")
        probes.save(settings.out / f"figure5_{stage}.safetensors")
        panels[title] = errors
    path = settings.out / ("figure5_quick.png" if settings.quick else "figure5.png")
    draw(panels, path)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    print(f"\nevery probe certified: {certified}; every oracle holds: {held_true}; "
          f"peak memory {peak:.1f} GiB; wrote {path}")  # fmt: skip


if __name__ == "__main__":
    main()
