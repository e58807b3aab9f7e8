"""The probe of a layer: of all that were fitted, the one that does best on held-out rows."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from convexprobe.activations.source import Source
from convexprobe.arrays.backend import cast, to_numpy
from convexprobe.arrays.ranks import Communicator
from convexprobe.metrics.score import tally
from convexprobe.probes.labels import Labels
from convexprobe.probes.probe import PathPoint, Probe
from convexprobe.probes.splits import Split
from convexprobe.problem.objective import Problem
from convexprobe.solvers.path import Fitted


@dataclass(frozen=True)
class LayerFit:
    """The solutions of one layer.

    Attributes:
        problem: a family with one task a group; its own penalties are not used.
        labels: of all concepts.
        groups: what was fitted to which rows.
        penalties: host `(v,)`.
        solutions: `solutions[group][penalty]`.
    """

    problem: Problem
    labels: Labels
    groups: list[Split]
    penalties: np.ndarray
    solutions: list[list[Fitted]]

    def choose(self, concept: int, held: tuple[Source, np.ndarray] | None) -> Probe:
        """The concept's probe of the penalty that does best on held-out rows, with the path.

        `held`: validation rows and their classes; the groups' own held-out rows when None.
        """
        mine = [i for i, group in enumerate(self.groups) if group.concept == concept]
        scores = []  # of each set of held-out rows, (penalties, 2): error and loss
        for i in mine:
            rows = self.groups[i].held
            if held is not None:
                x, codes = held
            elif rows is not None:
                x, codes = self.problem.rows.subset(rows), self.labels.codes[concept][rows]
            else:
                continue
            probes = [self._probe(i, v) for v in range(len(self.penalties))]
            scores.append(_scores(probes, x, codes, self.problem.communicator))
        if not scores:
            return self._probe(mine[-1], 0)
        mean = np.mean(scores, axis=0).tolist()
        best = min(range(len(mean)), key=lambda v: tuple(mean[v]))
        path = tuple(
            PathPoint(float(l2), s.loss, s.gap, s.status, error, loss)
            for l2, s, (error, loss) in zip(
                self.penalties, self.solutions[mine[-1]], mean, strict=True
            )
        )
        return replace(
            self._probe(mine[-1], best),
            validation_error=mean[best][0],
            passes=max(s.passes for i in mine for s in self.solutions[i]),
            seconds=max(s.seconds for i in mine for s in self.solutions[i]),
            path=path if len(path) > 1 else (),
        )

    def _probe(self, group: int, penalty: int) -> Probe:
        """One task's solution; classes that only other concepts have are left out."""
        problem, found = self.problem, self.solutions[group][penalty]
        xp, classes = problem.xp, self.labels.classes[self.groups[group].concept]
        weights, bias = problem.split(cast(found.w, problem.dtype)[None, :])
        bias = xp.where(problem.frequency[group, :] > 0, bias[0, :], -xp.inf)
        k = len(classes)
        return Probe(
            weights=xp.asarray(weights[0, :k, :], copy=True),
            bias=xp.asarray(bias[:k], copy=True),
            classes=classes,
            l2=float(self.penalties[penalty]),
            loss=found.loss,
            objective=found.value,
            gap=found.gap,
            status=found.status,
            passes=found.passes,
            seconds=found.seconds,
            train_error=found.error,
            start=found.start,
            validation_error=None,
            rows=float(problem.total[group if problem.total.shape[0] > 1 else 0]),
        )


def _scores(
    probes: list[Probe], rows: Source, codes: np.ndarray, communicator: Communicator
) -> np.ndarray:
    """Error and loss of each probe, `(probes, 2)`, on the rows of all ranks, read once."""
    sums = np.zeros((len(probes), 2))
    for span, x in rows.blocks():
        for i, probe in enumerate(probes):
            sums[i] += tally(to_numpy(probe.predict_log_proba(x)), codes[span])[:2]
    sums, count = communicator.all_reduce(sums, np.asarray(float(rows.n)))
    return sums / count
