"""The parts of a solve, counted at any size.

The package's own functions are called with arrays without numbers (`counter`), so that what is
counted is what would run: the blocks that an accelerator gets, the solver and the preconditioners
that `auto` takes for the size. What depends on numbers is a script, `Script`, as solves of real
rows go.
"""

from __future__ import annotations

from collections import Counter as Counts
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any
from unittest.mock import patch

import torch

from benchmarks.roofline.counter import Counter, Operation
from convexprobe.activations.source import Rows
from convexprobe.arrays import split_products
from convexprobe.arrays.backend import generator
from convexprobe.problem import softmax
from convexprobe.problem.certificate import lower_bound
from convexprobe.problem.objective import Problem
from convexprobe.problem.row_sample import Sample
from convexprobe.solvers.auto import Auto
from convexprobe.solvers.line_search import line_search
from convexprobe.solvers.loop import solve
from convexprobe.solvers.solution import Record

Parts = dict[str, list[Operation]]


@dataclass(frozen=True)
class Size:
    """A problem: `n` rows of `d` features in a dtype of torch, and `k` classes."""

    n: int
    d: int
    k: int
    dtype: str = "bfloat16"

    def __str__(self) -> str:
        return f"{self.n} x {self.d} x {self.k}, {self.dtype}"

    def problem(self) -> Problem:
        """The problem without numbers."""
        x = torch.empty((self.n, self.d), dtype=getattr(torch, self.dtype), device="meta")
        labels = torch.empty(self.n, dtype=torch.int64, device="meta")
        return Problem(Rows(x), labels, 1e-3, classes=self.k)


@dataclass
class Script:
    """What the host is told when it asks for numbers: how a solve goes.

    The first step that a line search tries is good, factorisations succeed, all eigenvectors count,
    objectives fall, and nothing is certified before the passes are spent.

    Attributes:
        classes: `k`; they are equally frequent.
        inner: inner iterations of a Newton step.
        constant: whether the first point to evaluate is the constant classifier.
        stale: whether the loss falls far enough for a preconditioner to be rebuilt.
    """

    classes: int
    inner: int = 8
    constant: bool = False
    stale: bool = False
    _objective: float = 1e-6
    _asked: Counts[str] = field(default_factory=Counts)

    def __call__(self, asking: str, names: Mapping[str, Any]) -> Any:
        """What the function of a name, with its variables, is told."""
        times = self._asked[asking]
        self._asked[asking] += 1
        match asking:
            case "evaluate":  # whether a weight is not 0
                return times > 0 or not self.constant
            case "inverse_spd" | "cholesky" | "_search_on_sample":  # whether it failed
                return False
            case "conjugate_gradient":  # whether a task goes on
                return names.get("i", times % self.inner) < self.inner - 1
            case "has_fallen":
                return self.stale
            case "_eigenbasis":  # eigenvectors that count
                return 2**31
            case "draw_rows":  # rows, or what each may add
                return names["size"]
            case "_moments":  # frequencies
                return 1.0 / self.classes
            case "update" | "solve" | "read":  # objectives and their rounding
                self._objective *= 0.25 if self.stale else 0.999
                value = self._objective
                if asking != "read":
                    return value
                return value, value, 0.0, 0.0, value, 0.0  # with loss, rounding, doubt, gap, bound
        return 1.0


PASSES = 12.0
"""Passes of a cold solve that is counted whole."""


@torch.library.custom_op("roofline::row_terms", mutates_args=())
def row_terms(
    z: torch.Tensor, labels: torch.Tensor, weights: torch.Tensor | None = None
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    """What each row adds, as one kernel: it reads the logits once, and writes the residuals."""
    residual, loss, entropy, uncertainty, largest = softmax.row_terms(z, labels, weights)
    return residual, loss, entropy, uncertainty, largest.clone()


@row_terms.register_fake
def _(
    z: torch.Tensor, labels: torch.Tensor, weights: torch.Tensor | None = None
) -> tuple[torch.Tensor, ...]:
    shape = (z.shape[0], z.shape[2])
    return torch.empty_like(z), *(z.new_empty(shape) for _ in range(4))


@contextmanager
def proven() -> Iterator[None]:
    """Kernels that have to prove themselves on a device have done so: products of rows in 16 bits
    with the first way there is, and the inner block of an evaluation as one kernel."""
    with (
        patch.object(split_products, "DEVICES", ("meta",)),
        patch.object(split_products, "_chosen", {}),
        patch.object(split_products, "fastest", lambda a, b: split_products.WAYS[b.dtype][0]),
        patch.object(softmax, "fused_row_terms", lambda plain, *arrays: row_terms(*arrays)),
    ):
        yield


def count_pass(size: Size) -> Parts:
    """What comes before a solve, an evaluation, and a line search, which is one pass as well."""
    parts: Parts = {}
    script = Script(size.k)
    with proven(), Counter(script) as counter:
        problem = size.problem()
        parts["moments"] = counter.take()
        w = torch.empty((1, problem.p), dtype=torch.float64, device="meta")
        at = problem.evaluate(w, keep=True)
        parts["evaluation"] = counter.take()
        line_search(problem, at, w)
        parts["line search"] = counter.take()
    return parts


def count_solve(size: Size, passes: float = PASSES, rebuilt: float = 0.5) -> Parts:
    """A cold solve of so many passes by `auto`, whole, and each of its steps.

    It ends as certified solves do: with one bound that is repaired on a sample. The loss falls far
    enough for preconditioners to be rebuilt in the first part `rebuilt` of the passes.
    """
    script = Script(size.k, constant=True, stale=True)
    parts: Parts = {}

    def after_step(record: Record) -> None:
        parts["start" if record.step == 0 else f"step {record.step}"] = counter.take()
        script.stale = record.passes < rebuilt * passes

    with proven(), Counter(script) as counter:
        problem = size.problem()
        solution = solve(problem, Auto(), tol=0.0, max_passes=passes, callbacks=[after_step])
        parts["end"] = counter.take()
        at = solution.state.at
        sample = Sample.draw(problem, at, min(max(2500, size.n // 20), size.n), generator(0))
        lower_bound(problem, at, sample)
        parts["repaired bound"] = counter.take()
    return parts
