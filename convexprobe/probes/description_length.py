"""Online description length: how many bits the labels take when probes learn them as they come."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from itertools import pairwise
from typing import Any

import numpy as np

from convexprobe._arguments import check_integer, check_real
from convexprobe._tables import aligned
from convexprobe.activations.checks import check_activations, check_finite
from convexprobe.activations.placement import place
from convexprobe.activations.source import Source
from convexprobe.arrays.backend import generator, like, to_numpy
from convexprobe.arrays.precision import full_precision
from convexprobe.metrics.predictions import predictions
from convexprobe.probes.classes import check_classes
from convexprobe.probes.groups import example_groups, read_groups
from convexprobe.probes.labels import (
    Labels,
    check_probe_names,
    check_two_classes,
    probe_name,
    read_labels,
)
from convexprobe.probes.layer import in_numpy, typical_variance
from convexprobe.probes.logits import unchecked_logits
from convexprobe.probes.options import GRID, check_l2
from convexprobe.probes.selection import make_probe
from convexprobe.problem.objective import Problem
from convexprobe.problem.row_space import is_wide
from convexprobe.solvers import Solver, by_name
from convexprobe.solvers.path import Fitted, solve_path
from convexprobe.solvers.solution import Solved
from convexprobe.solvers.starts import Previous

PORTIONS = (0.001, 0.002, 0.004, 0.008, 0.016, 0.032, 0.0625, 0.125, 0.25, 0.5, 1.0)
"""Where the blocks of rows end, as Voita & Titov (2020) have them."""


@dataclass(frozen=True)
class CodedBlock:
    """A block of rows and what its labels take.

    Attributes:
        known: rows before it, which its probe was fitted to.
        rows: rows of the block.
        bits: length of its labels' code.
        probe: the record of the probe that codes it, with its `l2` and `gap`; None where the rows
            before have fewer than two classes.
    """

    known: int
    rows: int
    bits: float
    probe: Solved | None


@dataclass(frozen=True, repr=False)
class DescriptionLength:
    """The online code of a layer's labels. Prints as a table.

    Attributes:
        bits: its length.
        uniform_bits: length of the code that knows nothing, `n log2 k`.
        blocks: the blocks, in the order in which they are coded.
    """

    bits: float
    uniform_bits: float
    blocks: tuple[CodedBlock, ...]

    @property
    def compression(self) -> float:
        """`uniform_bits / bits` (Voita & Titov 2020): 1 if the layer tells nothing."""
        return self.uniform_bits / self.bits if self.bits else np.inf

    @property
    def gap_bits(self) -> float:
        """What the gaps may add to the length if a block's rows are like those before it, bits.

        It is `sum_i rows_i gap_i / log(2)`. The length itself is exact: any parameters make a code
        that can be read. `gap_i` proves that the mean loss plus penalty of probe `i` is within
        `gap_i` of the lowest *on the rows that it was fitted to*, and that its weights are within
        `sqrt(2 gap_i / l2)` of the optimal ones in norm, as the penalty is strongly convex. It
        bounds nothing on the rows of the block, which the fit has not seen: there the optimal
        parameters may do better by more than `gap_i`, or worse.
        """
        gaps = (block.rows * block.probe.gap for block in self.blocks if block.probe is not None)
        return float(sum(gaps) / np.log(2))

    def __str__(self) -> str:
        rows = [["rows known", "rows coded", "bits a row", "l2", "gap", "status"]]
        for block in self.blocks:
            row = [str(block.known), str(block.rows), f"{block.bits / block.rows:.4f}"]
            said = ["", "", "constant"]
            if block.probe is not None:
                probe = block.probe
                said = [f"{probe.l2:.2e}", f"{probe.gap:.1e}", probe.status.name.lower()]
            rows.append(row + said)
        return (
            f"{aligned(rows, left=(5,))}\n{self.bits:.1f} bits, {self.uniform_bits:.1f} without "
            f"activations: compression {self.compression:.2f}; gaps {self.gap_bits:.2f} bits"
        )

    __repr__ = __str__


@full_precision()
def description_length(
    activations: Any,
    labels: Any,
    solver: str | Solver = "auto",
    *,
    l2: float | Sequence[float] | str = "auto",
    tol: float = 1e-3,
    classes: Sequence[Any] | None = None,
    groups: Any = None,
    seed: int = 0,
    max_passes: float = 1000.0,
) -> dict[str, DescriptionLength]:
    """The online (prequential) description length of labels (Voita & Titov 2020), by probe.

    The rows come in random order. The labels of the first block, a thousandth of them, are coded
    uniformly, each of the next ten by the probe of all rows before it:

        bits = t_1 log2(k) - sum_i sum_{rows of block i} log2 p_i(y | x),

    where the blocks end at 0.1, 0.2, 0.4, 0.8, 1.6, 3.2, 6.25, 12.5, 25, 50 and 100 % of the rows.
    Each probe starts from the one before; the ten fits read as many rows as one fit of all.

    Of several penalties the first block has the largest. Every probe is also fitted at the next
    larger and the next smaller penalty, and whichever is best on a block codes the next one: the
    reader of the code knows it by then.

    Voita & Titov's networks give every class some probability; a probe gives none to a class that
    it has not seen. Where `a` classes are missing among `t` rows, each of them gets `1 / (t + a)`,
    and those seen share the rest. Once all classes have been seen the code is exactly theirs.

    Args:
        activations, labels, solver, l2, tol, classes, groups, max_passes: as for `fit_probes`; a
            group is not divided between blocks. `l2="auto"` is `fit_probes`' grid.
        seed: of the order of the rows.

    Returns:
        By "layer", or "layer/concept".

    Raises:
        TypeError, ValueError: input refused as by `fit_probes`.
    """
    layers = check_activations(activations)
    rows = next(iter(layers.values())).shape[0]
    penalties, tol = check_l2(l2), check_real("tol", tol, above=0.0)
    max_passes = check_real("max_passes", max_passes, least=0.0)
    encoded = read_labels(labels, rows, check_classes(classes))
    check_probe_names(layers, encoded)
    for concept, codes in enumerate(encoded.codes):
        if (known := encoded.known[concept]) is not None:
            raise ValueError(
                f"{encoded.where(concept)}: row {int(known.argmin())} has no label, and a code is "
                "one of all rows; give the rows with labels, concept by concept"
            )
        check_two_classes(codes, None, encoded.where(concept))
    if groups is None:
        groups = example_groups(activations)
    order, ends = blocks_of(rows, read_groups(groups, rows), check_integer("seed", seed))
    chosen = by_name(solver)
    solve = partial(solve_path, tol=tol, max_passes=max_passes, max_seconds=np.inf)
    out: dict[str, DescriptionLength] = {}
    for layer, values in layers.items():
        x = place(values, None, None)
        check_finite(x, f"activations[{layer!r}]")
        grid = penalties
        if grid is None:
            family = Problem(x, like(encoded.codes[0], x.reference), 0.0, classes=2)
            grid = np.asarray(GRID) * typical_variance(family, None)
        coder = _Coder(x, encoded, np.sort(grid)[::-1], order, chosen, solve)
        lengths = coder.code(ends)
        out |= dict(zip((probe_name(layer, n) for n in encoded.names), lengths, strict=True))
    return out


def blocks_of(rows: int, groups: np.ndarray | None, seed: int) -> tuple[np.ndarray, list[int]]:
    """The order of the rows, `(n,)`, and where blocks end in it: at `PORTIONS`, or near them where
    groups would be divided. Blocks that would be empty are left out."""
    units = np.arange(rows) if groups is None else groups
    place = generator(seed).permutation(int(units.max()) + 1)[units]
    order = np.argsort(place, kind="stable")
    possible = np.flatnonzero(np.diff(place[order], append=-1)) + 1  # ends of groups
    wanted = np.asarray(PORTIONS) * rows
    nearest = np.abs(possible[None, :] - wanted[:, None]).argmin(axis=1)
    return order, np.unique(possible[nearest]).tolist()


class _Coder:
    """One layer's labels, coded block after block; all concepts together."""

    def __init__(
        self,
        x: Source,
        labels: Labels,
        penalties: np.ndarray,
        order: np.ndarray,
        solver: Solver,
        solve: Any,
    ) -> None:
        self.x, self.labels, self.penalties = x, labels, penalties.tolist()
        self.order, self.solver, self.solve = order, solver, solve
        count = len(labels.names)
        self.chosen = [0] * count  # the penalty of the next block, by number
        self.last: list[np.ndarray | None] = [None] * count  # w of the rows before
        self.blocks: list[list[CodedBlock]] = [[] for _ in range(count)]

    def code(self, ends: list[int]) -> list[DescriptionLength]:
        """The description length of every concept."""
        for start, stop in pairwise(ends):
            self._block(np.sort(self.order[:start]), np.sort(self.order[start:stop]))
        out = []
        for classes, blocks in zip(self.labels.classes, self.blocks, strict=True):
            bits = float(np.log2(len(classes)))
            out.append(
                DescriptionLength(
                    bits=ends[0] * bits + sum(block.bits for block in blocks),
                    uniform_bits=ends[-1] * bits,
                    blocks=tuple(blocks),
                )
            )
        return out

    def _block(self, known: np.ndarray, new: np.ndarray) -> None:
        """Code the labels of the new rows by probes of the known ones."""
        codes, concepts = self.labels.codes, range(len(self.blocks))
        seen = [np.unique(codes[c, known]) for c in concepts]
        active = [c for c in concepts if len(seen[c]) > 1]
        for c in concepts:
            if c not in active:  # a probe of one class is certain of it
                certain = np.zeros(len(new))
                length = self._bits(c, seen[c], known, codes[c, new], certain)
                self.blocks[c].append(CodedBlock(len(known), len(new), length, None))
        if not active:
            return
        k = max(len(classes) for classes in self.labels.classes)
        columns = max(self.x.d, 3 * k * len(active))
        x, held = in_numpy([self.x.subset(known), self.x.subset(new)], columns)
        labels = like(codes[:, known], x.reference)
        base = Problem(x, labels, np.zeros(len(concepts)), classes=k)
        chosen = {c: self.chosen[c] for c in active}
        for number in sorted(set(chosen.values())):
            together = [c for c in active if chosen[c] == number]
            first = max(number - 1, 0)
            solutions = self._fit(base, together, self.penalties[first : number + 2])
            for c, found in zip(together, solutions, strict=True):
                bits = []
                for fitted in found:
                    probe = make_probe(base, self.labels.classes[c], c, fitted)
                    z = to_numpy(unchecked_logits(probe, held))
                    loss = predictions(z, codes[c, new], None, rank=False).loss
                    bits.append(self._bits(c, seen[c], known, codes[c, new], loss))
                used = number - first
                record = Solved(**found[used].known())
                self.blocks[c].append(CodedBlock(len(known), len(new), bits[used], record))
                best = int(np.argmin(bits))
                self.chosen[c], self.last[c] = first + best, to_numpy(found[best].w)

    def _fit(self, base: Problem, tasks: list[int], penalties: list[float]) -> list[list[Fitted]]:
        """These concepts at these penalties, from their probes of the rows before."""
        previous = None
        known = [w for task in tasks if (w := self.last[task]) is not None]
        if len(known) == len(tasks) and not is_wide(base):  # few rows have a shorter way
            previous = Previous(like(np.stack(known), base.moment))
        return self.solve(base.take_tasks(tasks), np.asarray(penalties), self.solver, previous)

    def _bits(
        self, concept: int, seen: np.ndarray, known: np.ndarray, truth: np.ndarray, loss: np.ndarray
    ) -> float:
        """The length of labels, of which a probe has the loss, nats, where it has seen them."""
        missing = len(self.labels.classes[concept]) - len(seen)
        old, total = np.isin(truth, seen), len(known) + missing
        nats = np.where(old, loss + np.log(total / len(known)), np.log(total))
        return float(nats.sum() / np.log(2))
