"""The probes of a network: a mapping by layer, a table, a figure and a file."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

from convexprobe._arguments import check_bool, shown
from convexprobe._tables import aligned, html_lines, html_table
from convexprobe.activations.checks import check_activations, check_layer
from convexprobe.arrays.ranks import Communicator
from convexprobe.metrics.score import Score
from convexprobe.plotting.figures import plot_errors
from convexprobe.probes.groups import example_groups
from convexprobe.probes.labels import layer_of, probe_name, split_concepts
from convexprobe.probes.model_card import write_folder
from convexprobe.probes.probe import OBJECTIVE, Probe, evaluate_probe, read_draws
from convexprobe.probes.probe_file import read_probes, write_probes
from convexprobe.probes.scores import Scores

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_FORMATS = {
    "layer": "{}", "features": "{}", "l2": "{:.2e}", "loss": "{:.4f}", "gap": "{:.1e}",
    "gap/H(Y)": "{:.3%}", "train_error": "{:.2%}", "validation_error": "{:.2%}",
    "passes": "{:.0f}", "seconds": "{:.2f}", "status": "{}",
}  # fmt: skip
"""The columns of the table, and how each is printed."""

WORDS = (0, len(_FORMATS) - 1)
"""Numbers of the columns that are words."""

_LEGEND = f"""objective: {OBJECTIVE}
gap: how far above its optimum the objective is at most, nats; certified: gap <= tol * H(Y), where
     H(Y) is the label entropy, the loss of the best constant classifier, and tol=0.001 is 0.1%"""

_EDGE = """
smallest l2, largest l2: of the penalties that were tried, the best is the one at that end; a better
     one may lie beyond it, so try others with l2=[...]"""

_STANDARDIZED = "\nstandardized: the penalty is l2/2 ||W scale||^2 in probes that have a scale"


class ProbeSet(Mapping[str, Probe]):
    """The probes of a network by layer, in its order. Prints as a table; `a | b` joins two sets."""

    def __init__(self, probes: Mapping[str, Probe]) -> None:
        if not isinstance(probes, Mapping):
            raise TypeError(f"probes: expected a mapping of probes, found {shown(probes)}")
        for name, probe in probes.items():
            if not isinstance(name, str) or not isinstance(probe, Probe):
                raise TypeError(f"probes[{name!r}]: expected a probe by name, found {shown(probe)}")
        self._probes = dict(probes)

    def __getitem__(self, layer: str) -> Probe:
        check_layer(layer, self._probes, "probes")
        return self._probes[layer]

    def get(self, layer: str, default: Any = None) -> Any:
        """The probe of a layer, or the default: of a missing one `[]` raises a ValueError."""
        return self._probes.get(layer, default)

    def __contains__(self, layer: object) -> bool:
        return layer in self._probes

    def __iter__(self) -> Iterator[str]:
        return iter(self._probes)

    def __len__(self) -> int:
        return len(self._probes)

    def __or__(self, other: Mapping[str, Probe]) -> ProbeSet:
        return ProbeSet({**self._probes, **ProbeSet(other)})

    def evaluate(
        self,
        activations: Any,
        labels: Any,
        process_group: Any = None,
        *,
        sample_weight: Any = None,
        groups: Any = None,
        bootstrap: int = 0,
        seed: int = 0,
    ) -> Scores:
        """Score the probe of every layer given on labelled rows.

        Args:
            activations: layer name -> `(n, d)`, or one such array.
            labels: as for `fit_probes`; of concepts, some are enough. Rows whose label a concept
                does not know are not counted in it.
            process_group: as for `fit_probes`: every rank gets the scores of all ranks' rows.
            sample_weight: `(n,)` non-negative weights.
            groups: as for `fit_probes`: a bootstrap sample takes all rows of a group or none.
            bootstrap: number of bootstrap samples, the same for every probe.
            seed: of their draw.

        Returns:
            The scores by probe: a dictionary with a table.

        Raises:
            ValueError: a layer without a probe, or input refused as by `fit_probes`.
        """
        communicator = Communicator.of(process_group)
        with communicator.raise_together():
            layers = check_activations(activations, min_rows=communicator.min_rows)
            rows = next(iter(layers.values())).shape[0]
            concepts = split_concepts(labels, rows)
            for name in (probe_name(layer, concept) for layer in layers for concept in concepts):
                check_layer(name, self._probes, "probes")
        communicator.check_same(activations=tuple(layers), labels=f"concepts {[*concepts]}")
        if groups is None and bootstrap:
            groups = example_groups(activations, communicator)
        draws = read_draws(groups, rows, bootstrap, seed, communicator)
        with communicator.raise_together():
            return Scores(
                {
                    (layer, concept): evaluate_probe(
                        self[probe_name(layer, concept)], x, values, sample_weight, draws,
                        communicator, layer=layer, concept=concept,
                    )
                    for layer, x in layers.items()
                    for concept, values in concepts.items()
                }
            )  # fmt: skip

    def plot(
        self,
        scores: Mapping[str, Score] | None = None,
        ax: Axes | None = None,
        *,
        label: str = "",
        relative_depth: bool = False,
    ) -> Axes:
        """Draw the paper's figure: error by layer, one curve a concept.

        Networks are compared on the same axes, over relative depth if they have other layers:

            ax = small.plot(label="small", relative_depth=True)
            large.plot(ax=ax, label="large", relative_depth=True)

        Args:
            scores: what `evaluate` returned; without it, validation errors if all probes have one,
                else training errors. The axis says which.
            ax: axes to draw on; new ones when None.
            label: what the legend calls these probes.
            relative_depth: as for `plot_errors`.
        """
        if not isinstance(label, str):
            raise TypeError(f"label: expected a string, found {shown(label)}")
        check_bool("relative_depth", relative_depth)
        places = {n: (layer_of(n, probe.concept), probe.concept) for n, probe in self.items()}
        train = {n: p.train_error for n, p in self.items()}
        held = {n: p.validation_error for n, p in self.items() if p.validation_error is not None}
        errors, what = train, "training error"
        if scores is not None:
            if not all(isinstance(score, Score) for score in dict(scores).values()):
                raise TypeError("scores: expected what `evaluate` returned, scores by layer")
            if isinstance(scores, Scores):
                places |= scores.places
            errors, what = {n: s.error for n, s in scores.items()}, "error"
        elif len(held) == len(self):
            errors, what = held, "validation error"
        curves: dict[str, dict[str, float]] = {}
        for name, error in errors.items():
            layer, concept = places.get(name, (name, None))
            curves.setdefault(", ".join(filter(None, (label, concept))), {})[layer] = error
        return plot_errors(curves, ax=ax, ylabel=what, relative_depth=relative_depth)

    def table(self) -> list[dict[str, Any]]:
        """A row for every probe: what the printed table shows, as numbers."""
        return [
            {
                "layer": name,
                "features": probe.weights.shape[1],
                "l2": probe.l2,
                "loss": probe.loss,
                "gap": probe.gap,
                "gap/H(Y)": probe.gap / probe.label_entropy,
                "train_error": probe.train_error,
                "validation_error": probe.validation_error,
                "passes": probe.passes,
                "seconds": probe.seconds,
                "status": probe.verdict,
            }
            for name, probe in self.items()
        ]

    def to_frame(self) -> Any:
        """The table as a pandas frame, by layer.

        Raises:
            ImportError: pandas is not installed.
        """
        import pandas as pd

        return pd.DataFrame(self.table()).set_index("layer")

    def cells(self) -> list[list[str]]:
        """The printed table, cell by cell; the first row has the names of the columns."""
        rows = [list(_FORMATS)]
        for row in self.table():
            rows.append(["" if row[c] is None else f.format(row[c]) for c, f in _FORMATS.items()])
        return rows

    @property
    def legend(self) -> str:
        """What was solved and what the columns mean, a few lines of text."""
        scaled = any(probe.scale is not None for probe in self.values())
        ends = ("smallest l2", "largest l2")
        at_an_end = any(probe.verdict.endswith(ends) for probe in self.values())
        return _LEGEND + (_EDGE if at_an_end else "") + (_STANDARDIZED if scaled else "")

    def __str__(self) -> str:
        return f"{aligned(self.cells(), left=WORDS)}\n{self.legend}"

    __repr__ = __str__

    def _repr_html_(self) -> str:
        return html_table(self.cells(), left=WORDS) + html_lines(self.legend)

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write a safetensors file, which appears complete or not at all.

        Raises:
            TypeError: a class other than str, int, float, bool and None.
            OSError: the file cannot be written; one that was there stays.
        """
        write_probes(path, self._probes)

    def save_pretrained(
        self,
        directory: str | os.PathLike[str],
        *,
        scores: Mapping[str, Score] | None = None,
        description: str = "",
    ) -> None:
        """Write a folder that can be uploaded to a hub as it is.

        It has `probes.safetensors`, which `load_probes` reads; `directions.safetensors`, with the
        `Probe.direction` of every class by layer, `(k, d)`; and `README.md`, a model card that says
        what was solved, on what, with which gap, and how the arrays are read without this library.

        Args:
            directory: it is made if it is not there; files of these names are replaced.
            scores: what `evaluate` returned, for the card.
            description: Markdown for the card: which network, data and labels these are.

        Raises:
            TypeError: a class other than str, int, float, bool and None.
            ValueError: no probes, or a score of a probe that is not there.
            OSError: the folder cannot be written.
        """
        write_folder(directory, self._probes, scores or {}, description)


def load_probes(path: str | os.PathLike[str]) -> ProbeSet:
    """Read what `ProbeSet.save` wrote, with NumPy arrays, and check it. No pickle is read.

    Raises:
        FileNotFoundError: no such file.
        ValueError: not a regular file, another file, or a damaged one.
    """
    return ProbeSet(read_probes(path))
