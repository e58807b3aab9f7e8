"""What is recorded of one checkpoint."""

from __future__ import annotations

from dataclasses import dataclass, fields
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
        """Make the record of a probe and its score on held-out rows.

        Raises:
            ValueError: a number of it is NaN.
        """
        row = {
            **probe.known(),
            "layer": layer,
            "test_error": None if held is None else held.error,
            "test_loss": None if held is None else held.loss,
        }
        try:
            return cls(**checked(cls, row))
        except ValueError as error:
            raise ValueError(f"layer {layer!r}: {error}") from None

    def to_row(self) -> dict[str, Any]:
        """Return the fields by name, as a table or JSON holds them."""
        return {**vars(self), "status": self.status.name.lower()}

    @classmethod
    def from_row(cls, row: Any) -> LayerResult:
        """Make the record of what `to_row` returned.

        Raises:
            ValueError: other fields, or values of other types.
        """
        status = row.get("status") if isinstance(row, dict) else None
        if not isinstance(status, str) or status not in _STATUS:
            raise ValueError(f"expected the status of a layer, found {status!r}")
        return cls(**checked(cls, {**row, "status": _STATUS[status]}))


_STATUS = {status.name.lower(): status for status in Status}


@dataclass(frozen=True)
class Entry:
    """One checkpoint's results.

    Attributes:
        step: training step.
        source: the file that it came from, or another name for messages and tables.
        weights: SHA-256 of the network's parameters and buffers.
        duplicate_of: an earlier step with the same weights, whose probes these are; or None.
        labels: SHA-256 of the labels of the fitted rows.
        extract_seconds: time to compute the activations of fitted and held-out rows.
        solve_seconds: time to choose the starts and to fit.
        evaluate_seconds: time to score the held-out rows.
        layers: the results by layer, in the order of the network.
        modules: SHA-256 of what the network computes beside its weights; None if that cannot be
            told, because it has hooks, for example.
        stamp: size and modification time of the file; None if it came from none.
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
    modules: str | None = None
    stamp: str | None = None

    def to_row(self) -> dict[str, Any]:
        """The fields by name, as JSON holds them."""
        return {**vars(self), "layers": [result.to_row() for result in self.layers]}

    @classmethod
    def from_row(cls, row: Any) -> Entry:
        """Make the entry of what `to_row` returned.

        Raises:
            ValueError: other fields, or values of other types.
        """
        rows = row.get("layers") if isinstance(row, dict) else None
        if not isinstance(rows, list) or not rows:
            raise ValueError("expected a list of layers, found none")
        layers = tuple(map(LayerResult.from_row, rows))
        if len({result.layer for result in layers}) < len(layers):
            raise ValueError("expected one result a layer, found several")
        return cls(**checked(cls, {**row, "layers": layers}))


_KINDS: dict[str, Any] = {"int": int, "float": int | float, "str": str, "None": type(None)}


def checked(record: type, row: dict[str, Any]) -> dict[str, Any]:
    """The row, which has to have the fields of a record class, of their types and without NaN.

    Raises:
        ValueError: which field has not, and what it has.
    """
    kinds = {field.name: str(field.type) for field in fields(record)}
    if other := kinds.keys() ^ row.keys():
        raise ValueError(f"expected the fields {', '.join(kinds)}; {min(other)!r} is not in both")
    for name, kind in kinds.items():
        value, expected = row[name], kind.split(" | ")
        if not _KINDS.keys() >= set(expected):  # a record itself, checked before
            continue
        fits = any(isinstance(value, _KINDS[e]) for e in expected) and not isinstance(value, bool)
        if not fits or value != value:
            raise ValueError(f"{name}: expected {kind}, found {value!r}")
    return row
