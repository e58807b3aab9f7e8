"""The tables of the roofline."""

from __future__ import annotations

from collections.abc import Iterable

from benchmarks.roofline.ceilings import Ceilings
from benchmarks.roofline.counter import Operation
from benchmarks.roofline.ideal import by_kind, ideal_pass, ideal_solve, pass_bytes, pass_flops
from benchmarks.roofline.parts import Parts, Size, count_pass, count_solve

KINDS = ("products", "rows converted", "logits", "decompositions", "host", "rest")

PASS_TARGET, SOLVE_TARGET, LAUNCH_TARGET = 1.5, 2.0, 3.0
"""Times the ideal: a pass, a solve, and a solve that launches bound."""


def header() -> list[str]:
    """The first lines of the table."""
    columns = ("calls", "TFLOP", "GB", *(f"{kind}, ms" for kind in KINDS), "ms", "ideal", "ratio")
    return ["| what | " + " | ".join(columns) + " |", "|---" * (len(columns) + 1) + "|"]


def row(
    name: str,
    operations: list[Operation],
    size: Size,
    device: Ceilings,
    ideal: float,
    target: float,
) -> str:
    """One line: what some operations take, by what they work on, beside the ideal in seconds."""
    kinds = by_kind(operations, size, device)
    flops = sum(o.flops for o in operations if o.kind == "product")
    took = device.total(operations)
    cells = [str(len(operations)), f"{flops / 1e12:.3g}",
             f"{sum(o.bytes for o in operations) / 1e9:.3g}"]  # fmt: skip
    cells += [f"{1e3 * kinds[kind][2]:.3g}" if kind in kinds else "0" for kind in KINDS]
    cells.append(f"{1e3 * took:.4g}")
    if ideal:
        ratio = took / ideal
        verdict = "" if not target else f" (at most {target:g}: {_verdict(ratio, target)})"
        cells += [f"{1e3 * ideal:.3g}", f"{ratio:.1f}{verdict}"]
    else:
        cells += ["", ""]
    return f"| {name} | " + " | ".join(cells) + " |"


def _verdict(ratio: float, target: float) -> str:
    return "reached" if ratio <= target else "missed"


def table(size: Size, passes: float, devices: Iterable[Ceilings]) -> list[str]:
    """What a pass and a cold solve of `size` take on devices at least."""
    once, whole = count_pass(size), count_solve(size, passes)
    steps = [name for name in whole if name.startswith("step")]
    lines = []
    for device in devices:
        pass_, all_ = ideal_pass(size, device), ideal_solve(size, device, passes, len(steps))
        bound = all_ > passes * pass_
        lines += [
            f"## {size} on {device.name}",
            "",
            f"An ideal pass: {pass_flops(size):.3g} flop, {pass_bytes(size) / 1e9:.3g} GB, "
            f"{1e3 * pass_:.3g} ms.",
            "",
            *header(),
            row("before: moments", once["moments"], size, device, 0.0, 0.0),
            row("evaluation, a pass", once["evaluation"], size, device, pass_,
                0.0 if bound else PASS_TARGET),
            row("line search, a pass", once["line search"], size, device, pass_,
                0.0 if bound else PASS_TARGET),
            row("step that builds", _dearest(whole, steps, device), size, device, pass_, 0.0),
            row("last step", whole[steps[-1]], size, device, pass_, 0.0),
            row("repaired bound", whole["repaired bound"], size, device, 0.0, 0.0),
            row(f"solve of {passes:g} passes", [o for part in whole.values() for o in part], size,
                device, all_, LAUNCH_TARGET if bound else SOLVE_TARGET),
            "",
        ]  # fmt: skip
    return lines


def _dearest(parts: Parts, steps: list[str], device: Ceilings) -> list[Operation]:
    return max((parts[name] for name in steps), key=device.total)


def dearest(size: Size, device: Ceilings, most: int = 15) -> list[str]:
    """The operations of a line search, which is a pass, that take the most time in all."""
    sums: dict[tuple[str, str], list[float]] = {}
    for operation in count_pass(size)["line search"]:
        entry = sums.setdefault((operation.name, operation.function), [0.0, 0.0, 0.0])
        entry[0] += 1
        entry[1] += operation.bytes
        entry[2] += device.seconds(operation)
    ranked = sorted(sums.items(), key=lambda item: -item[1][2])[:most]
    return [
        f"## The dearest operations of a line search, {size} on {device.name}",
        "",
        "| operation | of | calls | GB | ms |",
        "|---|---|---|---|---|",
        *(
            f"| {name} | {function} | {calls:.0f} | {moved / 1e9:.3g} | {1e3 * took:.3g} |"
            for (name, function), (calls, moved, took) in ranked
        ),
        "",
    ]
