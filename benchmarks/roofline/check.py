"""The counts' prediction for this processor, held against the clock."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch

from benchmarks.roofline.counter import Counter
from benchmarks.roofline.parts import Size
from benchmarks.roofline.processor import SETS, Processor, clock, faults
from benchmarks.scale.spectrum import Features
from convexprobe.activations.source import Rows
from convexprobe.problem.objective import Problem
from convexprobe.solvers.auto import Auto
from convexprobe.solvers.line_search import line_search
from convexprobe.solvers.loop import solve

CLOSE = 0.3
"""How far a prediction may be from the clock, relative to it."""

SIZES = (
    Size(20_000, 512, 100, "float16"),
    Size(100_000, 64, 10, "float16"),
    Size(8_000, 256, 1_000, "float16"),
    Size(4_000, 4_096, 2, "float16"),
)


def works(size: Size) -> dict[str, Callable[[], object]]:
    """An evaluation, a line search and a whole solve of made rows."""
    x, y = Features(size.n, size.d, size.k).make(dtype=getattr(torch, size.dtype))
    l2 = 1e-3 * float(x[:4096].float().var(0).mean())
    problem = Problem(Rows(x), y, l2, classes=size.k)
    generator = torch.Generator().manual_seed(0)
    w = 1e-3 * torch.randn((1, problem.p), generator=generator, dtype=torch.float64)
    at = problem.evaluate(w, keep=True)
    return {
        "evaluation": lambda: problem.evaluate(w, keep=True),
        "line search": lambda: line_search(problem, at, at.gradient),
        "solve": lambda: solve(problem, Auto()),
    }


def check(sizes: Sequence[Size] = SIZES, repeats: int = 5) -> bool:
    """Print what is predicted and measured; whether all of it is close."""
    processor = Processor.measure()
    middle = len(SETS) // 2
    rates = ", ".join(f"{kind} {r[middle] / 1e9:.0f}" for kind, r in processor.bandwidth.items())
    print(f"A call takes {1e6 * processor.launch:.1f} us, a page {1e6 * processor.fault:.2f} us.")
    print(f"GB/s on {SETS[middle] >> 20} MB: {rates}.\n")
    columns = "problem", "what", "operations", "GB", "page faults", "predicted, ms", "measured, ms"
    print("| " + " | ".join([*columns, "predicted / measured"]) + " |")
    print("|" + "---|" * 8)
    good = True
    for size in sizes:
        for name, work in works(size).items():
            with Counter() as counter:
                work()  # so that it is known when memory was touched last
                counter.take()
                work()
            pages = faults(work, 1)
            predicted = processor.total(counter.operations) + processor.fault * pages
            measured = clock(work, 3 if name == "solve" else repeats)
            ratio = predicted / measured
            close = abs(ratio - 1.0) <= CLOSE
            good = good and close
            moved = sum(operation.bytes for operation in counter.operations) / 1e9
            print(
                f"| {size} | {name} | {len(counter.operations)} | {moved:.2f} | {pages:.0f} "
                f"| {1e3 * predicted:.1f} | {1e3 * measured:.1f} | {ratio:.2f}"
                f"{'' if close else ' (missed)'} |",
                flush=True,
            )
    return good
