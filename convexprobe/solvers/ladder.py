"""Which preconditioner is worth its price: what a build costs, and the policy of L-BFGS.

A better preconditioner saves passes and costs flops, and nobody knows beforehand how many passes.
So a better one is bought when the passes made with the last one have cost as much as it will: on
any problem, all first builds together then cost about as much as all passes at most (rent skis
until the rent would have bought a pair). The ladder begins with a sketch of 128 rows, which costs
next to nothing, and ends with a curvature of its own for every class. The last level is rebuilt, at
the same price, once a loss has fallen to `STALE` of its value at the last build.
"""

from __future__ import annotations

from dataclasses import dataclass

from convexprobe.problem.eigen_blocks import EigenBlocks
from convexprobe.problem.linear_model import CALLS
from convexprobe.problem.objective import Problem
from convexprobe.problem.preconditioners import Curvature, Preconditioner

STALE = 0.35
"""The fraction of the loss at the last build below which a level is rebuilt."""

DENSE, FULL, FEW = 5.0, 1.0, 16
"""How many flops of a build take the time of one of a pass: with up to `FEW` columns, which wait
for memory, and with very many."""

MANY = 256
"""Classes beyond which a curvature of its own for each is dear, and a damped one that all share
serves: with few rows of each class, losses are far from quadratic."""

EVERY = 8.0
"""Passes from one build of that one to the next at least: to draw its rows costs most of a pass."""

SPECTRAL = 30.0
"""Flops of an eigendecomposition in units of `d^3`, by the time that it takes."""


@dataclass(frozen=True)
class Level:
    """A preconditioner, with the rows it is built from, and passes until it is rebuilt at least."""

    recipe: Preconditioner
    rows: int
    least: float = 0.0

    def price(self, problem: Problem) -> float:
        """What a build takes of the time of a pass; 0 for recipes that are cheap or unknown."""
        if not isinstance(self.recipe, (Curvature, EigenBlocks)):
            return 0.0
        s, d = min(self.rows, problem.n), problem.d
        columns = problem.m * (1 if problem.k == 2 else problem.k)
        rank = min(self.recipe.rank, s)
        if d <= rank:
            shared = isinstance(self.recipe, Curvature) and problem.m > self.recipe.tasks
            flops, q = 2.0 * s * d * d + (SPECTRAL if shared else 4.0) * d**3, d
        else:
            flops, q = 2.0 * rank * rank * d + 10.0 * rank**3, rank
        if isinstance(self.recipe, EigenBlocks):
            lead = min(self.recipe.leading, q)
            flops += 11.0 * q**3 + 2.0 * s * d * q + columns * s * (4.0 * q + 2.0 * lead * lead)
        step = CALLS + 2.0 * problem.n * d * max(columns, 2)
        rate = FULL + (DENSE - FULL) * min(1.0, FEW / columns)
        return flops / (rate * step)


def ladder(problem: Problem) -> list[Level]:
    """The levels for a family, from cheap to dear."""
    s = max(4 * min(problem.d, 1024), 2500)
    if problem.k > MANY:
        shared = Level(Curvature(damping=1.0), 2 * s, EVERY)
        return [shared, Level(EigenBlocks(128), 3 * s), Level(EigenBlocks(256), 4 * s)]
    first = Level(Curvature(rank=128), 128)
    if problem.k == 2:  # both classes have the same curvature
        top = [Level(Curvature(), s), Level(Curvature(), 4 * s)]
        return [first, Level(Curvature(rank=512), 512), *top]
    top = [Level(EigenBlocks(128), s), Level(EigenBlocks(256), 4 * s)]
    return [first, Level(EigenBlocks(64, 256), 1024), *top]


@dataclass(frozen=True)
class Bought:
    """Where on the ladder a solve is.

    Attributes:
        level: the level that was built last; -1 before the first.
        there: steps with that level, a pass each.
        since: steps since it was last built.
    """

    level: int = -1
    there: float = 0.0
    since: float = 0.0

    def next(self, problem: Problem, levels: list[Level], stale: bool) -> int | None:
        """The level to build now, or None; `stale` says whether a loss has fallen to `STALE`."""
        for above in range(len(levels) - 1, self.level, -1):
            if above == 0 or self.there >= levels[above].price(problem):
                return above
        here = levels[self.level]
        return self.level if stale and self.since >= max(here.price(problem), here.least) else None
