"""What a pass, a step and a whole solve take at least on an H100 and an H200, beside the ideal.

    python -m benchmarks.roofline             # arithmetic, no accelerator: two minutes
    python -m benchmarks.roofline --check     # the counts against this processor's clock

**This is arithmetic and no measurement.** Operations are counted by dispatch (`counter`) while the
package itself works on arrays without numbers, of full size (`parts`); seconds are the least that
published ceilings allow for them, one after the other (`ceilings`). A device needs more than that.

The solver's decisions depend on numbers, which such arrays do not have. A line search tries one
step, as L-BFGS's mostly do; preconditioners are built and rebuilt as often as their prices allow in
the first half of the passes; one bound is repaired at the end. What works on the host (the draw of
a sample's rows) is not counted, only what it transfers.

`--check` counts real arrays in the same way and measures this processor's own ceilings on one
thread: calls, memory for each kind of operation, pages from the system, and products in the shapes
that occur. It exits with 1 where what they add up to is more than 30 % from the CPU seconds taken.
"""

from __future__ import annotations

import argparse

import torch

from benchmarks.roofline.ceilings import LAUNCH, PUBLISHED
from benchmarks.roofline.check import check
from benchmarks.roofline.parts import PASSES, Size
from benchmarks.roofline.report import dearest, table

SIZES = (
    (Size(1_281_167, 2_048, 1_000), PASSES),
    (Size(2_450_000, 2_048, 205), PASSES),
    (Size(50_000, 768, 10), PASSES),
    (Size(4_000, 4_096, 2), 26.0),  # what a cold solve of made rows took
)
"""Sizes and the passes of a cold solve."""


def main(argv: list[str] | None = None) -> int:
    """Print the tables; 1 if a prediction is checked and far from the clock."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--check", action="store_true", help="predict and time this processor")
    parser.add_argument("--size", metavar="N,D,K", help="only a problem of this size, in bfloat16")
    parser.add_argument("--passes", type=float, default=PASSES, help="of that problem's solve")
    settings = parser.parse_args(argv)
    if settings.check:
        torch.set_num_threads(1)
        return 0 if check() else 1
    sizes = list(SIZES)
    if settings.size is not None:
        n, d, k = (int(number) for number in settings.size.split(","))
        sizes = [(Size(n, d, k), settings.passes)]
    print("Arithmetic, not measured: counted operations over published ceilings, a launch "
          f"{1e6 * LAUNCH:g} us.\n")  # fmt: skip
    for size, passes in sizes:
        print("\n".join(table(size, passes, PUBLISHED.values())))
    print("\n".join(dearest(sizes[0][0], PUBLISHED["H100"])))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
