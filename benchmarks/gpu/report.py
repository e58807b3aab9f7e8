"""The table of `python -m benchmarks.gpu`, beside what others published."""

from __future__ import annotations

from typing import Any

from benchmarks.scale.imagenet import CLASSES, FEATURES, IMAGES
from convexprobe._tables import aligned

PUBLISHED: dict[str, Any] = {
    "hardware": "RTX 6000 Ada",
    "source": "cyanure-gpu's figures, read off logarithmic plots, accuracy by their measure",
    "solves": [
        {"who": "cuML", "size": [1_281_167, 2_048, 1_000], "accuracy": 3e-3, "seconds": 63},
        {"who": "cuML", "size": [1_281_167, 2_048, 1_000], "accuracy": 5e-5, "seconds": 115},
        {"who": "cyanure-gpu", "size": [1_281_167, 2_048, 1_000], "accuracy": 1e-3, "seconds": 370},
        {"who": "cuML", "size": [2_450_000, 2_048, 205], "accuracy": 1.3e-3, "seconds": 65},
    ],
}
"""What others report of their hardware. It is printed beside ours and was not run here."""

TARGETS = {"cold": 60, "warm": 15}
"""Seconds of 20 certified probes of ImageNet's size."""

HEADER = ("part", "what", "seconds", "passes", "accuracy", "remarks")
"""Accuracy: of ours the certified gap, of others the true excess, both relative to `H(Y)`."""


def table(report: dict[str, Any]) -> str:
    """Return the report as aligned text; `report` is what the command writes as JSON."""
    rows: list[tuple[str, ...]] = [HEADER]
    for name, part in report["parts"].items():
        rows.append((name, f"all, of {part['budget']:.0f} s", number(part["seconds"]), "", "",
                     ": ".join(filter(None, (part["status"], part["reason"])))))  # fmt: skip
        rows += [(name, *row) for row in DETAILS[name](part["results"])]
    for solve in PUBLISHED["solves"]:
        what = f"{solve['who']}, one probe, {times(solve['size'])}"
        remark = f"others' hardware: {PUBLISHED['hardware']}"
        rows.append(("published", what, number(solve["seconds"]), "",
                     number(solve["accuracy"]), remark))  # fmt: skip
    lines = [
        f"{report['machine']}; {report['versions']}", "", aligned(rows, left=(0, 1, 5)), "",
        f"published: {PUBLISHED['source']}",
    ]  # fmt: skip
    return "\n".join(lines) + "\n"


def tests(results: dict[str, Any]) -> list[tuple[str, ...]]:
    """One row of counts, and one for each test that failed."""
    outcomes = dict(results.get("outcomes", {}))
    names = outcomes.pop("names", [])
    counts = ", ".join(f"{count} {word}" for word, count in outcomes.items())
    return [*([(counts, "", "", "", "")] if counts else []),
            *((name, "", "", "", "failed") for name in names)]  # fmt: skip


def scale(results: dict[str, Any]) -> list[tuple[str, ...]]:
    """Probes cold and warm, and other programs on the same rows."""
    rows: list[tuple[str, ...]] = []
    for entry in results.get("probes", []):
        solved, start = entry["solved"], entry["start"]
        remarks = [f"{entry['certified']} of {solved} certified"]
        if entry["extrapolated"]:
            remarks.append(f"extrapolated from {solved} solved")
        share = entry["flops"] / results["ceilings"]["flops"]
        remarks.append(f"{share:.0%} of the product's ceiling in float32")
        if entry["size"] == [IMAGES, FEATURES, CLASSES]:
            remarks.append(f"target {TARGETS[start]} s")
        what = f"{entry['probes']} probes {start}, {times(entry['size'])}"
        rows.append((what, number(entry["seconds"]), number(entry["passes"]), number(entry["gap"]),
                     "; ".join(remarks)))  # fmt: skip
    if "peak_bytes" in results:
        rows.append((f"memory at the peak: {results['peak_bytes'] / 1e9:.1f} GB", "", "", "", ""))
    for name in ("torch_lbfgs", "cuml"):
        found = results.get(name)
        if isinstance(found, str):
            rows.append((f"{name}, one probe", "", "", "", found))
        elif found is not None:
            rows.append(
                (f"{name}, one probe", number(found["seconds"]), number(found.get("evaluations")),
                 number(found["at_most_above_optimum"]), found.get("status", ""))
            )  # fmt: skip
    return rows


def regimes(results: dict[str, Any]) -> list[tuple[str, ...]]:
    """One row for each case and program."""
    return [
        (f"{entry['case']}: {entry['who']}", number(entry["seconds"]), number(entry["passes"]),
         number(entry["true"]), entry["status"])
        for entry in results.get("cases", [])
    ]  # fmt: skip


def forward(results: dict[str, Any]) -> list[tuple[str, ...]]:
    """The forward pass over all images."""
    found = results.get("inception")
    if not isinstance(found, dict):
        return []
    remarks = f"extrapolated from {found['images_per_second']:.0f} images/s, made images"
    return [
        (f"Inception v3, {IMAGES} images", number(found["extrapolated_seconds"]), "", "", remarks)
    ]


DETAILS = {"tests": tests, "scale": scale, "regimes": regimes, "forward": forward}
"""What makes rows of a part's results, by its name."""


def number(value: float | None) -> str:
    """Three digits; nothing for what is not known."""
    return "" if value is None else f"{value:.3g}"


def times(size: list[int]) -> str:
    """A size as text."""
    return " x ".join(map(str, size))
