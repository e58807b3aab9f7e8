"""Which preconditioner is worth its price: the policy of L-BFGS, in one place.

A better preconditioner saves passes and costs flops. How many it will save is not known before, so
each is bought when the passes made with the one before have cost as much as it will: whatever the
problem, all builds together then cost at most about as much as all passes (the argument of renting
skis until the rent has paid for a pair). The ladder begins with next to nothing, a sketch of 128
rows, and ends with a curvature of its own for every class. The last build is made anew, at the same
price, once the losses have fallen to `STALE` of what they were there.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from convexprobe.problem.eigen_blocks import EigenBlocks
from convexprobe.problem.objective import Problem
from convexprobe.problem.preconditioners import Curvature, Preconditioner

STALE = 0.85
"""Rebuild once a loss is below this fraction of its value at the last build."""

DENSE = 5.0
"""Flops of a build in the time of one flop of a pass: products of few columns wait for memory."""


@dataclass(frozen=True)
class Level:
    """A preconditioner on the ladder, with the rows it is built from."""

    recipe: Preconditioner
    rows: int

    def price(self, problem: Problem) -> float:
        """What a build costs, in passes: flops over those of a pass."""
        s, d, columns = min(self.rows, problem.n), problem.d, problem.m * problem.k
        recipe = self.recipe
        assert isinstance(recipe, Curvature | EigenBlocks)
        rank = min(recipe.rank, s)
        if d <= rank:
            flops, q = 2.0 * s * d * d + 4.0 * d**3, d
        else:
            flops, q = 2.0 * rank * rank * d + 10.0 * rank**3, rank
        if isinstance(recipe, EigenBlocks):
            lead = min(recipe.leading, q)
            flops += 11.0 * q**3 + 2.0 * s * d * q + columns * s * (4.0 * q + 2.0 * lead * lead)
        return flops / (DENSE * 2.0 * problem.n * d * max(columns, 2))


def ladder(problem: Problem) -> list[Level]:
    """The levels for a family, from cheap to dear."""
    s = 4 * min(problem.d, 1024)
    if problem.k == 2:  # one curvature for both classes is already each one's own
        return [
            Level(Curvature(rank=128), 128),
            Level(Curvature(rank=512), 512),
            Level(Curvature(), max(s, 2500)),
            Level(Curvature(), 4 * s),
        ]
    return [
        Level(Curvature(rank=128), 128),
        Level(EigenBlocks(64, 256), 1024),
        Level(EigenBlocks(128), max(s, 2500)),
        Level(EigenBlocks(256), 4 * s),
    ]


@dataclass(frozen=True)
class Bought:
    """Where on the ladder a solve is.

    Attributes:
        level: the level that was built last; -1 before the first.
        there: steps since the level was bought, a pass each.
        since: steps since the last build.
    """

    level: int = -1
    there: float = 0.0
    since: float = 0.0

    def next(
        self, problem: Problem, levels: list[Level], stale: Callable[[float], bool]
    ) -> int | None:
        """The level to build now, or None; `stale(fraction)` asks whether a loss has fallen."""
        if self.level < 0:
            return 0
        above = self.level + 1
        if above < len(levels) and self.there >= levels[above].price(problem):
            return above
        price = levels[self.level].price(problem)
        return self.level if stale(STALE) and self.since >= price else None
