"""RMSprop: what the paper's probes were fitted with."""

from __future__ import annotations

from dataclasses import dataclass

from convexprobe.arrays.backend import Array, namespace
from convexprobe.solvers.adaptive import Adaptive


@dataclass(frozen=True)
class RMSprop(Adaptive):
    """RMSprop (Tieleman and Hinton 2012, lecture 6.5) without a learning rate to choose.

    Costs, memory and use are those of Adam, which adds momentum. The mean of squares starts at the
    first gradient's square, so that the first updates are no longer than the others.
    """

    def moments(
        self, g: Array, first: Array, second: Array, updates: int
    ) -> tuple[Array, Array, Array]:
        """The gradient in units of the root of the mean."""
        second = g * g if updates == 1 else self.decay * second + (1.0 - self.decay) * g * g
        return g / (namespace(g).sqrt(second) + 1e-12), first, second
