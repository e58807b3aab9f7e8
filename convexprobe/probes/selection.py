"""Choose a layer's probe: of all that were fitted, the one that does best on held-out rows."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from convexprobe.activations.source import Source
from convexprobe.arrays.backend import cast
from convexprobe.metrics.score import score
from convexprobe.probes.labels import Labels
from convexprobe.probes.logits import predicted, tallies
from convexprobe.probes.options import SCORING
from convexprobe.probes.probe import PathPoint, Probe
from convexprobe.probes.splits import Split
from convexprobe.probes.validation import ValidationRows
from convexprobe.problem.objective import Problem
from convexprobe.solvers.path import Fitted


@dataclass(frozen=True)
class Judge:
    """How a layer's solutions do on held-out rows.

    Attributes:
        problem: a family with one task for each split; its own penalties are not used.
        labels: of all concepts.
        weights: of this rank's rows, host `(rows,)` or None, for every concept; held-out rows are
            scored by theirs.
        splits: the rows that each task was fitted to.
        validation: rows to choose on; None for the rows that the splits hold out.
        where: what messages call the layer.
        seen: scores by task and penalty, of which a path has one solution each.
    """

    problem: Problem
    labels: Labels
    weights: list[np.ndarray | None]
    splits: list[Split]
    validation: ValidationRows | None
    where: str
    seen: dict[tuple[int, float], np.ndarray] = field(default_factory=dict)

    def scores(self, task: int, solutions: list[Fitted]) -> np.ndarray | None:
        """Error and loss (nats) of a task's solutions, `(solutions, 2)`; None without such rows.

        Raises:
            ValueError: on every rank, held-out rows whose logits overflow.
        """
        new = [s for s in solutions if (task, s.l2) not in self.seen]
        if new and (found := self._scores(task, new)) is not None:
            self.seen.update({(task, s.l2): score for s, score in zip(new, found, strict=True)})
        known = [self.seen[task, s.l2] for s in solutions if (task, s.l2) in self.seen]
        return np.stack(known) if len(known) == len(solutions) else None

    def _scores(self, task: int, solutions: list[Fitted]) -> np.ndarray | None:
        if (held := self._held(task)) is None:
            return None
        probes = [self.probe(task, solution) for solution in solutions]
        with self.problem.communicator.raise_together():
            sums = np.stack(tallies(probes, *held, self.where))
        (sums,) = self.problem.communicator.all_reduce(sums)
        return sums[:, :2] / sums[:, 2:].sum(axis=1, keepdims=True)

    def _held(self, task: int) -> tuple[Source, np.ndarray, np.ndarray | None] | None:
        """A task's held-out rows, their classes and their weights, if there are any."""
        split = self.splits[task]
        if self.validation is not None:
            own = self.validation
            return own.rows, own.codes[split.concept], own.weights[split.concept]
        if split.held is None:
            return None
        codes, weights = self.labels.own_codes[split.concept], self.weights[split.concept]
        rows = self.problem.rows.subset(split.held)
        return rows, codes[split.held], None if weights is None else weights[split.held]

    def _measured(self, task: int, solutions: list[Fitted], measure: str) -> list[float]:
        """Another measure of a task's solutions on its held-out rows, the lower the better."""
        held, sign = self._held(task), 1.0 if SCORING[measure] == "lowest" else -1.0
        if held is None:
            return [np.nan] * len(solutions)
        rows, codes, weights = held
        values = []
        for solution in solutions:
            said = predicted(
                self.probe(task, solution), rows, codes, weights,
                self.problem.communicator, self.where,
            )  # fmt: skip
            values.append(sign * getattr(score(said), measure))
        return values

    def loss(self, task: int, solution: Fitted) -> float:
        """The loss of one solution on its held-out rows, nats."""
        scores = self.scores(task, [solution])
        return np.inf if scores is None else float(scores[0, 1])

    def choose(
        self, concept: int, solutions: list[list[Fitted]], scoring: str
    ) -> tuple[Probe, Fitted]:
        """A concept's probe at the penalty that does best, with its path; and its solution.

        Scores are averaged over the concept's splits. If those hold no rows out, there is one
        penalty. `scoring` is a name in `SCORING`; ties, and what is not defined, go by the error
        and then by the loss.
        """
        mine = [i for i, split in enumerate(self.splits) if split.concept == concept]
        scores = [score for i in mine if (score := self.scores(i, solutions[i])) is not None]
        last = solutions[mine[-1]]
        if not scores:
            return self.probe(mine[-1], last[0]), last[0]
        mean = np.mean(scores, axis=0).tolist()
        if scoring in ("error", "loss"):
            first = [values[scoring == "loss"] for values in mean]
        else:
            first = np.mean([self._measured(i, solutions[i], scoring) for i in mine], axis=0)
        first = np.where(np.isnan(first), np.inf, first).tolist()
        best = min(range(len(mean)), key=lambda v: (first[v], *mean[v]))
        path = tuple(
            PathPoint(**solution.known(), validation_error=error, validation_loss=loss)
            for solution, (error, loss) in zip(last, mean, strict=True)
        )
        probe = replace(
            self.probe(mine[-1], last[best]),
            validation_error=mean[best][0],
            validation_errors=tuple(float(score[best, 0]) for score in scores),
            passes=max(s.passes for i in mine for s in solutions[i]),
            seconds=max(s.seconds for i in mine for s in solutions[i]),
            path=path if len(path) > 1 else (),
        )
        return probe, last[best]

    def probe(self, task: int, solution: Fitted) -> Probe:
        """The probe of one task's solution."""
        classes = self.labels.classes[self.splits[task].concept]
        return make_probe(self.problem, classes, task, solution)


def make_probe(problem: Problem, classes: tuple[Any, ...], task: int, solution: Fitted) -> Probe:
    """The probe of one task's solution, without the classes that only other concepts have."""
    xp, k = problem.xp, len(classes)
    weights, bias = problem.split(cast(solution.w, problem.dtype)[None, :])
    bias = xp.where(problem.frequency[task, :] > 0, bias[0, :], -xp.inf)
    return Probe(
        **solution.known(),
        weights=xp.asarray(weights[0, :k, :], copy=True),
        bias=xp.asarray(bias[:k], copy=True),
        classes=classes,
        validation_error=None,
        rows=float(problem.host_total[task if len(problem.host_total) > 1 else 0]),
    )
