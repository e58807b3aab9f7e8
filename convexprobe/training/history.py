"""`ProbeHistory`: the probes of every checkpoint, as sets by step, a table and figures."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from numbers import Real
from statistics import median
from typing import TYPE_CHECKING, Any

from convexprobe._arguments import check_choice, check_path
from convexprobe.plotting.figures import plot_curves, plot_errors, plot_heatmap
from convexprobe.plotting.movie import animate
from convexprobe.probes.probe_set import ProbeSet
from convexprobe.solvers.solution import Status
from convexprobe.training.results import Entry
from convexprobe.training.run_directory import RunDirectory, lock_directory

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_COLUMNS = {
    "test_error": "test error",
    "train_error": "training error",
    "test_loss": "test loss, nats",
    "loss": "training loss, nats",
}


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
        lines = [
            f"{len(self)} checkpoints, steps {self.entries[0].step} to {self.entries[-1].step}, "
            f"{len(self.layers)} layers",
            f"certified: {certified} of {len(results)} probes, in a median of {passes:.1f} passes",
            f"seconds: {sum(e.extract_seconds for e in self.entries):.1f} extracting, "
            f"{sum(e.solve_seconds for e in self.entries):.1f} solving",
        ]
        if same := [e.step for e in self.entries if e.duplicate_of is not None]:
            lines.append(f"same weights as an earlier step: {same}")
        lines += [f"not probed: {source}: {why}" for source, why in self.failures]
        return "\n".join(lines)

    __repr__ = __str__

    def _column(self, column: str | None) -> str:
        """Return the column to draw; None stands for test errors, or training errors without."""
        if column is None:
            held = all(r.test_error is not None for e in self.entries for r in e.layers)
            return "test_error" if held else "train_error"
        check_choice("column", column, _COLUMNS)
        if any(getattr(r, column) is None for e in self.entries for r in e.layers):
            raise ValueError(f"column: no {column} without held-out rows; pass test=")
        return column

    def _curves(self, column: str) -> dict[int, dict[str, float]]:
        if not self.entries:
            raise ValueError("history: no checkpoints to draw")
        return {
            entry.step: {r.layer: getattr(r, column) for r in entry.layers}
            for entry in self.entries
        }

    def plot_step(self, step: int, ax: Axes | None = None) -> Axes:
        """Draw the paper's figure for one step: error by layer.

        Raises:
            KeyError: no such step.
        """
        column = self._column(None)
        curve = {r.layer: getattr(r, column) for r in self._entry(step).layers}
        axis = _axis(column)
        ax = plot_errors({"": curve}, ax=ax, ylabel=axis["label"], percent=axis["percent"])
        ax.set_title(f"step {step}", fontsize=10)
        return ax

    def plot_heatmap(self, column: str | None = None, ax: Axes | None = None) -> Axes:
        """Draw layers by steps, with the value as colour.

        Args:
            column: "test_error" (where there are held-out rows), "train_error", "test_loss" or
                "loss".
            ax: axes to draw on.
        """
        column = self._column(column)
        return plot_heatmap(self._curves(column), **_axis(column), ax=ax)

    def plot_layers(self, column: str | None = None, ax: Axes | None = None) -> Axes:
        """Draw one curve a layer against the step; arguments as in `plot_heatmap`."""
        column = self._column(column)
        return plot_curves(self._curves(column), **_axis(column), ax=ax)

    def animate(
        self,
        path: str | os.PathLike[str],
        *,
        column: str | None = None,
        fps: float = 8.0,
        dpi: int = 80,
    ) -> None:
        """Draw the paper's movie: error by layer, one frame a step.

        Args:
            path: a `.gif`, or an `.mp4`, for which ffmpeg has to be installed.
            column: as for `plot_heatmap`.
            fps: frames a second.
            dpi: dots per inch; a frame is 7.2 by 4 inches.

        Raises:
            ValueError: another suffix, or no checkpoints.
            RuntimeError: no ffmpeg.
        """
        column = self._column(column)
        animate(self._curves(column), path, **_axis(column), fps=fps, dpi=dpi)

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
    return {"label": _COLUMNS[column], "percent": column.endswith("error")}


def load_history(directory: str | os.PathLike[str]) -> ProbeHistory:
    """Read the history in a directory, after a sweep or while one adds to it.

    A damaged step is left out, with a warning. The probes of a step are read, and held against
    their checksum, when they are asked for.

    Raises:
        ValueError: not such a directory.
    """
    source = RunDirectory(check_path("directory", directory), check=False)
    return ProbeHistory(list(source.entries.values()), source)
