"""The paper's figure 7: a network of 128 layers that auxiliary losses make trainable.

    python examples/reproduce_figure7.py [--quick] [--movie] [--out out]

Draws the training error, on 50 000 rows of MNIST, of a probe at the input and at each layer after
0, 500 and 5 000 minibatches. An auxiliary classifier at every 16 layers adds its loss. The same
network without these is trained too, to show that it fails. `deep_mlp.py` lists what the paper
leaves open.
"""

from __future__ import annotations

import sys

import numpy as np
from deep_figure import Figure, run
from deep_mlp import DeepMLP


def check(frames: list[np.ndarray]) -> dict[str, bool]:
    """Return what the paper describes, and whether the frames show it."""
    first, middle, last = (
        np.array([part.mean() for part in np.array_split(frame[1:], 4)]) for frame in frames
    )
    return {
        "step 0: the error grows with depth, quarter by quarter": bool((np.diff(first) > 0).all()),
        "middle frame: the first quarter has less error than the last": bool(
            middle[0] < middle[-1]
        ),
        "last frame: lower than at step 0 in every quarter": bool((last < first).all()),
        "the improvement by training grows with depth": bool((np.diff(first - last) > 0).all()),
    }


FIGURE = Figure(
    name="figure7",
    build=lambda depth: DeepMLP(depth, guide_every=depth // 8),
    frames=(0, 500, 5_000),
    marks=lambda depth: list(range(depth // 8, depth + 1, depth // 8)),
    paper=(
        "the raw data is directly useful, and this degrades as layers are added;",
        "then the error goes down from the first probe to the last, spreading from left to right;",
        "without the auxiliary losses the model does not train",
    ),
    check=check,
    without=DeepMLP,
)

if __name__ == "__main__":
    run(FIGURE, sys.argv[1:])
