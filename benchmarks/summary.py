"""What the table says: times to a target, profiles, and the targets we set ourselves."""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass
from math import exp, inf, isfinite, log
from statistics import median

from benchmarks.competitor import all_competitors
from benchmarks.run import CERTIFIED, REFERENCES
from benchmarks.table import Row, first

OURS = "convexprobe "
SPEEDUP, SLOWEST = 10.0, 0.9
PRECONDITIONED = ("convexprobe sag", "convexprobe svrg", "convexprobe katyusha")

Runs = dict[tuple[str, str], list[Row]]
"""Rows by case and competitor."""


@dataclass(frozen=True)
class Reached:
    """Until a target: seconds and passes, or the limit where the run was cut off.

    Attributes:
        seconds, passes: infinite where it did not arrive.
        limit: seconds it was given.
        status: how the run ended.
    """

    seconds: float
    passes: float
    limit: float
    status: str

    @property
    def text(self) -> str:
        """For a table."""
        if isfinite(self.seconds):
            return f"{self.seconds:.3g}"
        if self.status == "out of time":
            return f"> {self.limit:.3g}"
        return self.status.split(":")[0] if self.status != "ended" else "stalled"


def by_run(rows: list[Row]) -> Runs:
    """Grouped, in the order of the table."""
    runs: Runs = defaultdict(list)
    for row in rows:
        runs[row.case, row.competitor].append(row)
    return dict(runs)


def reached(run: list[Row], target: float) -> Reached:
    """The faster precision; the median of repeats."""
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
    """In the order of the table."""
    return list(dict.fromkeys(case for case, _ in runs))


def competitors(runs: Runs) -> list[str]:
    """Those that ran at all."""
    ran = [name for (_, name), run in runs.items() if any(isfinite(row.seconds) for row in run)]
    return list(dict.fromkeys(ran))


def reference(runs: Runs) -> str:
    """The solver that the others are compared with."""
    names = {name for _, name in runs}
    return next((name for name in REFERENCES if name in names), "")


def profile(runs: Runs, target: float, measure: str) -> dict[str, list[float]]:
    """By competitor, for each case its `measure` ("seconds" or "passes") over the least of all."""
    out: dict[str, list[float]] = {name: [] for name in competitors(runs)}
    for case in cases(runs):
        found = {
            name: getattr(reached(runs[case, name], target), measure)
            if (case, name) in runs
            else inf
            for name in out
        }
        least = min(found.values())
        for name, value in found.items():
            out[name].append(value / least if isfinite(least) else inf)
    return out


@dataclass(frozen=True)
class Ratio:
    """The best peer's seconds over ours in a case; `bound` where it is only known to be above."""

    case: str
    ours: float
    theirs: float
    peer: str
    bound: bool

    @property
    def value(self) -> float:
        """Theirs over ours."""
        return self.theirs / self.ours


def ratios(runs: Runs, target: float) -> tuple[list[Ratio], list[str]]:
    """Of every case where both ran; and the cases where ours did not arrive."""
    found, failed = [], []
    for case in cases(runs):
        peers = {
            n: reached(run, target)
            for (c, n), run in runs.items()
            if c == case and not n.startswith(OURS)
        }
        peers = {n: r for n, r in peers.items() if any(isfinite(x.seconds) for x in runs[case, n])}
        if (case, reference(runs)) not in runs or not peers:
            continue
        ours = reached(runs[case, reference(runs)], target)
        if not isfinite(ours.seconds):
            failed.append(case)
            continue
        best = min(peers, key=lambda n: peers[n].seconds)
        arrived = isfinite(peers[best].seconds)
        # Nobody arrived: as if one had at the limit.
        theirs = peers[best].seconds if arrived else max(r.limit for r in peers.values())
        found.append(Ratio(case, ours.seconds, theirs, best if arrived else "nobody", not arrived))
    return found, failed


def geometric_mean(values: list[float]) -> float:
    """Of positive numbers."""
    return exp(sum(map(log, values)) / len(values))


@dataclass(frozen=True)
class Verdict:
    """A target, what was measured, and whether that meets it (None: cannot be told)."""

    target: str
    measured: str
    met: bool | None
    misses: tuple[str, ...] = ()


def speed(runs: Runs, target: float = 1e-5) -> list[Verdict]:
    """Ten times faster than the best peer, and nowhere slower."""
    name = reference(runs).removeprefix(OURS)
    found, failed = ratios(runs, target)
    if not found:
        return [Verdict(f"{name} against the best peer at {target:g}", "no case with both", None)]
    mean, low = geometric_mean([r.value for r in found]), min(found, key=lambda r: r.value)
    bounds = sum(r.bound for r in found)
    at_least = "at least " if bounds else ""
    return [
        Verdict(
            f"{name} at least {SPEEDUP:g} times faster than the best competitor, geometric mean at "
            f"{target:g}",
            f"{at_least}{mean:.2f} over {len(found)} cases, in {bounds} of which no competitor "
            "arrived and counts as if at its limit",
            mean >= SPEEDUP and not failed,
            tuple(f"{name} did not arrive: {case}" for case in failed),
        ),
        Verdict(
            f"{name} in no case slower than {SLOWEST:g} of the best competitor",
            f"lowest ratio {low.value:.2f} ({low.case}, {low.peer})",
            low.value >= SLOWEST and not failed,
            tuple(f"{r.case}: {r.value:.2f} against {r.peer}" for r in found if r.value < SLOWEST),
        ),
    ]


def fewer_passes(runs: Runs, name: str, target: float = 1e-3) -> Verdict:
    """A preconditioned stochastic solver against every plain one, in passes."""
    plain = {peer for peer, c in all_competitors().items() if c.stochastic}
    misses, count = [], 0
    for case in cases(runs):
        peers = {p: reached(runs[case, p], target).passes for p in plain if (case, p) in runs}
        if (case, name) not in runs or not peers:
            continue
        count += 1
        ours, best = reached(runs[case, name], target).passes, min(peers, key=lambda p: peers[p])
        if not ours < peers[best]:
            misses.append(f"{case}: {ours:.1f} against {peers[best]:.1f} of {best}")
    return Verdict(
        f"{name.removeprefix(OURS)} (preconditioned) reaches {target:g} in fewer passes than any "
        "plain stochastic competitor in every case",
        f"in {count - len(misses)} of {count} cases" if count else "not run",
        not misses if count else None,
        tuple(misses),
    )


def certified(runs: Runs) -> Verdict:
    """Every solver of ours certifies 1e-4 within its budget, or by how much it misses."""
    misses, count = [], 0
    for (case, name), run in runs.items():
        if not name.startswith(OURS) or name.endswith(" plain"):
            continue
        count += 1
        gap = min((row.gap for row in run if row.gap == row.gap), default=inf)
        if gap > CERTIFIED:
            misses.append(f"{name.removeprefix(OURS)}, {case}: {gap:.1e} ({run[-1].status})")
    return Verdict(
        f"every solver certifies a relative gap of {CERTIFIED:g} in its budget",
        f"in {count - len(misses)} of {count} runs" if count else "not run",
        not misses if count else None,
        tuple(misses),
    )


def verdicts(runs: Runs) -> list[Verdict]:
    """All targets."""
    stochastic = [fewer_passes(runs, name) for name in PRECONDITIONED]
    return [*speed(runs), *stochastic, certified(runs)]


def word(met: bool | None) -> str:
    """For a table."""
    return {True: "met", False: "missed", None: "not measured"}[met]


def markdown(runs: Runs) -> str:
    """The targets, then for each case ours against the best competitor."""
    lines = ["| target | measured | |", "|---|---|---|"]
    lines += [f"| {v.target} | {v.measured} | {word(v.met)} |" for v in verdicts(runs)]
    for target in (1e-3, 1e-5):
        lines += ["", f"Seconds to {target:g}:", "", "| case | ours | best competitor | ratio |"]
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
