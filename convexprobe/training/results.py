"""What is recorded of one checkpoint."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from convexprobe.metrics.score import Score
from convexprobe.probes.probe import Probe
from convexprobe.solvers.solution import Solved, Status


@dataclass(frozen=True, kw_only=True)
class LayerResult(Solved):
    """What is recorded of one probe, beside its file.

    Attributes are those of `Solved`, and

        layer: the probe's name.
        test_error, test_loss: on held-out rows (nats), None without them.
    """

    layer: str
    test_error: float | None
    test_loss: float | None

    @classmethod
    def of(cls, layer: str, probe: Probe, held: Score | None) -> LayerResult:
        """The record of a probe and its score on held-out rows."""
        return cls(
            **probe.known(),
            layer=layer,
            test_error=None if held is None else held.error,
            test_loss=None if held is None else held.loss,
        )

    def to_row(self) -> dict[str, Any]:
        """The fields by name, as a table or JSON holds them."""
        return {**vars(self), "status": self.status.name.lower()}

    @classmethod
    def from_row(cls, row: Mapping[str, Any]) -> LayerResult:
        """What `to_row` returned."""
        return cls(**{**row, "status": Status[row["status"].upper()]})


@dataclass(frozen=True)
class Entry:
    """One checkpoint's results.

    Attributes:
        step: training step.
        source: the file it came from, or what else it was.
        weights: SHA-256 of the network's weights.
        duplicate_of: an earlier step with the same weights, whose probes these are; or None.
        labels: SHA-256 of the labels of the rows that were fitted to.
        extract_seconds: time for the activations of fitted and held-out rows.
        solve_seconds: time for probes, starts included.
        evaluate_seconds: time for errors on held-out rows.
        layers: the results by layer, in the order of the network.
    """

    step: int
    source: str
    weights: str
    duplicate_of: int | None
    labels: str
    extract_seconds: float
    solve_seconds: float
    evaluate_seconds: float
    layers: tuple[LayerResult, ...]
