"""What is recorded of one checkpoint."""

from __future__ import annotations

from dataclasses import dataclass, fields, replace
from math import isfinite
from typing import Any

import numpy as np

from convexprobe._tables import aligned
from convexprobe.metrics.score import FORMATS, Score
from convexprobe.probes.labels import layer_of
from convexprobe.probes.probe import Probe
from convexprobe.probes.scores import Scores
from convexprobe.solvers.solution import Solved, Status

MOST_CLASSES = 100
"""Classes up to which a confusion matrix is recorded: of a thousand it would fill the record."""

MEASURES = tuple(name for name in FORMATS if name != "usable_information")
"""The measures of a score that are recorded; the others follow from them."""

_DEFINED = ("error", "loss", "label_entropy", "rows")
"""What every score has."""

_FORMATS = {
    "layer": "{}", "l2": "{:.2e}", "loss": "{:.4f}", "gap": "{:.1e}", "train_error": "{:.2%}",
    "test_loss": "{:.4f}", "test_error": "{:.2%}", "passes": "{:.0f}", "status": "{}",
}  # fmt: skip
"""The columns of a step's table, and how each is printed."""

WORDS = (0, len(_FORMATS) - 1)
"""Numbers of the columns that are words."""

_FITTED = ("train_error", "loss", "gap")
"""What a log gets of a probe without held-out rows."""

_HELD_OUT = ("test_error", "test_loss", "test_usable_information", "gap")
"""What a log gets of a probe with held-out rows."""


@dataclass(frozen=True, kw_only=True)
class LayerResult(Solved):
    """What is recorded of one probe beside its weights.

    The attributes are those of `Solved` and

        layer: the probe's name, "layer" or "layer/concept".
        concept: the name of its concept, None for plain labels.
        test: its score on the held-out rows, without bootstrap samples, and without the confusion
            matrix of more than a hundred classes; None without such rows.
    """

    layer: str
    concept: str | None
    test: Score | None

    @classmethod
    def of(cls, layer: str, probe: Probe, held: Score | None) -> LayerResult:
        """Make the record of a probe and its score on held-out rows.

        Raises:
            ValueError: a number of it is NaN.
        """
        if held is not None and len(probe.classes) > MOST_CLASSES:
            held = replace(held, confusion=None)
        row = {**probe.known(), "layer": layer, "concept": probe.concept, "test": held}
        try:
            return cls(**checked(cls, row))
        except ValueError as error:
            raise ValueError(f"layer {layer!r}: {error}") from None

    @property
    def test_error(self) -> float | None:
        """Fraction of the held-out rows that are misclassified, None without such rows."""
        return None if self.test is None else self.test.error

    @property
    def test_loss(self) -> float | None:
        """Mean cross-entropy on the held-out rows, nats, None without such rows."""
        return None if self.test is None else self.test.loss

    def value(self, column: str) -> float | None:
        """A field by name, or "test_" and the name of a measure: None without held-out rows."""
        if column.startswith("test_"):
            return None if self.test is None else getattr(self.test, column.removeprefix("test_"))
        return getattr(self, column)

    def to_row(self) -> dict[str, Any]:
        """Return the fields by name, as a table holds them, every measure in a column."""
        row = {**vars(self), "status": self.status.name.lower()}
        del row["test"]
        return {**row, **{f"test_{name}": self.value(f"test_{name}") for name in FORMATS}}

    def to_json(self) -> dict[str, Any]:
        """Return the fields by name, as JSON holds them."""
        score = None if self.test is None else _score_to_json(self.test)
        return {**vars(self), "status": self.status.name.lower(), "test": score}

    @classmethod
    def from_json(cls, row: Any) -> LayerResult:
        """Make the record of what `to_json` returned.

        Raises:
            ValueError: other fields, or values of other types.
        """
        status = row.get("status") if isinstance(row, dict) else None
        if not isinstance(status, str) or status not in _STATUS:
            raise ValueError(f"expected the status of a layer, found {status!r}")
        score = row.get("test")
        known = {"status": _STATUS[status], "test": None if score is None else _score_of(score)}
        return cls(**checked(cls, {**row, **known}))


def _score_to_json(score: Score) -> dict[str, Any]:
    """The measures by name, None for those that are not defined, and the confusion matrix."""
    values = {name: getattr(score, name) for name in (*MEASURES, "rows")}
    row: dict[str, Any] = {name: None if v != v else v for name, v in values.items()}
    return {**row, "confusion": None if score.confusion is None else score.confusion.tolist()}


def _score_of(row: Any) -> Score:
    """The score of what `_score_to_json` returned.

    Raises:
        ValueError: other fields, or values that no score has.
    """
    expected = {*MEASURES, "rows", "confusion"}
    if not isinstance(row, dict) or row.keys() != expected:
        raise ValueError(f"test: expected {', '.join(sorted(expected))}, found {row!r:.100}")
    values: dict[str, Any] = {}
    for name in (*MEASURES, "rows"):
        value = row[name]
        defined = isinstance(value, float) and value == value
        if not defined and (value is not None or name in _DEFINED):
            raise ValueError(f"test: {name}: expected a number, found {value!r:.100}")
        values[name] = np.nan if value is None else value
    return Score(**values, confusion=_confusion(row["confusion"]))


def _confusion(given: Any) -> np.ndarray | None:
    """A confusion matrix `(k, k)` of lists."""
    if given is None:
        return None
    k = len(given) if isinstance(given, list) else 0
    square = 2 <= k <= MOST_CLASSES and all(isinstance(r, list) and len(r) == k for r in given)
    if not square or not all(isinstance(v, float) and 0 <= v < np.inf for r in given for v in r):
        raise ValueError(f"test: expected a confusion matrix, found {given!r:.100}")
    return np.asarray(given)


_STATUS = {status.name.lower(): status for status in Status}


@dataclass(frozen=True, repr=False)
class Entry:
    """One checkpoint's results. Prints as a table, one line a probe.

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

    @property
    def scores(self) -> Scores:
        """The scores on the held-out rows by layer and concept; none without such rows."""
        return Scores(
            {
                (layer_of(r.layer, r.concept), r.concept): r.test
                for r in self.layers
                if r.test is not None
            }
        )

    def scalars(self) -> dict[str, float]:
        """The results as a log takes them: numbers by name.

            wandb.log(entry.scalars(), step=entry.step)

        A name is "probe/", a measure, "/" and the probe's name: trackers sort by name, and where
        they cut a long one, they leave its end. The measures are

            test_error: fraction of the held-out rows that are misclassified.
            test_loss: mean cross-entropy on them, nats.
            test_usable_information: their label entropy minus that loss, bits.
            gap: rigorous bound on how far the probe's objective is from its optimum, nats.

        A probe without held-out rows has `train_error` and `loss` instead of the first three:
        fraction and nats of the rows that it was fitted to. Numbers that are not finite are left
        out, as many logs refuse them: a loss is infinite if a row's class got probability 0.
        """
        values = {
            f"probe/{column}/{result.layer}": result.value(column)
            for result in self.layers
            for column in (_FITTED if result.test is None else _HELD_OUT)
        }
        return {name: v for name, v in values.items() if v is not None and isfinite(v)}

    def __str__(self) -> str:
        return f"step {self.step}\n{aligned(self.cells(), left=WORDS)}"

    __repr__ = __str__

    def cells(self) -> list[list[str]]:
        """A table of the layers, cell by cell; the first row has the names of the columns."""
        table = [list(_FORMATS)]
        for row in (result.to_row() for result in self.layers):
            table.append(["" if row[c] is None else f.format(row[c]) for c, f in _FORMATS.items()])
        return table

    def to_json(self) -> dict[str, Any]:
        """The fields by name, as JSON holds them."""
        return {**vars(self), "layers": [result.to_json() for result in self.layers]}

    @classmethod
    def from_json(cls, row: Any) -> Entry:
        """Make the entry of what `to_json` returned.

        Raises:
            ValueError: other fields, or values of other types.
        """
        rows = row.get("layers") if isinstance(row, dict) else None
        if not isinstance(rows, list) or not rows:
            raise ValueError("expected a list of layers, found none")
        layers = tuple(map(LayerResult.from_json, rows))
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
