"""A path: ten penalties over one layer, one family."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial

from benchmarks.cases import Case, Settings
from benchmarks.problems.convnet import activations


def cases(settings: Settings) -> Iterator[Case]:
    """Trained fc1_postact, from strong to weak."""
    l2 = tuple(10.0 ** (-1 - i / 2) for i in range(10))
    yield Case("path trained fc1_postact", partial(activations, settings, "trained", "fc1_postact"),
               l2, 10)  # fmt: skip
