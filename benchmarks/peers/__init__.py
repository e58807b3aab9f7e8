"""Peers: the solvers compared, ours included. Every file here defines `PEERS`, a `Peer` by name.

A new file is found by itself. Its docstring, shown in the report, says how its objective is scaled
to ours and how its passes are counted.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from importlib.util import find_spec

import numpy as np

from benchmarks.harness import modules
from benchmarks.harness.cases import Task
from benchmarks.harness.recorder import Meter, Recorder

TOLS = tuple(2.0**-i for i in range(-3, 38))
"""Tolerances from loose to tight, for solvers whose `tol` bounds a gradient or a gap."""


@dataclass(frozen=True)
class Peer:
    """One way to solve a task.

    Attributes:
        run: solves the task and hands its iterates to the recorder. It must not catch the
            recorder's exceptions: they end the run.
        package: the module that it needs, which may not be installed.
        refuses: returns why the peer cannot solve a task, or None if it can.
        family: whether it solves all penalties of a task at once.
        stochastic: whether it is a plain stochastic method, which our preconditioned ones have to
            beat in passes.
        fit: solves the task with the solver's own stopping rule and returns coefficients, given one
            of `settings`: what a user sets, who has no judge at hand. None: not to be had.
        settings: values of what the user sets, from loose to tight.
    """

    run: Callable[[Task, Recorder], None]
    package: str = "convexprobe"
    refuses: Callable[[Task], str | None] = lambda task: None
    family: bool = False
    stochastic: bool = False
    fit: Callable[[Task, float, Meter], np.ndarray] | None = None
    settings: tuple[float, ...] = TOLS

    def why_not(self, task: Task) -> str | None:
        """Return why the peer cannot run on this task, or None if it can."""
        if find_spec(self.package) is None:
            return f"not installed: {self.package}"
        return self.refuses(task)


def all_peers() -> dict[str, Peer]:
    """Return all peers by name, those that solve families (ours) first."""
    peers = {name: peer for file in modules(__name__) for name, peer in file.PEERS.items()}
    return dict(sorted(peers.items(), key=lambda item: not item[1].family))
