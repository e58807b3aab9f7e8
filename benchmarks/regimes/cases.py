"""The cases of each regime, and which of them are the representative third."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from itertools import product

import torch

from benchmarks.harness.cases import Settings
from benchmarks.regimes import data

REGIMES = {
    "a": "rows like residual streams",
    "b": "tokens and sentences of a BERT",
    "c": "MNIST layers, small penalties",
    "d": "many classes",
    "e": "scikit-learn's toy data",
}


@dataclass(frozen=True)
class RegimeCase:
    """A data set and a penalty.

    Attributes:
        regime: a letter of `REGIMES`.
        name: of the data set.
        k: classes.
        strength: the penalty in units of the mean feature variance, or, where `inverse`, the `C`
            of scikit-learn.
        load: the rows, float32, and labels.
        skip: returns why the data cannot be had, or None.
        quick: whether it is one of the representative third.
    """

    regime: str
    name: str
    k: int
    strength: float
    load: Callable[[], data.Data]
    skip: Callable[[], str | None] = lambda: None
    quick: bool = True
    inverse: bool = False

    @property
    def title(self) -> str:
        """Its name in tables, which no other case has."""
        sign = "C" if self.inverse else "l2"
        return f"({self.regime}) {self.name}, {sign}={self.strength:g}"

    def l2(self, x: torch.Tensor) -> float:
        """The penalty of our objective; for two classes scikit-learn's is a half of it."""
        if self.inverse:
            return (2.0 if self.k == 2 else 1.0) / (self.strength * len(x))
        return self.strength * float(x.double().var(0, correction=0).mean())


def residual(settings: Settings) -> Iterator[RegimeCase]:
    """(a): the quick ones are a Latin square, where each value of each factor occurs as often."""
    rows, features, strengths = (500, 1000, 2000, 4000, 10_000), (768, 2048, 4096), (1, 2, 4)
    for (i, n), (j, d), (h, k), (g, massive) in product(
        enumerate(rows), enumerate(features), enumerate((2, 10)), enumerate((True, False))
    ):
        name = f"{n} x {d}, {k} classes{', massive' if massive else ''}"
        for s, power in enumerate(strengths):
            yield RegimeCase("a", name, k, 10.0**-power, partial(data.residual, n, d, k, massive),
                             quick=(i + j + h + g + s) % 3 == 0)  # fmt: skip


def bert(settings: Settings) -> Iterator[RegimeCase]:
    """(b): three layers."""
    for layer, (kind, k) in product((1, 3, 6), (("tokens", len(data.TAGS)), ("sentences", 2))):
        for power in (2, 3, 4, 5):
            load = partial(data.bert_rows, settings.out, kind, layer)
            yield RegimeCase("b", f"{kind}, layer {layer}", k, 10.0**-power, load, data.no_bert,
                             quick=(layer + power + k) % 3 == 0)  # fmt: skip


def mnist(settings: Settings) -> Iterator[RegimeCase]:
    """(c): pixels, random ReLU features with scales over two decades, an untrained layer."""
    sizes = {"pixels": (5000, 10_000, 20_000, 50_000), "relu": (5000, 10_000, 20_000, 50_000),
             "fc1_postact": (20_000,)}  # fmt: skip
    for i, (layer, rows) in enumerate(sizes.items()):
        for j, n in enumerate(rows):
            for power in (3, 4, 5):
                load = partial(data.mnist_rows, settings, layer, n)
                yield RegimeCase("c", f"{layer}, {n} rows", 10, 10.0**-power, load, data.no_mnist,
                                 quick=(i + j + power) % 3 == 2)  # fmt: skip


def classes(settings: Settings) -> Iterator[RegimeCase]:
    """(d)."""
    for k, power in product((100, 1000), (2, 4)):
        yield RegimeCase("d", f"5000 x 128, {k} classes", k, 10.0**-power, partial(data.classes, k))


def toys(settings: Settings) -> Iterator[RegimeCase]:
    """(e): scikit-learn's default penalty, and a hundredth of it."""
    for name, scaled in product(data.TOYS, (False, True)):
        k = {"breast_cancer": 2, "digits": 10}.get(name, 3)
        for strength in (1.0, 100.0):
            load = partial(data.toy, name, scaled)
            yield RegimeCase("e", f"{name}, {'scaled' if scaled else 'raw'}", k, strength, load,
                             inverse=True)  # fmt: skip


def all_cases(settings: Settings, quick: bool = False) -> list[RegimeCase]:
    """All cases of (a) to (e), or the representative ones; those of a data set are adjacent."""
    found = [c for make in (residual, bert, mnist, classes, toys) for c in make(settings)]
    return [c for c in found if c.quick or not quick]
