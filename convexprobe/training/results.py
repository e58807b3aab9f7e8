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
    """What is recorded of one probe beside its weights.

    The attributes are those of `Solved` and

        layer: the probe's name.
        test_error: fraction of the held-out rows that are misclassified, None without such rows.
        test_loss: mean cross-entropy on them, nats, likewise.
    """

    layer: str
    test_error: float | None
    test_loss: float | None

    @classmethod
    def of(cls, layer: str, probe: Probe, held: Score | None) -> LayerResult:
        """Make the record of a probe and its score on held-out rows."""
        return cls(
            **probe.known(),
            layer=layer,
            test_error=None if held is None else held.error,
            test_loss=None if held is None else held.loss,
        )

    def to_row(self) -> dict[str, Any]:
        """Return the fields by name, as a table or JSON holds them."""
        return {**vars(self), "status": self.status.name.lower()}

    @classmethod
    def from_row(cls, row: Mapping[str, Any]) -> LayerResult:
        """Make the record of what `to_row` returned."""
        return cls(**{**row, "status": Status[row["status"].upper()]})


@dataclass(frozen=True)
class Entry:
    """One checkpoint's results.

    Attributes:
        step: training step.
        source: the file that it came from, or another name for messages and tables.
        weights: SHA-256 of the network's weights.
        duplicate_of: an earlier step with the same weights, whose probes these are; or None.
        labels: SHA-256 of the labels of the fitted rows.
        extract_seconds: time to compute the activations of fitted and held-out rows.
        solve_seconds: time to choose the starts and to fit.
        evaluate_seconds: time to score the held-out rows.
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
