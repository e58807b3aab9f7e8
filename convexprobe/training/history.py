"""`ProbeHistory`: the probes of every checkpoint, as sets by step, a table and figures."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from numbers import Real
from statistics import median
from typing import TYPE_CHECKING, Any

from convexprobe._arguments import check_choice, check_path
from convexprobe._tables import html_lines, html_table
from convexprobe.plotting.figures import plot_curves, plot_errors, plot_heatmap
from convexprobe.plotting.movie import animate
from convexprobe.probes.labels import layer_of, probe_name
from convexprobe.probes.probe_set import ProbeSet
from convexprobe.solvers.solution import Status
from convexprobe.training.results import WORDS, Entry
from convexprobe.training.run_directory import RunDirectory, lock_directory

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_COLUMNS = {
    "test_error": "test error",
    "train_error": "training error",
    "test_loss": "test loss, nats",
    "loss": "training loss, nats",
    "test_balanced_accuracy": "balanced test accuracy",
    "test_f1": "test F1",
    "test_auroc": "test AUROC",
    "test_recall_at_1pct_fpr": "test recall at 1 % false positives",
    "test_top5_accuracy": "top-5 test accuracy",
    "test_usable_information": "usable information of the test rows, bits",
    "test_calibration_error": "test calibration error",
}
"""What can be drawn, and what an axis calls it."""

_PERCENT = ("error", "accuracy", "fpr")
"""The ends of the columns that are drawn per cent."""


class ProbeHistory(Mapping[int, ProbeSet]):
    """The probes of a network over its training: step -> `ProbeSet`, by increasing step.

    Probes on disk are read when they are asked for.

    Attributes:
        entries: results and costs of every step.
        failures: what could not be probed, as (source, reason).
    """

    def __init__(
        self,
        entries: Sequence[Entry],
        source: RunDirectory | Mapping[int, ProbeSet],
        failures: Sequence[tuple[str, str]] = (),
    ) -> None:
        self.entries = tuple(sorted(entries, key=lambda entry: entry.step))
        self.failures = tuple(failures)
        self._source = source

    def __getitem__(self, step: int) -> ProbeSet:
        """The probes of a step.

        Raises:
            KeyError: no such step.
            ValueError: their file is missing or damaged.
        """
        entry = self._entry(step)
        step = step if entry.duplicate_of is None else entry.duplicate_of
        source = self._source
        return source.probes(step) if isinstance(source, RunDirectory) else source[step]

    def __iter__(self) -> Iterator[int]:
        return (entry.step for entry in self.entries)

    def __len__(self) -> int:
        return len(self.entries)

    def __contains__(self, step: object) -> bool:
        return any(entry.step == step for entry in self.entries)

    def _entry(self, step: int) -> Entry:
        for entry in self.entries:
            if entry.step == step:
                return entry
        steps = self if isinstance(step, Real) else ()
        near = min(steps, key=lambda other: abs(other - step), default=None)
        raise KeyError(f"no step {step!r} among {len(self)}; the nearest is {near}")

    @property
    def layers(self) -> tuple[str, ...]:
        """The layers' names, in the order of the network."""
        return tuple(dict.fromkeys(r.layer for entry in self.entries for r in entry.layers))

    def table(self) -> list[dict[str, Any]]:
        """Return a row for every step and layer: the `LayerResult` and the costs of the step."""
        return [
            {
                "step": entry.step,
                **result.to_row(),
                "extract_seconds": entry.extract_seconds,
                "duplicate_of": entry.duplicate_of,
                "source": entry.source,
            }
            for entry in self.entries
            for result in entry.layers
        ]

    def to_frame(self) -> Any:
        """Return the table as a pandas frame, indexed by step and layer.

        Raises:
            ImportError: pandas is not installed.
        """
        import pandas as pd

        return pd.DataFrame(self.table()).set_index(["step", "layer"])

    def __str__(self) -> str:
        if not self.entries:
            return "no checkpoints"
        results = [r for entry in self.entries if entry.duplicate_of is None for r in entry.layers]
        certified = sum(r.status is Status.CERTIFIED for r in results)
        passes = median([r.passes for r in results] or [0.0])
        layers = {layer_of(r.layer, r.concept) for r in results}
        concepts = {r.concept for r in results}
        several = f", {len(concepts)} concepts" if len(concepts) > 1 else ""
        lines = [
            f"{len(self)} checkpoints, steps {self.entries[0].step} to {self.entries[-1].step}, "
            f"{len(layers)} layers{several}",
            f"certified: {certified} of {len(results)} probes, in a median of {passes:.1f} passes",
            f"seconds: {sum(e.extract_seconds for e in self.entries):.1f} extracting, "
            f"{sum(e.solve_seconds for e in self.entries):.1f} solving",
        ]
        if same := [e.step for e in self.entries if e.duplicate_of is not None]:
            lines.append(f"same weights as an earlier step: {same}")
        lines += [f"not probed: {source}: {why}" for source, why in self.failures]
        return "\n".join(lines)

    __repr__ = __str__

    def _repr_html_(self) -> str:
        """The summary, and the results of the last step."""
        text = html_lines(str(self))
        if not self.entries:
            return text
        last = self.entries[-1]
        return text + html_table(last.cells(), left=WORDS, caption=f"step {last.step}")

    @property
    def settings(self) -> dict[str, Any]:
        """The settings that the run's directory records, by name; none of a history in memory."""
        return dict(self._source.settings) if isinstance(self._source, RunDirectory) else {}

    def _column(self, column: str | None) -> str:
        """Return the column to draw; None stands for test errors, or training errors without."""
        if column is None:
            held = all(r.test is not None for e in self.entries for r in e.layers)
            return "test_error" if held else "train_error"
        check_choice("column", column, _COLUMNS)
        if any(r.value(column) is None for e in self.entries for r in e.layers):
            raise ValueError(f"column: no {column} without held-out rows; pass test=")
        return column

    def _concepts(self, concept: str | None) -> list[str]:
        """The concepts to draw, "" for plain labels: one, or all for None."""
        if not self.entries:
            raise ValueError("history: no checkpoints to draw")
        names = list(dict.fromkeys(r.concept or "" for e in self.entries for r in e.layers))
        return names if concept is None else [check_choice("concept", concept, names)]

    def _curves(self, entry: Entry, column: str) -> dict[str, dict[str, float]]:
        """A step's values by concept and layer."""
        curves: dict[str, dict[str, float]] = {}
        for r in entry.layers:
            value = r.value(column)
            assert value is not None  # see `_column`
            curves.setdefault(r.concept or "", {})[layer_of(r.layer, r.concept)] = value
        return curves

    def plot_step(self, step: int, ax: Axes | None = None) -> Axes:
        """Draw the paper's figure for one step: error by layer, one curve a concept.

        Raises:
            KeyError: no such step.
        """
        column = self._column(None)
        axis, curves = _axis(column), self._curves(self._entry(step), column)
        ax = plot_errors(curves, ax=ax, ylabel=axis["label"], percent=axis["percent"])
        ax.set_title(f"step {step}", fontsize=10)
        return ax

    def plot_heatmap(
        self, column: str | None = None, ax: Axes | None = None, *, concept: str | None = None
    ) -> Axes:
        """Draw layers by steps, with the value as colour; one concept's layers above another's.

        Args:
            column: "test_error" (where there are held-out rows), "train_error", "test_loss",
                "loss", or "test_" and the name of another measure.
            ax: axes to draw on.
            concept: the concept to draw; None draws all.

        Raises:
            ValueError: another column or concept, or no checkpoints.
        """
        column, rows = self._column(column), self._concepts(concept)
        steps = {entry.step: self._curves(entry, column) for entry in self.entries}
        joined = {
            step: {
                layer if concept is not None else probe_name(layer, name or None): value
                for name in rows
                for layer, value in curves.get(name, {}).items()
            }
            for step, curves in steps.items()
        }
        return plot_heatmap(joined, **_axis(column), ax=ax)

    def plot_layers(
        self, column: str | None = None, ax: Axes | None = None, *, concept: str | None = None
    ) -> Axes:
        """Draw one curve a layer against the step, of several concepts each in its colour.

        Arguments as in `plot_heatmap`.
        """
        column, names = self._column(column), self._concepts(concept)
        steps = {entry.step: self._curves(entry, column) for entry in self.entries}
        concepts = {
            name: {step: curves.get(name, {}) for step, curves in steps.items()} for name in names
        }
        return plot_curves(concepts, **_axis(column), ax=ax)

    def animate(
        self,
        path: str | os.PathLike[str],
        *,
        column: str | None = None,
        concept: str | None = None,
        fps: float = 8.0,
        dpi: int = 80,
    ) -> None:
        """Draw the paper's movie: error by layer, one frame a step, one curve a concept.

        Args:
            path: a `.gif`, or an `.mp4`, for which ffmpeg has to be installed.
            column, concept: as for `plot_heatmap`.
            fps: frames a second.
            dpi: dots per inch; a frame is 7.2 by 4 inches.

        Raises:
            ValueError: another suffix or concept, or no checkpoints.
            RuntimeError: no ffmpeg.
        """
        column = self._column(column)
        names = self._concepts(concept)
        frames = {
            entry.step: {n: c for n, c in self._curves(entry, column).items() if n in names}
            for entry in self.entries
        }
        animate(frames, path, **_axis(column), fps=fps, dpi=dpi)

    def save(self, directory: str | os.PathLike[str]) -> None:
        """Write a directory that `load_history` reads, like the `out` of a sweep.

        Raises:
            ValueError: a history is there already.
            RuntimeError: another process writes there.
        """
        path = check_path("directory", directory)
        if any(path.glob("*.json")):
            raise ValueError(f"{str(path)!r}: a history is there; take a new directory")
        recorded = self._source.settings if isinstance(self._source, RunDirectory) else None
        with lock_directory(path):
            target = RunDirectory(path, recorded or {"saved": True})
            for entry in self.entries:
                target.add(entry, self[entry.step] if entry.duplicate_of is None else None)


def _axis(column: str) -> dict[str, Any]:
    """What figures need to know of a column."""
    return {"label": _COLUMNS[column], "percent": column.endswith(_PERCENT)}


def load_history(directory: str | os.PathLike[str]) -> ProbeHistory:
    """Read the history in a directory, after a sweep or while one adds to it.

    A damaged step is left out, with a warning. The probes of a step are read, and held against
    their checksum, when they are asked for.

    Raises:
        ValueError: not such a directory.
    """
    source = RunDirectory(check_path("directory", directory), check=False)
    return ProbeHistory(list(source.entries.values()), source)
