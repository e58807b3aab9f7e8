"""Print a fingerprint of a dozen fits and sweeps: run it before and after a change that must not
change results, on the same machine, and compare.

    python -m benchmarks.fingerprints > before.txt
"""

from __future__ import annotations

import hashlib
import tempfile
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch

import convexprobe as cxp


def fingerprint(probe: cxp.Probe) -> str:
    """A hash of the weights' bits, and the numbers that come with them."""
    sha = hashlib.sha256()
    for array in (probe.weights, probe.bias):
        sha.update(np.ascontiguousarray(torch.as_tensor(array).float().numpy()).tobytes())
    numbers = [probe.l2, probe.loss, probe.objective, probe.gap, probe.train_error]
    held = "-" if probe.validation_error is None else f"{probe.validation_error:.17g}"
    return (
        f"{sha.hexdigest()[:12]} {' '.join(f'{x:.17g}' for x in numbers)} {held} "
        f"{probe.status.name} {probe.start} passes={probe.passes:.6g}"
    )


def data(n: int, d: int, k: int, seed: int, *, scale: float = 1.0) -> tuple[np.ndarray, np.ndarray]:
    """Rows `(n, d)` float32 whose columns have unequal scales, and noisy labels `(n,)`."""
    rng = np.random.default_rng(seed)
    x = rng.standard_normal((n, d)) * np.logspace(0, -scale, d) + 0.3
    z = x @ rng.standard_normal((d, k)) + rng.gumbel(size=(n, k))
    return x.astype(np.float32), z.argmax(axis=1)


def model() -> torch.nn.Sequential:
    """A small convolutional network with fixed weights."""
    generator = torch.Generator().manual_seed(0)
    net = torch.nn.Sequential(
        torch.nn.Conv2d(1, 4, 3), torch.nn.ReLU(), torch.nn.Flatten(), torch.nn.Linear(144, 16)
    )
    with torch.no_grad():
        for parameter in net.parameters():
            parameter.copy_(0.2 * torch.randn(parameter.shape, generator=generator))
    return net


def fits() -> Iterator[tuple[str, cxp.ProbeSet]]:
    """Named sets of probes."""
    x, y = data(1500, 24, 4, 0)
    wide, wide_y = data(120, 400, 3, 1)
    weights = np.random.default_rng(2).uniform(0.1, 2.0, len(y))
    for solver in cxp.SOLVERS:
        yield f"solver {solver}", cxp.fit_probes(x, y, solver, l2=1e-3, max_passes=60)
    yield "torch", cxp.fit_probes(torch.tensor(x), torch.tensor(y), l2=1e-4)
    yield "float64", cxp.fit_probes(x.astype(np.float64), y, l2=1e-4, tol=1e-6)
    yield "bfloat16", cxp.fit_probes(torch.tensor(x).bfloat16(), torch.tensor(y), l2=1e-2)
    yield "weights", cxp.fit_probes(x, y, l2=[1e-1, 1e-3], sample_weight=weights)
    yield "auto", cxp.fit_probes({"a": x, "b": x[:, :7]}, y)
    yield "cv", cxp.fit_probes(x, y, l2=[1e-1, 1e-2, 1e-3], cv=3)
    concepts = {"even": y % 2, "zero": y == 0, "class": y}
    yield "concepts", cxp.fit_probes(x, concepts, l2=[1e-2, 1e-3])
    yield "wide", cxp.fit_probes(wide, wide_y, l2=[1e-1, 1e-3])
    yield "early", cxp.fit_probes(x, y, l2=1e-5, stopping="validation")
    yield "unpenalised", cxp.fit_probes(x, y, l2=0.0)
    first = cxp.fit_probes(x, y, l2=1e-3)
    moved = x @ np.linalg.qr(np.random.default_rng(3).standard_normal((24, 24)))[0]
    moved = moved.astype(np.float32)
    yield "copied", cxp.fit_probes(moved, y, l2=1e-3, warm_start=first)
    remembered = cxp.remember(first, x)
    yield "transferred", cxp.fit_probes(moved, y, l2=1e-3, warm_start=remembered)
    many_x, many_y = data(2000, 16, 300, 4)
    yield "classes", cxp.fit_probes(many_x, many_y, l2=1e-2)
    with tempfile.TemporaryDirectory() as folder:
        images = torch.tensor(data(600, 64, 3, 5)[0]).reshape(-1, 1, 8, 8)
        labels = torch.tensor(data(600, 64, 3, 5)[1])
        batches = list(zip(images.split(100), labels.split(100), strict=True))
        kept, labels = cxp.extract(model(), batches)
        yield "extracted", cxp.fit_probes(kept, labels, l2=1e-3)
        cxp.extract(model(), batches, out=f"{folder}/rows", dtype="bfloat16")
        stored, labels = cxp.open_activations(f"{folder}/rows")
        yield "streamed", cxp.fit_probes(stored, labels, l2=1e-3, memory_limit=1e4)


def sweeps() -> Iterator[tuple[str, cxp.ProbeHistory]]:
    """Named histories."""
    images, labels = data(500, 64, 3, 6)
    x, y = torch.tensor(images).reshape(-1, 1, 8, 8), torch.tensor(labels)
    net = model()
    states = []
    for step in range(3):
        state = {name: tensor * (1.0 + 0.1 * step) for name, tensor in net.state_dict().items()}
        states.append((step, state))
    settings: dict[str, Any] = {"test": (x[400:], y[400:]), "progress": False}
    yield "sweep auto", cxp.probe_checkpoints(net, states, x[:400], y[:400], **settings)
    for start in ("copy", "zero"):
        yield (
            f"sweep {start}",
            cxp.probe_checkpoints(
                net, states, x[:400], y[:400], l2=1e-3, warm_start=start, **settings
            ),
        )
    with tempfile.TemporaryDirectory() as folder:
        history = cxp.probe_checkpoints(
            net, states, x[:400], y[:400], layers=["0", "3"], l2=1e-2, out=folder, **settings
        )
        yield "sweep out", history
        yield "sweep read", cxp.load_history(folder)


def main() -> None:
    """Print all of it."""
    torch.set_num_threads(1)
    for name, probes in fits():
        for layer, probe in probes.items():
            print(f"{name} / {layer}: {fingerprint(probe)}")
            for point in probe.path:
                print(
                    f"    {point.l2:.17g} {point.loss:.17g} {point.gap:.17g} {point.status.name} "
                    f"{point.validation_error:.17g} {point.validation_loss:.17g}"
                )
    for name, history in sweeps():
        for step, probes in history.items():
            for layer, probe in probes.items():
                print(f"{name} / {step} / {layer}: {fingerprint(probe)}")
        for row in history.table():
            print(f"    {row['step']} {row['layer']} {row['test_error']} {row['test_loss']}")


if __name__ == "__main__":
    main()
