"""What is recorded of one checkpoint."""

from __future__ import annotations

from dataclasses import dataclass

from convexprobe.metrics.score import Score
from convexprobe.probes.probe import Probe


@dataclass(frozen=True)
class LayerResult:
    """What a table shows of one probe; the attributes are those of `Probe`.

    `test_error` and `test_loss` are of the held-out rows, None without them.
    """

    layer: str
    train_error: float
    test_error: float | None
    loss: float
    test_loss: float | None
    gap: float
    passes: float
    seconds: float
    start: str
    status: str
    l2: float

    @classmethod
    def of(cls, layer: str, probe: Probe, held: Score | None) -> LayerResult:
        """The row of a probe and its score on held-out rows."""
        return cls(
            layer=layer,
            train_error=probe.train_error,
            test_error=None if held is None else held.error,
            loss=probe.loss,
            test_loss=None if held is None else held.loss,
            gap=probe.gap,
            passes=probe.passes,
            seconds=probe.seconds,
            start=probe.start,
            status=probe.status.name.lower(),
            l2=probe.l2,
        )


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
