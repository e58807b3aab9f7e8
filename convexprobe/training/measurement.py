"""Measure one network: extract its activations, fit a probe of every layer, score held-out rows."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
from torch import nn

from convexprobe._random_state import random_states_kept
from convexprobe.activations.layers import Activations
from convexprobe.arrays.ranks import Communicator
from convexprobe.extraction.batch import AxisChoice
from convexprobe.extraction.extract import extract
from convexprobe.extraction.layer_names import LayerChoice
from convexprobe.extraction.masks import MaskChoice
from convexprobe.extraction.pooling import PoolChoice
from convexprobe.probes.fit import fit_probes
from convexprobe.probes.labels import probe_name, read_labels
from convexprobe.probes.probe_set import ProbeSet
from convexprobe.probes.warm_start import Remembered, remember
from convexprobe.solvers import Solver
from convexprobe.training.dataset import Concepts, RepeatableData, labels_checksum
from convexprobe.training.results import LayerResult


@dataclass(frozen=True)
class Measured:
    """What is measured of one network; fields beside `memory` are those of `Entry`."""

    memory: Remembered
    labels: str
    extract_seconds: float
    solve_seconds: float
    evaluate_seconds: float
    layers: tuple[LayerResult, ...]


@dataclass(frozen=True)
class Measurement:
    """What is the same for every step: rows, layers and the settings of fits, as in `ProbeMonitor`.

    `l2` is None for "auto". `groups` are this rank's, a host vector with a value an example.
    """

    data: RepeatableData
    test: RepeatableData | None
    layers: LayerChoice | None
    pool: PoolChoice
    mask: MaskChoice | None
    batch_axis: AxisChoice
    solver: Solver
    l2: float | None
    class_weight: str | dict[Any, float] | None
    groups: np.ndarray | None
    scoring: str
    standardize: bool
    tol: float
    max_passes: float
    seed: int
    process_group: Any

    def run(
        self,
        model: nn.Module,
        start: Remembered | ProbeSet | None,
        penalties: Mapping[str, float],
        labels: str | None,
    ) -> Measured:
        """Measure a network.

        Args:
            model: the network; it stays as it is.
            start: earlier probes to start from.
            penalties: those already chosen, by probe.
            labels: checksum of the labels of earlier steps, which must be the same; None at first.

        Raises:
            ValueError: other labels, activations that are not finite, and whatever the model, the
                loader, or a pool of the user's own raises.
        """
        started, ranks = time.perf_counter(), Communicator.of(self.process_group)
        with ranks.raise_together():
            x, y = self._extract(model, self.data)
            held = None if self.test is None else self._extract(model, self.test)
            checksum = labels_checksum(y)
            if labels not in (None, checksum):
                raise ValueError(
                    "data: expected the labels of the steps before, in the same order, found "
                    "others; a loader must not shuffle"
                )
        extracted = time.perf_counter()
        probes = self._fit(x, y, start, penalties)
        with ranks.raise_together():
            memory = remember(probes, x)
        solved = time.perf_counter()
        held_labels = None if held is None else _as_given(held[1])
        scores = {} if held is None else probes.evaluate(held[0], held_labels, self.process_group)
        return Measured(
            memory,
            checksum,
            extracted - started,
            solved - extracted,
            time.perf_counter() - solved,
            tuple(LayerResult.of(name, probe, scores.get(name)) for name, probe in probes.items()),
        )

    def _extract(self, model: nn.Module, data: RepeatableData) -> tuple[Activations, Concepts]:
        with random_states_kept(self.seed):
            rows, labels = extract(
                model, data.loader(), self.layers, pool=self.pool, mask=self.mask,
                batch_axis=self.batch_axis, progress=False,
            )  # fmt: skip
        return rows, data.read_labels(labels)

    def _fit(
        self,
        x: Activations,
        y: Concepts,
        start: Remembered | ProbeSet | None,
        penalties: Mapping[str, float],
    ) -> ProbeSet:
        ranks = Communicator.of(self.process_group)
        with ranks.raise_together():
            groups = self._groups_of(x)
        fit = partial(
            fit_probes, solver=self.solver, tol=self.tol, max_passes=self.max_passes,
            groups=groups, standardize=self.standardize, progress=False,
            process_group=self.process_group,
        )  # fmt: skip
        class_weight = self._class_weights(y, ranks)
        probes = ProbeSet({})
        for layer, rows in x.items():
            one = Activations({layer: rows}, x.examples, x.positions)
            concepts = {probe_name(layer, concept): concept for concept in y}
            if twice := concepts.keys() & probes.keys():
                raise ValueError(f"labels: two of layer/concept have the name {min(twice)!r}")
            given = {n: penalties.get(n) if self.l2 is None else self.l2 for n in concepts}
            chosen, first = {n: l2 for n, l2 in given.items() if l2 is not None}, start
            if len(chosen) < len(concepts):
                path = fit(
                    one, _as_given(y), seed=self.seed, scoring=self.scoring, refit=False,
                    class_weight=self.class_weight,
                )  # fmt: skip
                chosen, first = {n: path[n].l2 for n in concepts}, path
            fitted: dict[str, Any] = {}
            for l2 in dict.fromkeys(chosen.values()):  # concepts of one penalty together
                part = {c: y[c] for n, c in concepts.items() if chosen[n] == l2}
                weight = (
                    class_weight
                    if isinstance(class_weight, str | None)
                    else {name: value for c in part for name, value in class_weight[c].items()}
                )
                fitted |= fit(one, _as_given(part), l2=l2, warm_start=first, class_weight=weight)
            probes |= {name: fitted[name] for name in concepts}
        return probes

    def _groups_of(self, x: Activations) -> np.ndarray | None:
        """The groups of this rank's rows: those of the examples that tokens are of.

        Raises:
            ValueError: there are more examples than groups.
        """
        if self.groups is None or x.examples is None:
            return self.groups
        last = int(x.examples.max(initial=-1))
        if last >= len(self.groups):
            raise ValueError(
                f"groups: expected one value an example, found {len(self.groups)}, and a token of "
                f"example {last}, counted from 0"
            )
        return self.groups[x.examples]

    def _class_weights(
        self, y: Concepts, ranks: Communicator
    ) -> str | dict[str | None, dict[Any, float]] | None:
        """The weights of classes; of a mapping, those that each concept has: concepts are fitted in
        several parts, and a class of another part is no mistake."""
        if not isinstance(self.class_weight, dict):
            return self.class_weight
        labels = read_labels(_as_given(y), len(next(iter(y.values()))), None, ranks)
        return {
            concept: {c: w for c, w in self.class_weight.items() if c in classes}
            for concept, classes in zip(labels.names, labels.classes, strict=True)
        }


def _as_given(labels: Concepts) -> Any:
    """The labels as `fit_probes` takes them."""
    return labels.get(None, labels)
