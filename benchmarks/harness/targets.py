"""The targets that we set ourselves, and a line that prints a measured number beside a target."""

from __future__ import annotations

OURS = "convexprobe "
"""Prefix of the names of our own solvers; all other peers are "theirs"."""

REFERENCES = (OURS + "auto", OURS + "newton-cg")
"""Our reference solver is the first of these that exists. Its time sets everybody's limit."""

TARGETS = (1e-3, 1e-4, 1e-5)
"""Suboptimalities, relative to `H(Y)`, whose times are reported. A run ends at the last one."""

SPEEDUP, SLOWEST = 10.0, 0.9
"""Targets for the best peer's time over ours: the geometric mean, and the lowest of all cases."""

PRECONDITIONED = (OURS + "sag", OURS + "svrg", OURS + "katyusha")
"""Solvers that should need fewer passes than any plain stochastic method."""

CERTIFIED = 1e-4
"""Gap, relative to `H(Y)`, that each of our solvers should certify."""


def verdict(what: str, value: float, target: float, *, at_most: bool) -> None:
    """Print the value, the target, and whether the value meets it."""
    word = "met" if (value <= target if at_most else value >= target) else "missed"
    bound = "at most" if at_most else "at least"
    print(f"  {what}: {value:.2f}, target {bound} {target:.3g}, {word}", flush=True)
