"""The arrays that are alive at a fit's worst moments, in bytes.

With `m` tasks of `k` classes on `n` rows of `d` features, four kinds of array can be large: logits
`(m, k, n)`, parameters `(m, p)` in float64, gathered rows, and what a preconditioner needs to be
built from them. A moment of a solve is the list of those alive in it. `python -m
benchmarks.estimate` holds what is told against what is measured.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from convexprobe.arrays.products import block_rows
from convexprobe.problem.eigen_blocks import EigenBlocks
from convexprobe.problem.kept_logits import kept_columns
from convexprobe.problem.leading import directions
from convexprobe.problem.objective import CHECKED
from convexprobe.problem.preconditioners import Curvature, Diagonal, Identity, Preconditioner
from convexprobe.problem.row_sample import TOGETHER, sample_size
from convexprobe.problem.row_space import AT_ONCE, COLUMNS, MOST_ROWS, row_space_passes
from convexprobe.solvers import LBFGS, NewtonCG, NewtonCholesky, Solver
from convexprobe.solvers.adaptive import Adaptive
from convexprobe.solvers.auto import Auto, first
from convexprobe.solvers.ladder import MANY, Bought, Level, ladder
from convexprobe.solvers.lbfgs import FEW_PAIRS, LONG
from convexprobe.solvers.leading_step import SAMPLE
from convexprobe.solvers.line_search import ROWS
from convexprobe.solvers.stochastic import VarianceReduced

HEAP = 32 << 20
"""Bytes below which glibc may serve an array from the heap, which keeps what is freed."""


@dataclass(frozen=True)
class Moment:
    """Bytes of each array that is alive: where rows are multiplied, and on the host beside."""

    work: Sequence[float]
    host: Sequence[float] = ()

    def __add__(self, more: Sequence[float]) -> Moment:
        return Moment([*self.work, *more], self.host)


def peak(moments: Sequence[Sequence[float]]) -> float:
    """Resident bytes at the peak of moments, each the sizes of its arrays.

    Small arrays come from the heap, which stays as large as it was at its largest; large ones are
    mapped, and given back as soon as they are freed.
    """
    small = max(sum(a for a in arrays if a < HEAP) for arrays in moments)
    large = max(sum(a for a in arrays if a >= HEAP) for arrays in moments)
    return small + large


@dataclass(frozen=True)
class Family:
    """The sizes of a family of tasks that are solved together.

    Attributes:
        n, d, k, m: rows, features, classes and tasks.
        item: bytes of a number in the compute dtype.
        stored: bytes of a number of the rows as they are kept.
        capacity: rows that a sample may have.
        held: whether all rows are in memory where they are multiplied.
        passes: expected passes of a solve.
        room: bytes that logits of all rows may take.
    """

    n: int
    d: int
    k: int
    m: int
    item: int
    stored: int
    capacity: int
    held: bool
    passes: float
    room: float = float("inf")

    @property
    def p(self) -> int:
        """Parameters of a task."""
        return self.k * (self.d + 1)

    @property
    def converted(self) -> bool:
        """Whether rows are kept in another dtype than they are multiplied in."""
        return self.stored != self.item

    @property
    def vector(self) -> float:
        """Parameters of all tasks."""
        return 8.0 * self.m * self.p

    @property
    def logits(self) -> float:
        """One array of the logits of all rows; 0 where they are not kept."""
        columns = self.m * self.k
        most = kept_columns(self.n, self.n, self.item, self.room, streamed=not self.held)
        kept = columns <= most
        return float(self.item * columns * self.n) if kept else 0.0

    @property
    def by_row(self) -> float:
        """One number a row and task."""
        return float(self.item * self.m * self.n)

    @property
    def steps(self) -> int:
        """Steps in the passes, of which moments, draws and certificates take about a third."""
        return int(self.passes / 1.5)

    @property
    def point(self) -> list[float]:
        """What is kept of an evaluation: logits, uncertainties, and the rows whose logits are
        checked against float64, with their magnitudes."""
        entries = float(min(self.n, self.n // max(1, self.n // CHECKED) + 1)) * self.d
        checked = [self.item * entries, 8.0 * entries, 8.0 * entries]
        return [self.logits, self.by_row, *checked]

    def block(self, rows: int) -> float:
        """Logits of a block of so many rows, as a CPU has them."""
        columns = self.m * self.k
        return float(self.item * columns * min(self.drawn(rows), block_rows(columns, np.empty(0))))

    def drawn(self, rows: int) -> int:
        """Rows of a sample for which so many are asked."""
        return min(rows, self.n, self.capacity)

    def gathered(self, rows: int) -> list[float]:
        """A copy of so many rows; nothing where it is all rows, in memory and not converted."""
        if self.held and self.drawn(rows) == self.n and not self.converted:
            return []
        return [float(self.item) * self.drawn(rows) * self.d]

    def conversion(self, rows: int) -> list[float]:
        """What gathering so many rows takes beside: a copy in the dtype that is kept."""
        return [float(self.stored) * self.drawn(rows) * self.d] if self.converted else []

    def sample(self, rows: int, logits: int = 2) -> list[float]:
        """A sample of so many rows, with so many arrays of its logits."""
        return (
            self.gathered(rows) + [float(self.drawn(rows)) * self.item * self.m * self.k] * logits
        )


def moments(solver: Solver, f: Family) -> list[Moment]:
    """The moments of a solve that may be its worst."""
    sizes: Any = f  # all that is asked of a family here
    if isinstance(solver, Auto):
        return moments(first(sizes), f)
    if f.n > MOST_ROWS or f.d < 2 * f.n or row_space_passes(sizes) > AT_ONCE:
        return _moments(solver, f)
    # Rows wide enough for a space of their own, entered at once.
    gram, parts = 8.0 * f.n**2, float(f.item * f.n * min(2 * COLUMNS, f.d))
    factor = [gram, gram / 8.0 * f.item]
    inside = _moments(solver, replace(f, d=f.n, stored=f.item, held=True))
    return [
        *_moments(solver, f),  # before, and after, from the solution there
        Moment([*f.gathered(f.n), *[gram] * 4, parts]),
        *(moment + factor for moment in inside),
    ]


def _moments(solver: Solver, f: Family) -> list[Moment]:
    """Moments of a solve on the rows as they are."""
    vectors = [f.vector] * 12
    draw = [min(8.0 * f.n * f.m, 8.0 * TOGETHER)] + [8.0 * f.n] * 3  # of a sample, in float64
    if isinstance(solver, Adaptive):
        sample = [*f.sample(2048), *f.conversion(2048)]
        return [Moment([*[f.by_row] * 3, *sample, *vectors], draw[:2])]
    search = [*f.point, f.logits, f.by_row]
    if not f.logits:  # a sample, its logits and their change, and an array of a trial
        search = [*f.point, *f.sample(ROWS, 3), *f.conversion(ROWS)]
    if isinstance(solver, NewtonCholesky):
        return [Moment([*search, *vectors, *[8.0 * f.m * f.p**2] * 6])]
    pairs: list[float] = []
    levels: list[Level] = []
    if isinstance(solver, LBFGS):
        kept_pairs = min(solver.memory, f.steps, solver.memory if f.m * f.p <= LONG else FEW_PAIRS)
        pairs = [f.vector * f.item / 8.0] * (2 * kept_pairs)  # in the compute dtype
        if solver.preconditioner is None:
            levels = _levels_reached(f)
    sampled: list[float] = []  # what a solver keeps of its rows
    if not levels:
        rows = sample_size(f.n, f.d, getattr(solver, "rows", 2500))
        recipe = getattr(solver, "preconditioner", None) or Curvature()
        levels = [Level(recipe, rows)]
        if not isinstance(solver, LBFGS):
            sampled = f.sample(rows) * (2 if isinstance(solver, VarianceReduced) else 1)
    kept: list[float] = []
    # Newton's method draws its next sample while it still has the last evaluation; of one task that
    # takes no more than its search did.
    last = [f.logits, f.by_row] if isinstance(solver, NewtonCG) and f.m > 1 else []
    always = [*vectors, *pairs, *sampled]
    # Logits at the best points of tasks that have ended, which share an array with others; and what
    # the heap cannot reuse between arrays that live on.
    always += [0.25 * f.logits if f.m > 1 else 0.0, 0.25 * f.logits if f.logits < HEAP else 0.0]
    worst = []
    if isinstance(solver, LBFGS) and (q := directions(f)):  # all rows in the leading directions
        inside = [f.item * f.n * q, 8.0 * f.d * q]
        always += inside
        blocks, _ = _preconditioner(EigenBlocks(q), replace(f, d=q), f.drawn(SAMPLE))
        worst += [Moment([*always, *f.point, f.logits, *f.sample(SAMPLE), *blocks])]
    bounded = max(2500, f.n // 20)  # rows of a bound that is repaired or corrected

    def drawing(rows: int) -> Moment:
        sample = [*f.sample(rows), *f.conversion(rows)]
        return Moment([*always, *f.point, *last, *kept, *sample], draw)

    if isinstance(solver, LBFGS):
        levels = [*levels, levels[-1]]  # built again
    for level in levels:
        built, left = _preconditioner(level.recipe, f, f.drawn(level.rows))
        worst += [drawing(level.rows)]
        # The last sample's place in the heap is taken in part.
        samples = f.sample(level.rows, 1) + (f.gathered(level.rows) if kept else [])
        worst += [Moment([*always, *f.point, *kept, *samples, *built])]
        kept = left
    return [
        *worst,
        Moment([*always, *search, *kept]),
        Moment([*always, *f.point, *pairs, *[f.vector] * 6, *kept]),  # pairs are stacked for a step
        drawing(bounded),
        Moment([*always, *f.point, *kept, *f.sample(bounded), *[f.block(bounded)] * 4]),  # repaired
    ]


def _levels_reached(f: Any) -> list[Level]:
    """The preconditioners that L-BFGS buys in the steps that are expected of a `Family`."""
    levels = ladder(f)
    bought, reached = Bought(), []
    # With many classes so many steps end an ordinary fit, before a curvature for each is bought.
    for _ in range(f.steps if f.k <= MANY else f.steps // 2):
        if (level := bought.next(f, levels, stale=False)) is None:
            bought = replace(bought, there=bought.there + 1.0)
        else:
            bought = Bought(level, there=1.0)
            reached.append(levels[level])
    return reached


def _preconditioner(
    recipe: Preconditioner, f: Family, rows: int
) -> tuple[list[float], list[float]]:
    """Arrays beside the sample while a preconditioner is built from it, and those that it keeps."""
    d, mk, item = float(f.d), float(f.m * f.k), f.item
    if isinstance(recipe, EigenBlocks):
        low = f.d > min(recipe.rank, rows)
        q = float(min(f.d, recipe.rank, rows))
        lead = min(float(recipe.leading), q)
        kept = [item * d * q, item * mk * lead**2, 8.0 * mk * q, 8.0 * mk * q]
        of_rows = [item * rows * d, item * rows * mk]  # centred rows, and their curvatures
        root = [item * (q if low else rows) * d, *[8.0 * q**2] * 3, item * d * q]
        blocks = [item * rows * q, item * rows * lead, *[8.0 * mk * lead**2] * 4]
        return max([of_rows + root, of_rows + blocks + kept], key=sum), kept
    if isinstance(recipe, Curvature):
        low = f.d > min(recipe.rank, rows)
        r = float(min(rows, recipe.rank)) if low else d
        roots = [item * d * (r if low else rows)] * 2
        square = 8.0 * r**2
        kept = roots[:1] if low else []
        if f.m > recipe.tasks or f.k > recipe.classes:  # one eigendecomposition for all
            kept = [8.0 * d * r if low else square, 8.0 * mk * r]
            lifted = [8.0 * d * r, 8.0 * d * r] if low else []
            return [*roots, *lifted, *[square] * 3, *[8.0 * mk * r] * 3], kept
        kept = [*kept, f.m * square]
        return [*roots, *[square] * 3, *[f.m * square] * 4], kept
    kept = [f.vector] * {Identity: 0, Diagonal: 3}.get(type(recipe), 6)
    return [*kept, item * rows * d], kept
