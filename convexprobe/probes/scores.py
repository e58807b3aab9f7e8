"""The scores of a set of probes: a dictionary and a table."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from convexprobe.metrics.score import FORMATS, Score
from convexprobe.probes.labels import probe_name
from convexprobe.probes.table import aligned


class Scores(dict[str, Score]):
    """The scores by probe, "layer" or "layer/concept". Prints as a table.

    Attributes:
        places: each probe's layer and concept; the concept is None for plain labels.
    """

    def __init__(self, scores: Mapping[tuple[str, str | None], Score]) -> None:
        super().__init__({probe_name(*place): score for place, score in scores.items()})
        self.places = dict(zip(self, scores, strict=True))

    def to_frame(self) -> Any:
        """Every measure and its 95 % interval as a pandas frame, by layer and concept.

        Raises:
            ImportError: pandas is not installed.
        """
        import pandas as pd

        rows = []
        for name, score in self.items():
            layer, concept = self.places[name]
            rows.append({"layer": layer, "concept": concept, **score.to_row()})
        index = ["layer", "concept"]
        if all(concept is None for _, concept in self.places.values()):
            index = ["layer"]
            rows = [{k: v for k, v in row.items() if k != "concept"} for row in rows]
        return pd.DataFrame(rows).set_index(index)

    def __str__(self) -> str:
        rows = [["probe", "rows", *FORMATS]]
        for name, score in self.items():
            measures = [form.format(getattr(score, m)) for m, form in FORMATS.items()]
            rows.append([name, f"{score.rows:g}", *measures])
        return aligned(rows, left=(0,))

    __repr__ = __str__
