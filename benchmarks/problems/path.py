"""A path: one family of ten penalties over one layer."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial

from benchmarks.harness.cases import Case, Settings
from benchmarks.problems.convnet import activations


def cases(settings: Settings) -> Iterator[Case]:
    """Yield the path on the trained convnet's fc1_postact, from strong to weak penalties."""
    l2 = tuple(10.0 ** (-1 - i / 2) for i in range(10))
    yield Case("path trained fc1_postact", partial(activations, settings, "trained", "fc1_postact"),
               l2, 10)  # fmt: skip
