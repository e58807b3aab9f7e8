"""Summarise the results table: times to a target, profiles, and the verdicts on our targets."""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass
from math import inf, isfinite
from statistics import geometric_mean, median

from benchmarks.harness.table import Row, first
from benchmarks.harness.targets import CERTIFIED, OURS, PRECONDITIONED, REFERENCES, SLOWEST, SPEEDUP
from benchmarks.peers import all_peers

Runs = dict[tuple[str, str], list[Row]]
"""Rows by case and peer."""


@dataclass(frozen=True)
class Reached:
    """What a peer spent to reach a target in a case.

    Attributes:
        seconds, passes: infinite if it did not reach the target.
        limit: seconds that the run was given.
        status: how the run ended.
    """

    seconds: float
    passes: float
    limit: float
    status: str

    @property
    def text(self) -> str:
        """The seconds, or the reason why there are none, for a table cell."""
        if isfinite(self.seconds):
            return f"{self.seconds:.3g}"
        if self.status == "out of time":
            return f"> {self.limit:.3g}"
        return self.status.split(":")[0] if self.status != "ended" else "stalled"


def by_run(rows: list[Row]) -> Runs:
    """Split the rows by case and peer, in the order of the table."""
    runs: Runs = defaultdict(list)
    for row in rows:
        runs[row.case, row.peer].append(row)
    return dict(runs)


def reached(run: list[Row], target: float) -> Reached:
    """Return the median of the repeats, in whichever precision was faster."""
    best = Reached(inf, inf, run[-1].limit, run[-1].status)
    for dtype in {row.dtype for row in run}:
        each = []
        for repeat in {row.repeat for row in run}:
            hit = first([r for r in run if (r.dtype, r.repeat) == (dtype, repeat)], target)
            each.append((hit.seconds, hit.passes) if hit else (inf, inf))
        seconds, passes = (median(values) for values in zip(*each, strict=True))
        if seconds < best.seconds:
            best = Reached(seconds, passes, run[-1].limit, run[-1].status)
    return best


def cases(runs: Runs) -> list[str]:
    """Return the names of the cases, in the order of the table."""
    return list(dict.fromkeys(case for case, _ in runs))


def peer_names(runs: Runs) -> list[str]:
    """Return the peers that ran on at least one case."""
    ran = [name for (_, name), run in runs.items() if any(isfinite(row.seconds) for row in run)]
    return list(dict.fromkeys(ran))


def reference(runs: Runs) -> str:
    """Return our solver that the others are compared with, or "" if it has not run."""
    names = {name for _, name in runs}
    return next((name for name in REFERENCES if name in names), "")


def profile(runs: Runs, target: float, measure: str) -> dict[str, list[float]]:
    """Return, by peer, for each case its `measure` over the least measure of all peers.

    `measure` is "seconds" or "passes"; the ratio is infinite if the target was not reached.
    """
    out: dict[str, list[float]] = {name: [] for name in peer_names(runs)}
    for case in cases(runs):
        spent = {
            name: getattr(reached(runs[case, name], target), measure)
            if (case, name) in runs
            else inf
            for name in out
        }
        least = min(spent.values())
        for name, value in spent.items():
            out[name].append(value / least if isfinite(least) else inf)
    return out


@dataclass(frozen=True)
class Ratio:
    """Seconds of our reference solver and of the best other peer in one case.

    `bound` is true if no other peer arrived: `theirs` is then the limit, a lower bound.
    """

    case: str
    ours: float
    theirs: float
    peer: str
    bound: bool

    @property
    def value(self) -> float:
        """Their seconds over ours: above 1, ours is faster."""
        return self.theirs / self.ours


def ratios(runs: Runs, target: float) -> tuple[list[Ratio], list[str]]:
    """Return a ratio for each case where both ran, and the cases where ours did not arrive."""
    compared, failed = [], []
    for case in cases(runs):
        others = {
            name: reached(run, target)
            for (c, name), run in runs.items()
            if c == case and not name.startswith(OURS) and any(isfinite(row.seconds) for row in run)
        }
        if (case, reference(runs)) not in runs or not others:
            continue
        ours = reached(runs[case, reference(runs)], target)
        if not isfinite(ours.seconds):
            failed.append(case)
            continue
        best = min(others, key=lambda n: others[n].seconds)
        arrived = isfinite(others[best].seconds)
        # If nobody arrived, count as if one had at the limit.
        theirs = others[best].seconds if arrived else max(r.limit for r in others.values())
        peer = best if arrived else "nobody"
        compared.append(Ratio(case, ours.seconds, theirs, peer, not arrived))
    return compared, failed


@dataclass(frozen=True)
class Verdict:
    """A target, what was measured, whether that meets it (None: not measured), and each miss."""

    target: str
    measured: str
    met: bool | None
    misses: tuple[str, ...] = ()


def speed(runs: Runs, target: float = 1e-5) -> list[Verdict]:
    """Judge our speed: ten times faster than the best other peer on average, nowhere slower."""
    name = reference(runs).removeprefix(OURS)
    compared, failed = ratios(runs, target)
    if not compared:
        return [Verdict(f"{name} against the best peer at {target:g}", "no case with both", None)]
    mean, low = geometric_mean([r.value for r in compared]), min(compared, key=lambda r: r.value)
    bounds = sum(r.bound for r in compared)
    at_least = "at least " if bounds else ""
    return [
        Verdict(
            f"{name} at least {SPEEDUP:g} times faster than the best peer, geometric mean at "
            f"{target:g}",
            f"{at_least}{mean:.2f} over {len(compared)} cases, in {bounds} of which no peer "
            "arrived and counts as if at its limit",
            mean >= SPEEDUP and not failed,
            tuple(f"{name} did not arrive: {case}" for case in failed),
        ),
        Verdict(
            f"{name} in no case slower than {SLOWEST:g} of the best peer",
            f"lowest ratio {low.value:.2f} ({low.case}, {low.peer})",
            low.value >= SLOWEST and not failed,
            tuple(
                f"{r.case}: {r.value:.2f} against {r.peer}" for r in compared if r.value < SLOWEST
            ),
        ),
    ]


def counted(target: str, misses: list[str], count: int, what: str) -> Verdict:
    """Return the verdict on a target that each of `count` cases or runs should meet."""
    measured = f"in {count - len(misses)} of {count} {what}" if count else "not run"
    return Verdict(target, measured, not misses if count else None, tuple(misses))


def fewer_passes(runs: Runs, name: str, target: float = 1e-3) -> Verdict:
    """Judge whether our preconditioned stochastic solver `name` needs the fewest passes."""
    plain = {other for other, peer in all_peers().items() if peer.stochastic}
    misses, count = [], 0
    for case in cases(runs):
        passes = {p: reached(runs[case, p], target).passes for p in plain if (case, p) in runs}
        if (case, name) not in runs or not passes:
            continue
        count += 1
        ours, best = reached(runs[case, name], target).passes, min(passes, key=lambda p: passes[p])
        if not ours < passes[best]:
            misses.append(f"{case}: {ours:.1f} against {passes[best]:.1f} of {best}")
    target_text = (
        f"{name.removeprefix(OURS)} (preconditioned) reaches {target:g} in fewer passes than any "
        "plain stochastic peer in every case"
    )
    return counted(target_text, misses, count, "cases")


def certified(runs: Runs) -> Verdict:
    """Judge whether every solver of ours certifies a gap of 1e-4 in its budget."""
    misses, count = [], 0
    for (case, name), run in runs.items():
        if not name.startswith(OURS) or name.endswith(" plain"):
            continue
        count += 1
        gap = min((row.gap for row in run if row.gap == row.gap), default=inf)
        if gap > CERTIFIED:
            misses.append(f"{name.removeprefix(OURS)}, {case}: {gap:.1e} ({run[-1].status})")
    target = f"every solver certifies a relative gap of {CERTIFIED:g} in its budget"
    return counted(target, misses, count, "runs")


def verdicts(runs: Runs) -> list[Verdict]:
    """Judge all targets."""
    stochastic = [fewer_passes(runs, name) for name in PRECONDITIONED]
    return [*speed(runs), *stochastic, certified(runs)]


def word(met: bool | None) -> str:
    """Return the verdict as a word."""
    return {True: "met", False: "missed", None: "not measured"}[met]


def markdown(runs: Runs) -> str:
    """Write the verdicts, then for each case our time against the best other peer's."""
    lines = ["| target | measured | |", "|---|---|---|"]
    lines += [f"| {v.target} | {v.measured} | {word(v.met)} |" for v in verdicts(runs)]
    for target in (1e-3, 1e-5):
        lines += ["", f"Seconds to {target:g}:", "", "| case | ours | best peer | ratio |"]
        lines += ["|---|---|---|---|"]
        for r in ratios(runs, target)[0]:
            sign = "> " if r.bound else ""
            lines.append(
                f"| {r.case} | {r.ours:.3g} | {sign}{r.theirs:.3g} ({r.peer}) "
                f"| {sign}{r.value:.2g} |"
            )
    for verdict in verdicts(runs):
        if verdict.misses:
            lines += ["", f"Missed: {verdict.target}", *(f"- {miss}" for miss in verdict.misses)]
    return "\n".join(lines)
