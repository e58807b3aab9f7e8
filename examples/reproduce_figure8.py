"""The paper's figure 8: a network of 128 layers with a bridge from its input to layer 64.

    python examples/reproduce_figure8.py [--quick] [--movie] [--out out]

Draws the training error, on 50 000 rows of MNIST, of a probe at the input and at each layer after
0, 500 and 2 000 minibatches. The bridge gives layer 64 the network's input as a second input.
`deep_mlp.py` lists what the paper leaves open.
"""

from __future__ import annotations

import sys

import numpy as np
from deep_figure import Figure, run
from deep_mlp import DeepMLP


def check(frames: list[np.ndarray]) -> dict[str, bool]:
    """Return what the paper describes, and whether the frames show it."""
    first, last = frames[0], frames[-1]
    bridge = len(first) // 2
    return {
        "step 0: two bumps, the second one behind the bridge": bool(
            first[1] < first[bridge - 1] > 2 * first[bridge] and first[bridge] < first[-1] / 2
        ),
        "last frame: no layer before the bridge has improved by a tenth": bool(
            (last[1:bridge] > 0.9 * first[1:bridge]).all()
        ),
        "last frame: behind the bridge the mean error is less than half of that at step 0": bool(
            last[bridge:].mean() < first[bridge:].mean() / 2
        ),
    }


FIGURE = Figure(
    name="figure8",
    build=lambda depth: DeepMLP(depth, bridge_to=depth // 2),
    frames=(0, 500, 2_000),
    marks=lambda depth: [depth // 2],
    paper=(
        "at the beginning two bumps, because layer 64 has the input as a direct parent too;",
        "the model completely ignores layers 1-63, even when it is trained for a long time",
    ),
    check=check,
)

if __name__ == "__main__":
    run(FIGURE, sys.argv[1:])
