"""The table of the regimes with the targets, and the figure."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from io import BytesIO
from math import isfinite, nan
from statistics import geometric_mean

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt

from benchmarks.harness.targets import OURS
from benchmarks.regimes.cases import REGIMES
from benchmarks.regimes.default_job import WORSE

NAMES = {**REGIMES, "f": "the default job, choice of the penalty included"}


@dataclass(frozen=True)
class Compared:
    """One case: ours, the best peer and scikit-learn's best, each a row of the table, or None."""

    case: str
    ours: dict
    best: dict | None
    sklearn: dict | None

    def ratio(self, other: dict | None) -> float:
        """Their CPU seconds over ours: above 1, ours is faster."""
        return nan if other is None else number(other, "seconds") / number(self.ours, "seconds")


def number(row: dict, field: str) -> float:
    """A field of a row, NaN where it is empty."""
    return float(row.get(field) or nan)


def name_of_ours(regime: str) -> str:
    """Which of ours is compared: toys are NumPy arrays to everybody."""
    return OURS + ("numpy" if regime == "e" else "torch")


def compared(rows: list[dict], regime: str) -> list[Compared]:
    """The cases of a regime, in the order of the table."""
    name = name_of_ours(regime)
    out = []
    for case in dict.fromkeys(row["case"] for row in rows if row["regime"] == regime):
        mine = [row for row in rows if row["case"] == case]
        ours = next(row for row in mine if row["who"] == name)
        others = [r for r in mine if not r["who"].startswith(OURS)
                  and isfinite(number(r, "seconds"))]  # fmt: skip
        others.sort(key=lambda row: number(row, "seconds"))
        sklearn = [row for row in others if row["who"].startswith("sklearn")]
        out.append(Compared(case, ours, next(iter(others), None), next(iter(sklearn), None)))
    return out


@dataclass(frozen=True)
class Verdict:
    """A target of a regime, what was measured, and whether that meets it."""

    target: str
    measured: str
    met: bool | None

    @property
    def word(self) -> str:
        """The verdict as a word."""
        return {True: "met", False: "**missed**", None: "not measured"}[self.met]


def faster(pairs: list[tuple[Compared, float]], target: str, least: float) -> Verdict:
    """A geometric mean of ratios of at least `least`."""
    values = [ratio for _, ratio in pairs if isfinite(ratio)]
    if not values:
        return Verdict(target, "no case with both", None)
    mean = geometric_mean(values)
    return Verdict(target, f"{mean:.2f} over {len(values)} cases", mean >= least)


def nowhere(
    pairs: list[tuple[Compared, float]], target: str, least: float, what: str = "lowest ratio"
) -> Verdict:
    """No ratio below `least`."""
    pairs = [pair for pair in pairs if isfinite(pair[1])]
    if not pairs:
        return Verdict(target, "no such case", None)
    low, ratio = min(pairs, key=lambda pair: pair[1])
    below = sum(value < least for _, value in pairs)
    return Verdict(target, f"{what} {ratio:.2f} ({low.case}); below in {below} of {len(pairs)}",
                   below == 0)  # fmt: skip


def verdicts(regime: str, cases: list[Compared], before: dict[str, dict]) -> Iterator[Verdict]:
    """The targets of a regime."""
    sklearn = [(c, c.ratio(c.sklearn)) for c in cases]
    earlier = [(c, c.ratio(before.get(c.case))) for c in cases]
    if regime == "a":
        yield faster(sklearn, "3 times faster than scikit-learn's best", 3.0)
        slow = [p for p in sklearn if p[0].sklearn and number(p[0].sklearn, "seconds") > 0.02]
        yield nowhere(slow, "no case slower where scikit-learn needs more than 20 ms", 1.0)
        fast = [p for p in sklearn if p not in slow]
        yield nowhere(fast, "at most twice its time where it needs less", 0.5)
    if regime in "bc":
        lag = [number(c.ours, "passes") / number(c.ours, "passes_true") for c in cases]
        lag = [value for value in lag if isfinite(value)]
        mean = geometric_mean(lag) if lag else nan
        yield Verdict("passes to certified / passes to true: at most 2 in the geometric mean",
                      f"{mean:.2f} over {len(lag)} cases, most {max(lag, default=nan):.2f}",
                      mean <= 2 if lag else None)  # fmt: skip
        most = max(cases, key=lambda c: number(c.ours, "passes"))
        passes = number(most.ours, "passes")
        above = sum(number(c.ours, "passes") > 150 for c in cases)
        measured = f"most {passes:.0f} ({most.case}); above in {above}"
        yield Verdict("no fit above 150 passes", measured, passes <= 150)
        small = [p for p in earlier if number(p[0].ours, "strength") <= 1.01e-4]
        yield faster(small, "4 times faster than before where l2 is at most 1e-4", 4.0)
        yield nowhere(earlier, "nowhere slower than before", 1.0)
    if regime == "d":
        torch = [(c, c.ratio(c.best)) for c in cases if number(c.ours, "k") == 1000]
        yield nowhere(torch, "1 000 classes: twice as fast as the best peer", 2.0)
    if regime == "e":
        yield nowhere(sklearn, "at most 1.5 times scikit-learn's best", 1 / 1.5)
    if regime == "f":
        yield faster(sklearn, "4 times faster than scikit-learn's path", 4.0)
        yield faster(earlier, "8 times faster than before", 8.0)
        worse = [(c, number(c.ours, "error") - number(c.sklearn, "error"))
                 for c in cases if c.sklearn]  # fmt: skip
        bad = [f"{c.case}: {100 * more:+.2f} %" for c, more in worse if more > WORSE]
        most_more = max((more for _, more in worse), default=nan)
        yield Verdict(f"never a worse choice (fresh rows, {100 * WORSE:g} % more errors)",
                      "; ".join(bad) or f"at most {100 * most_more:+.2f} %", not bad)  # fmt: skip
    uncertified = [c.case for c in cases if c.ours["status"] != "CERTIFIED"]
    yield Verdict("every fit certified", "; ".join(uncertified) or f"all {len(cases)}",
                  not uncertified)  # fmt: skip


def cell(row: dict | None) -> str:
    """Seconds and the name of a peer, for a table cell."""
    return "none arrived" if row is None else f"{number(row, 'seconds'):.3g} ({row['who']})"


def markdown(rows: list[dict], before: list[dict], skipped: list[str]) -> str:
    """The summary by regime, the targets, then every case."""
    earlier = {row["case"]: row for row in before if row["who"] == name_of_ours(row["regime"])}
    lines = ["| regime | cases | best peer / ours, geometric mean | lowest | "
             "scikit-learn's best / ours |", "|---|---|---|---|---|"]  # fmt: skip
    tail: list[str] = []
    for regime, name in NAMES.items():
        cases = compared(rows, regime)
        if not cases:
            continue
        ratios = [(c.ratio(c.best), c) for c in cases if c.best is not None]
        theirs = [c.ratio(c.sklearn) for c in cases if c.sklearn is not None]
        low = min(ratios, key=lambda pair: pair[0], default=None)
        lowest = f"{low[0]:.2f}: {low[1].case}, {low[1].best['who']}" if low else ""
        lines.append(
            f"| ({regime}) {name} | {len(cases)} "
            f"| {geometric_mean([r for r, _ in ratios]) if ratios else nan:.2f} "
            f"| {lowest} "
            f"| {geometric_mean(theirs) if theirs else nan:.2f} |"
        )
        tail += [f"| ({regime}) | {v.target} | {v.measured} | {v.word} |"
                 for v in verdicts(regime, cases, earlier)]  # fmt: skip
    lines += ["", "| regime | target | measured | |", "|---|---|---|---|", *tail]
    for regime in NAMES:
        if cases := compared(rows, regime):
            lines += ["", *table(regime, cases, earlier)]
    if skipped:
        lines += ["", "Not run:", *(f"- {reason}" for reason in skipped)]
    return "\n".join(lines) + "\n"


def table(regime: str, cases: list[Compared], earlier: dict[str, dict]) -> Iterator[str]:
    """Every case of a regime."""
    extra = {"b": " true after |", "c": " true after |",
             "f": " errors, ours / theirs |"}.get(regime, "")  # fmt: skip
    yield f"| case | ours, s | passes |{extra} best peer, s | ratio | scikit-learn | before |"
    yield "|---|---|---|" + ("---|" if extra else "") + "---|---|---|---|"
    for c in cases:
        more = ""
        if regime in "bc":
            more = f" {number(c.ours, 'passes_true'):.0f} |"
        if regime == "f":
            theirs = nan if c.sklearn is None else number(c.sklearn, "error")
            more = f" {100 * number(c.ours, 'error'):.2f} / {100 * theirs:.2f} % |"
        old = earlier.get(c.case)
        flag = "" if c.ours["status"] == "CERTIFIED" else f" {c.ours['status'].lower()}"
        yield (
            f"| {c.case} | {number(c.ours, 'seconds'):.3g}{flag} "
            f"| {number(c.ours, 'passes'):.0f} |{more} {cell(c.best)} | {c.ratio(c.best):.2f} "
            f"| {c.ratio(c.sklearn):.2f} | {'' if old is None else f'{c.ratio(old):.2f}'} |"
        )


def figure(rows: list[dict]) -> bytes:
    """Draw each case as a point: the best peer's time over ours, against the best peer's time."""
    image, axes = plt.subplots(figsize=(7.5, 4.6), layout="constrained")
    for i, (regime, name) in enumerate(NAMES.items()):
        cases = [c for c in compared(rows, regime) if c.best is not None]
        if cases:
            axes.scatter([number(c.best, "seconds") for c in cases if c.best],
                         [c.ratio(c.best) for c in cases], s=26, alpha=0.8, linewidths=0,
                         color=plt.get_cmap("tab10")(i), marker="os^DvP"[i],
                         label=f"({regime}) {name}")  # fmt: skip
    axes.axhline(1.0, color="black", linewidth=1)
    axes.set(xscale="log", yscale="log", xlabel="CPU seconds of the best peer, one thread",
             ylabel="its time / ours (above the line ours is faster)")  # fmt: skip
    axes.grid(alpha=0.3, which="both")
    axes.legend(fontsize=8, frameon=False, loc="upper left", bbox_to_anchor=(0, 1.26), ncols=2)
    buffer = BytesIO()
    image.savefig(buffer, format="png", dpi=110)
    plt.close(image)
    return buffer.getvalue()
