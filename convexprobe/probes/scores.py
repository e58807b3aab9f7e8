"""The scores of a set of probes: a dictionary and a table."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

from convexprobe._tables import aligned, html_table
from convexprobe.metrics.score import FORMATS, Score, percentiles
from convexprobe.probes.labels import probe_name


class Selectivity(NamedTuple):
    """A selectivity, and its 95 % interval if there were bootstrap samples."""

    value: float
    low: float | None
    high: float | None


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

    def selectivity(self, task: str, control: str) -> dict[str, Selectivity]:
        """The accuracy on a task less that on its control task (Hewitt & Liang 2019), by layer.

        The bootstrap samples of both are of the same rows, so their differences make its interval.

        Args:
            task, control: names of concepts.

        Raises:
            ValueError: a concept that was not scored.
        """
        names = {place: name for name, place in self.places.items()}
        out = {}
        for layer in dict.fromkeys(layer for layer, _ in self.places.values()):
            for concept in (task, control):
                if (layer, concept) not in names:
                    raise ValueError(
                        f"selectivity: layer {layer!r} has no score of concept {concept!r}, found "
                        f"{[c for at, c in names if at == layer]}"
                    )
            one, other = (self[names[layer, concept]] for concept in (task, control))
            low = high = None
            if one.samples and other.samples:
                low, high = percentiles(other.samples["error"] - one.samples["error"], 0.95)
            out[layer] = Selectivity(other.error - one.error, low, high)
        return out

    def cells(self) -> list[list[str]]:
        """The printed table, cell by cell; the first row has the names of the columns.

        With bootstrap samples, the 95 % interval of the error stands behind it; `to_frame` has
        those of the other measures.
        """
        sampled = any(score.samples for score in self.values())
        rows = [["probe", "rows", *FORMATS]]
        for name, score in self.items():
            measures = [form.format(getattr(score, m)) for m, form in FORMATS.items()]
            rows.append([name, f"{score.rows:g}", *measures])
        if sampled:
            rows[0].insert(3, "error_95%")
            for row, score in zip(rows[1:], self.values(), strict=True):
                ends = score.interval("error") if score.samples else ()
                row.insert(3, " to ".join(FORMATS["error"].format(end) for end in ends))
        return rows

    def __str__(self) -> str:
        return aligned(self.cells(), left=(0,))

    __repr__ = __str__

    def _repr_html_(self) -> str:
        return html_table(self.cells(), left=(0,))
