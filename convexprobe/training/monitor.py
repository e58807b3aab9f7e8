"""`ProbeMonitor`: probes of one network again and again, each starting from the last."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Iterable, Mapping
from functools import partial
from typing import Any

import numpy as np
from torch import nn

from convexprobe._arguments import (
    check_bool,
    check_choice,
    check_integer,
    check_path,
    check_real,
    shown,
)
from convexprobe._hashing import fingerprint
from convexprobe.arrays.ranks import Communicator
from convexprobe.extraction.batch import AxisChoice, axis_of, batch_axes
from convexprobe.extraction.identity import describe_function
from convexprobe.extraction.layer_names import LayerChoice, choose_layers
from convexprobe.extraction.masks import MaskChoice, check_mask
from convexprobe.extraction.pooling import EXAMPLES, PoolChoice, pool_rules
from convexprobe.probes.class_weights import check_class_weight, row_weights
from convexprobe.probes.columns import host_vector
from convexprobe.probes.groups import read_groups
from convexprobe.probes.labels import check_two_classes, concept_place, known_codes, read_labels
from convexprobe.probes.options import SCORING, check_l2
from convexprobe.solvers import Solver, by_name
from convexprobe.training.dataset import RepeatableData
from convexprobe.training.history import ProbeHistory
from convexprobe.training.measurement import Measurement
from convexprobe.training.recorder import Recorder
from convexprobe.training.results import Entry

STARTS = ("auto", "copy", "zero")


class ProbeMonitor:
    """Fit probes of every layer, whenever asked to, while a network trains.

        monitor = ProbeMonitor(inputs, labels, out="probes")
        entry = monitor.record(model, step)  # in the training loop, as often as wanted
        print(entry)  # a line a layer; `entry.scalars()` is what a log takes
        monitor.history.plot_layers()

    Every step uses the same rows, the same random choices and the same penalty for each layer, so
    that a curve moves only because the network does. A probe starts from that of the last step (see
    `solvers.starts`); with `l2 > 0` the optimum is unique, so the start cannot bias it.

    Threads may share a monitor: it serves one at a time, and the others wait.

    The training stays the same bit for bit: the monitor restores the model's weights, buffers,
    training flags and attributes, and the global random states of torch, NumPy and Python.

    Memory: `n d` numbers a layer for the activations of one step, fitted and held-out rows, and
    `4 n k` bytes a layer (at most 64 MiB) for the logits that the next step starts from.

    Args:
        data: inputs `(n, ...)` with `labels`, or a mapping of them (keyword arguments of the
            model); or a loader of batches as `extract` takes them, which gives the same rows in the
            same order every time.
        labels: of any form that `fit_probes` takes: classes `(n,)`, or concepts by name, each of
            which may not know some. If rows are tokens or words, classes `(n, t)`, or a mapping of
            them; -100 leaves a token out.
        layers: as in `extract`.
        pool: as in `extract`; `random_features(1000)` keeps feature maps small.
        mask, batch_axis: as in `extract`. Arrays beside labels have the batch in front.
        test: held-out rows: `(inputs, labels)`, or a loader where `data` is one. Every measure of
            them is recorded: `Entry.scores` has them by layer and concept.
        out: directory to record in, by this monitor alone until `close()`. A step that is recorded
            there, of the same network, is not computed again: a run that was killed goes on where
            it was and ends with the same bits. The network is the same if its weights, the
            attributes of its modules and its code are; if that cannot be told (it has hooks, say),
            the step is computed again, with a warning.
        warm_start: "auto" starts from the best of zero, copied and transferred weights, "copy" from
            the best of the first two, "zero" always from the best constant classifier.
        l2: a penalty for all layers, or "auto". "auto" chooses each layer's own penalty at the
            first step that is recorded, on a held-out fifth of the rows, from seven values between
            1e-6 and 1 times the layer's typical feature variance; every later step uses it again.
            Penalties that followed the variance would show their own changes as the network's.
            Layers that know nothing yet leave the choice to chance: give a number where the first
            step is of an untrained network. The choice counts in the first step's seconds, not in
            its passes.
        class_weight, scoring, standardize: as in `fit_probes`. Every step's probes are fitted to
            all rows, those that the choice of a penalty held out as well.
        groups: as in `fit_probes`, but one value an example: all tokens of an example are in its
            group.
        tol: relative tolerance of the certificate.
        solver: as in `fit_probes`.
        batch_size: rows of a batch, where `data` are tensors.
        max_passes: budget of passes for each probe.
        on_error: what to do with a step that cannot be probed, because activations are not finite,
            say, or because a forward pass raises: "warn" notes it in the history's `failures`,
            warns, once if steps fail one after another for the same reason, and goes on; "raise"
            raises. A wrong argument raises in any case, and so does a disk that cannot be written.
        seed: of the choice of l2, and of the random states while the rows are read.
        process_group: as in `fit_probes`: every rank calls with its own rows, and all record the
            same probes. The network, and the steps at which it is recorded, have to be the same on
            every rank. `out` then holds a directory for each rank, and a step counts as recorded
            when all of them have it.

    Raises:
        TypeError, ValueError: an argument refused; `out` records other settings.
        RuntimeError: another process or monitor writes to `out`.
    """

    def __init__(
        self,
        data: Any,
        labels: Any = None,
        *,
        layers: LayerChoice | None = None,
        pool: PoolChoice = "flatten",
        mask: MaskChoice | None = None,
        batch_axis: AxisChoice = 0,
        test: Any = None,
        out: str | os.PathLike[str] | None = None,
        warm_start: str = "auto",
        l2: float | str = "auto",
        class_weight: str | Mapping[Any, float] | None = None,
        groups: Any = None,
        scoring: str = "error",
        standardize: bool = False,
        tol: float = 1e-3,
        solver: str | Solver = "auto",
        batch_size: int = 250,
        max_passes: float = 1000.0,
        on_error: str = "warn",
        seed: int = 0,
        process_group: Any = None,
    ) -> None:
        self._thread, self._model_checked = threading.RLock(), False
        ranks = Communicator.of(process_group)
        with ranks.raise_together():
            penalties = check_l2(l2)
            if penalties is not None and len(penalties) != 1:
                raise ValueError(f'l2: expected one number or "auto", found {shown(l2)}')
            check_choice("warm_start", warm_start, STARTS)
            check_choice("on_error", on_error, ("warn", "raise"))
            check_integer("batch_size", batch_size, least=1)
            if check_integer("seed", seed) >= 2**32:
                raise ValueError(f"seed: expected an integer below 2**32, found {seed}")
            if out is not None:
                check_path("out", out)
            check_mask(mask)
            check_choice("scoring", scoring, SCORING)
            check_bool("standardize", standardize)
            weights = check_class_weight(class_weight)
            axis = axis_of(batch_axes(batch_axis), ["input"])
            tokens = any(rule.rows != EXAMPLES for rule in pool_rules(pool).values())
            layers = _listed(layers)
            read = partial(RepeatableData, size=batch_size, seed=seed, tokens=tokens, axis=axis)
            rows = read(data, labels, what="data")
            self._measurement = Measurement(
                data=rows,
                test=_held_out(test, rows, read),
                layers=layers,
                pool=pool,
                mask=mask,
                batch_axis=batch_axis,
                solver=by_name(solver),
                l2=None if penalties is None else float(penalties[0]),
                class_weight=weights,
                groups=None if groups is None else _read_groups(groups, rows),
                scoring=scoring,
                standardize=standardize,
                tol=check_real("tol", tol, above=0),
                max_passes=check_real("max_passes", max_passes, above=0),
                seed=seed,
                process_group=process_group,
            )
            unknown: list[str] = []
            settings = {
                "layers": _described(layers, unknown),
                "pool": _described(pool, unknown),
                "mask": _described(mask, unknown),
                "batch_axis": _described(batch_axis, unknown),
                "warm_start": warm_start,
                "l2": l2 if penalties is None else float(penalties[0]),
                "class_weight": [[repr(c), w] for c, w in weights.items()]
                if isinstance(weights, dict)
                else weights,
                "scoring": scoring,
                "standardize": standardize,
                "tol": tol,
                "solver": repr(self._measurement.solver),
                "max_passes": max_passes,
                "seed": seed,
            }
        given = {"labels": labels, "test": test, "out": out, "groups": groups}
        kinds = {name: value is None for name, value in given.items()}
        ranks.check_same(**settings, on_error=on_error, **kinds)
        self._check_labels(ranks, saved=out is not None)
        held, own = self._measurement.test, self._measurement.groups
        numbers = None if own is None else read_groups(own, len(own), ranks)
        settings |= {
            "groups": None if numbers is None else fingerprint(numbers),
            "batch_size": batch_size,
            "data": rows.description,
            "test": None if held is None else held.description,
        }
        self.recorder = Recorder(
            self._measurement,
            ranks,
            warm_start=warm_start,
            on_error=on_error,
            out=out,
            settings=settings,
            unknown=unknown,
        )

    def _check_labels(self, ranks: Communicator, *, saved: bool) -> None:
        """Refuse labels that no step could use: of one class, or test labels of other classes."""
        rows, held = self._measurement.data, self._measurement.test
        if rows.concepts is None:
            return
        targets = read_labels(rows.concepts.get(None, rows.concepts), rows.rows, None, ranks)
        classes = dict(zip(targets.names, targets.classes, strict=True))
        row_weights(targets, None, self._measurement.class_weight)  # refuses what is no class
        with ranks.raise_together():
            for index, name in enumerate(targets.names):
                place = concept_place("labels", name)
                check_two_classes(targets.codes[index], targets.known[index], place)
                if saved:
                    for c in classes[name]:
                        if not isinstance(c, str | int | float | None):
                            raise TypeError(
                                f"{place}: class {c!r} cannot be saved in out; use str or int"
                            )
            for name, values in {} if held is None else (held.concepts or {}).items():
                place = concept_place("test labels", name)
                if name not in classes:
                    raise ValueError(f"{place}: expected a concept of labels, found another")
                known_codes(name, values, classes[name], place)

    @property
    def history(self) -> ProbeHistory:
        """All that is recorded so far."""
        return self.recorder.history

    def record(self, model: nn.Module, step: int, source: str = "") -> Entry | None:
        """Probe the model as it is now; a step that is recorded of it costs a checksum.

        Args:
            model: the network, in any mode.
            step: its training step, at least 0.
            source: what messages and the table call it.

        Returns:
            The step's results; None if it could not be probed and `on_error="warn"`. That includes
            a step that is recorded with other weights or of another network.

        Raises:
            TypeError, ValueError: a wrong argument; at the first call also `layers` that the model
                does not have.
            OSError: `out` cannot be written; what it holds stays complete.
        """
        with self._thread:
            with self.recorder.ranks.raise_together():
                step = check_integer("step", step)
                if not isinstance(source, str):
                    raise TypeError(f"source: expected a string, found {shown(source)}")
                if not isinstance(model, nn.Module):
                    raise TypeError(f"model: expected a torch.nn.Module, found {shown(model)}")
                self.check_model(model)
            return self.recorder.measure(model, step, source or f"step {step}", once=True)

    def check_model(self, model: nn.Module) -> None:
        """Refuse, at the first call, a model without the layers that are asked for."""
        if not self._model_checked:
            choose_layers(model, self._measurement.layers)
            self._model_checked = True

    def close(self) -> None:
        """Let others write to `out`; the history stays readable."""
        self.recorder.close()

    def __enter__(self) -> ProbeMonitor:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()


def _read_groups(groups: Any, rows: RepeatableData) -> np.ndarray:
    """A value an example, as a host vector.

    Raises:
        ValueError: not one value an example.
    """
    values, count = host_vector(groups, "groups"), rows.examples
    if values.ndim != 1 or (count is not None and len(values) != count):
        expected = "(n,)" if count is None else f"({count},)"
        raise ValueError(f"groups: expected one value an example, {expected}, found {values.shape}")
    return values


def _held_out(
    test: Any, rows: RepeatableData, read: Callable[..., RepeatableData]
) -> RepeatableData | None:
    """The held-out rows, in the form of the fitted ones."""
    if test is None:
        return None
    if rows.concepts is None:
        return read(test, None, what="test")
    if not isinstance(test, tuple | list) or len(test) != 2:
        raise ValueError(
            f"test: expected a pair (inputs, labels), as data are arrays, found {shown(test)}"
        )
    return read(test[0], test[1], what="test")


def _listed(layers: Any) -> Any:
    """A choice of layers that can be read more than once."""
    if layers is None or isinstance(layers, str) or callable(layers):
        return layers
    names = list(layers) if isinstance(layers, Iterable) else [layers]
    if odd := [name for name in names if not isinstance(name, str)]:
        raise TypeError(f"layers: expected names or a predicate, found {shown(odd[0])}")
    return names


def _described(choice: Any, unknown: list[str]) -> Any:
    """A choice of layers or pools as JSON can hold it; what of functions is unknown is added."""
    if isinstance(choice, Mapping):
        return {str(key): _described(value, unknown) for key, value in choice.items()}
    if callable(choice):
        text, more = describe_function(choice)
        unknown += more
        return text
    if isinstance(choice, list):
        return [_described(item, unknown) for item in choice]
    return choice
