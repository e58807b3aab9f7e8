"""What ours is compared with at scale: torch.optim.LBFGS, cuML, the forward pass of Inception."""

from __future__ import annotations

from importlib.util import find_spec
from typing import Any

import numpy as np
import torch
from torch import Tensor

from benchmarks.harness.cases import Judge, label_entropy
from benchmarks.harness.recorder import Arrived
from benchmarks.peers.torch_lbfgs import lbfgs
from benchmarks.scale.measure import TOL, Run, best_of, solve
from benchmarks.scale.spectrum import Features
from convexprobe import Probe


def torch_lbfgs(run: Run, features: Features, limit: float) -> None:
    """Time torch.optim.LBFGS until it is within our tolerance of our lower bound, or `limit` (s).

    cuML follows on the same rows.
    """
    x, y = features.make(run.device, run.dtype)
    probes, ours = solve(run, features, x, y)
    probe = probes["activations"]
    bound, entropy = probe.objective - probe.gap, label_entropy(y)
    found = until_reached(run, x, y, features.k, probe.l2, bound + TOL * entropy, limit)
    above = (found.pop("value") - bound) / entropy
    run.keep("torch_lbfgs", {
        "size": [features.n, features.d, features.k], **found,
        "at_most_above_optimum": above, "ours_seconds": ours.seconds,
    })  # fmt: skip
    cuml_lbfgs(run, features, x, y, probe)


def until_reached(
    run: Run, x: Tensor, y: Tensor, k: int, l2: float, goal: float, limit: float
) -> dict[str, Any]:
    """Run torch.optim.LBFGS from zero until the objective is at most `goal`, nats, or `limit` (s).

    Its gradient is written out over blocks of rows, as a user with many rows would do. Returns the
    seconds, the evaluations, the least value and the status.
    """
    n, d = x.shape
    w = torch.zeros(k, d + 1, device=run.device, requires_grad=True)
    optimiser = lbfgs([w])
    best, evaluations, started = np.inf, 0, run.clock()

    def closure() -> Tensor:
        nonlocal best, evaluations
        total = torch.zeros((), device=run.device, dtype=torch.float64)
        gradient = torch.zeros_like(w)
        with torch.no_grad():
            for rows, classes in zip(x.split(1 << 15), y.split(1 << 15), strict=True):
                block = rows.float()
                z = torch.nn.functional.linear(block, w[:, :-1], w[:, -1])
                log_p = z.log_softmax(1)
                total -= log_p.gather(1, classes[:, None]).sum(dtype=torch.float64)
                p = log_p.exp_()
                p[torch.arange(len(p), device=p.device), classes] -= 1.0
                gradient[:, :-1] += p.T @ block
                gradient[:, -1] += p.sum(0)
            gradient /= n
            gradient[:, :-1] += l2 * w[:, :-1]
            value = total / n + 0.5 * l2 * w[:, :-1].square().sum()
        w.grad = gradient
        best, evaluations = min(best, float(value)), evaluations + 1
        if best <= goal or run.clock() - started > limit:
            raise Arrived
        return value.float()

    try:
        optimiser.step(closure)
        status = "stopped by itself"
    except Arrived:
        status = "arrived" if best <= goal else f"not within {limit:.0f} s"
    seconds = run.clock() - started
    return {"seconds": seconds, "evaluations": evaluations, "value": best, "status": status}


def cuml_lbfgs(run: Run, features: Features, x: Tensor, y: Tensor, probe: Probe) -> None:
    """Time cuML's LogisticRegression with its own stopping rule, judged by our lower bound."""
    if run.device != "cuda" or find_spec("cuml") is None:
        run.keep("cuml", "not run: cuml is not importable, or no CUDA device")
        return
    run.keep("cuml", "not run: it did not come back in time")  # it cannot be given a time limit
    try:
        from cuml.linear_model import LogisticRegression

        model = LogisticRegression(C=1 / (features.n * probe.l2), output_type="numpy",
                                   max_iter=1000)  # fmt: skip
        started = run.clock()
        model.fit(x.float(), y.float())
        seconds = run.clock() - started
        judge, c = Judge(x, y, features.k), np.column_stack([model.coef_, model.intercept_])
        above = (judge.value(c, probe.l2) - (probe.objective - probe.gap)) / judge.entropy
        run.keep("cuml", {"seconds": seconds, "at_most_above_optimum": above})
    except Exception as error:  # a peer's failure is a result
        run.keep("cuml", f"failed: {type(error).__name__}: {error}"[:200])


def inception(run: Run, images: int, batches: int = 5) -> None:
    """Time Inception v3's forward pass on one batch, and extrapolate to so many images."""
    try:
        from torchvision.models import inception_v3
    except Exception as error:  # a torchvision built for another torch may raise anything
        run.keep("inception", f"not run: torchvision is not importable ({type(error).__name__})")
        return
    half = run.device == "cuda"
    dtype, size = (torch.float16, 256) if half else (torch.float32, 4)
    model = inception_v3(weights=None, init_weights=False, aux_logits=True).eval()
    model = model.to(run.device, dtype, memory_format=torch.channels_last)
    x = torch.randn(size, 3, 299, 299, device=run.device, dtype=dtype)
    x = x.to(memory_format=torch.channels_last)
    with torch.inference_mode():
        seconds = best_of(run, lambda: model(x), batches)
    rate = size / seconds
    run.keep("inception", {"images_per_second": rate, "extrapolated_seconds": images / rate})
