"""Adam: what most probes are fitted with, here with a certified gap."""

from __future__ import annotations

from dataclasses import dataclass

from convexprobe.arrays.backend import Array, namespace
from convexprobe.solvers.adaptive import Adaptive


@dataclass(frozen=True)
class Adam(Adaptive):
    """Adam (Kingma and Ba 2015, Algorithm 1) without a learning rate to choose.

    A step is one epoch of shuffled minibatches (one pass) and one evaluation over all rows
    (another); with `batch=None` one update and one pass. Memory O(m p). Use it to see what usual
    practice reaches: it gets to a small gap by a small rate alone.

    Attributes:
        decay: of the running means of gradients and of their squares.
    """

    decay: tuple[float, float] = (0.9, 0.999)  # type: ignore[assignment]  # RMSprop has one

    def __post_init__(self) -> None:
        if not isinstance(self.decay, tuple) or len(self.decay) != 2:
            raise TypeError(f"Adam(decay=): expected two numbers, found {self.decay!r}")
        super().__post_init__()

    def moments(
        self, g: Array, first: Array, second: Array, updates: int
    ) -> tuple[Array, Array, Array]:
        """The quotient of both means, corrected for their start at zero."""
        a, b = self.decay
        first, second = a * first + (1.0 - a) * g, b * second + (1.0 - b) * g * g
        root = namespace(g).sqrt(second / (1.0 - b**updates)) + 1e-12
        return first / (1.0 - a**updates) / root, first, second
