"""`ProbeMonitor`: probes of one network again and again, each starting from the last."""

from __future__ import annotations

import json
import os
import time
import warnings
from collections.abc import Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from convexprobe._arguments import check_choice, check_real
from convexprobe._hashing import digest, fingerprint
from convexprobe._random_state import random_states_kept
from convexprobe.arrays.backend import to_numpy
from convexprobe.arrays.ranks import Communicator
from convexprobe.extraction.dataset import RepeatableData
from convexprobe.extraction.extract import extract
from convexprobe.extraction.layer_names import LayerChoice
from convexprobe.extraction.pooling import PoolChoice
from convexprobe.probes.fit import fit_probes
from convexprobe.probes.options import check_l2
from convexprobe.probes.probe_set import ProbeSet
from convexprobe.probes.warm_start import Remembered, remember
from convexprobe.solvers import Solver, by_name
from convexprobe.training.history import ProbeHistory
from convexprobe.training.results import Entry, LayerResult
from convexprobe.training.run_directory import RunDirectory, lock_directory

STARTS = ("auto", "copy", "zero")


class ProbeMonitor:
    """Fit probes of every layer, whenever asked to, while a network trains.

        monitor = ProbeMonitor(inputs, labels, out="probes")
        monitor.record(model, step)  # in the training loop, as often as wanted
        monitor.history.plot_layers()

    Every step uses the same rows, the same random choices and the same penalty for each layer, so
    that a curve moves only because the network does. A probe starts from that of the last step (see
    `solvers.starts`); with `l2 > 0` the optimum is unique, so the start cannot bias it.

    The training stays the same bit for bit: the monitor restores the model's weights, buffers,
    training flags and attributes, and the global random states of torch, NumPy and Python.

    Memory: `n d` numbers a layer for the activations of one step, fitted and held-out rows, and
    `4 n k` bytes a layer (at most 64 MiB) for the logits that the next step starts from.

    Args:
        data: inputs `(n, ...)` with `labels`, or a mapping of them (keyword arguments of the
            model); or a loader of batches as `extract` takes them, which gives the same rows in the
            same order every time.
        labels: classes `(n,)`, integers.
        layers: as in `extract`.
        pool: as in `extract`; `random_features(1000)` keeps feature maps small.
        test: held-out rows: `(inputs, labels)`, or a loader where `data` is one.
        out: directory to record in. Steps that are recorded there are not computed again: a run
            that was killed goes on where it was and ends with the same bits.
        warm_start: "auto" starts from the best of zero, copied and transferred weights, "copy" from
            the best of the first two, "zero" always from the best constant classifier.
        l2: a penalty for all layers, or "auto". "auto" chooses each layer's own penalty at the
            first step that is recorded, on a held-out fifth of the rows, from seven values between
            1e-6 and 1 times the layer's mean feature variance; every later step uses it again.
            Penalties that followed the variance would show their own changes as the network's. The
            choice counts in the first step's seconds, not in its passes.
        tol: relative tolerance of the certificate.
        solver: as in `fit_probes`.
        batch_size: rows of a batch, where `data` are tensors.
        max_passes: budget of passes for each probe.
        on_error: what to do with a step that cannot be probed (activations that are not finite,
            say): "warn" notes it in the history's `failures` and goes on, "raise" raises. The first
            step always raises, and so does a disk that cannot be written.
        seed: of the choice of l2, and of the random states while the rows are read.
        process_group: as in `fit_probes`: every rank calls with its own rows, and all record the
            same probes. `out` then holds a directory for each rank, and a step counts as recorded
            when all of them have it.

    Raises:
        TypeError, ValueError: an argument refused; `out` records other settings.
        RuntimeError: another process or monitor writes to `out`, until its `close()`.
    """

    def __init__(
        self,
        data: Any,
        labels: Any = None,
        *,
        layers: LayerChoice | None = None,
        pool: PoolChoice = "flatten",
        test: Any = None,
        out: str | os.PathLike[str] | None = None,
        warm_start: str = "auto",
        l2: float | str = "auto",
        tol: float = 1e-3,
        solver: str | Solver = "auto",
        batch_size: int = 250,
        max_passes: float = 1000.0,
        on_error: str = "warn",
        seed: int = 0,
        process_group: Any = None,
    ) -> None:
        self.ranks, self._process_group = Communicator.of(process_group), process_group
        penalties = check_l2(l2)
        if penalties is not None and len(penalties) != 1:
            raise ValueError(f'l2: expected one number or "auto", found {l2!r}')
        check_choice("warm_start", warm_start, STARTS)
        check_choice("on_error", on_error, ("warn", "raise"))
        check_real("tol", tol, above=0)
        self._solver = by_name(solver)
        self._data = RepeatableData(data, labels, batch_size, "data")
        pair = isinstance(test, tuple | list) and len(test) == 2
        if test is not None and labels is not None and not pair:
            raise ValueError("test: expected a pair (inputs, labels), as data are tensors")
        held, held_labels = (test, None) if test is None or labels is None else test
        self._test = None if test is None else RepeatableData(held, held_labels, batch_size, "test")
        self._layers, self._pool = layers, pool
        self._l2 = None if penalties is None else float(penalties[0])
        self._tol, self._max_passes, self._seed = tol, max_passes, seed
        self._warm_start, self._on_error = warm_start, on_error
        settings = {
            "layers": _described(layers),
            "pool": _described(pool),
            "data": self._data.description,
            "test": None if self._test is None else self._test.description,
            "batch_size": batch_size,
            "warm_start": warm_start,
            "l2": l2,
            "tol": tol,
            "solver": repr(self._solver),
            "max_passes": max_passes,
            "seed": seed,
        }
        if out is not None and self.ranks.size > 1:
            out = Path(out, f"rank_{self.ranks.rank}_of_{self.ranks.size}")
        with self.ranks.raise_together():
            self._lock = None if out is None else lock_directory(out)
            self._directory = None if out is None else RunDirectory(out, settings)
        entries = {} if self._directory is None else self._directory.entries
        # A kill may have come between two ranks' writing: that step is done again by all.
        steps = [set(json.loads(text)) for text in self.ranks.texts(json.dumps(list(entries)))]
        complete = set.intersection(*steps)
        self._entries = {step: entry for step, entry in entries.items() if step in complete}
        self._kept: dict[int, ProbeSet] = {}  # by step, where there is no directory
        self._last: tuple[int, Remembered | ProbeSet] | None = None  # a step and its probes
        self._failures: dict[str, str] = {}

    @property
    def history(self) -> ProbeHistory:
        """All that is recorded so far."""
        source = self._kept if self._directory is None else self._directory
        return ProbeHistory(list(self._entries.values()), source, list(self._failures.items()))

    def close(self) -> None:
        """Let others write to `out`; the history stays readable."""
        if self._lock is not None:
            self._lock.close()

    def recorded(self, step: int | None) -> bool:
        """Whether the step is recorded already."""
        return step in self._entries

    def record(self, model: nn.Module, step: int, source: str = "") -> Entry | None:
        """Probe the model as it is now; a step that is recorded with these weights costs a hash.

        Args:
            model: the network, in any mode.
            step: its training step, at least 0.
            source: what messages and the table call it.

        Returns:
            The step's results; None if it could not be probed and `on_error="warn"`.

        Raises:
            ValueError: the step is recorded with other weights.
            OSError: `out` cannot be written; what it holds stays complete.
        """
        if isinstance(step, bool) or int(step) != step or step < 0:
            raise ValueError(f"step: expected an integer of at least 0, found {step!r}")
        step, source = int(step), source or f"step {step}"
        weights = digest({k: v for k, v in model.state_dict().items() if isinstance(v, Tensor)})
        try:
            if step in self._entries:
                if self._entries[step].weights != weights:
                    raise ValueError(f"step {step} is recorded already, with other weights")
                return self._entries[step]
            return self._measure(model, step, source, weights)
        except (TypeError, ValueError, OverflowError) as error:
            if not self._entries:
                raise
            self.failed(source, error)
            return None

    def failed(self, source: str, error: Exception) -> None:
        """Note that something could not be probed, or raise; see `on_error`."""
        if self._on_error == "raise":
            raise error
        self._failures[source] = str(error).removeprefix(f"{source}: ")
        warnings.warn(f"not probed: {source}: {self._failures[source]}", UserWarning, stacklevel=3)

    def _measure(self, model: nn.Module, step: int, source: str, weights: str) -> Entry:
        for entry in self._entries.values():
            if entry.weights == weights and entry.duplicate_of is None:
                duplicate = replace(
                    entry, step=step, source=source, duplicate_of=entry.step,
                    extract_seconds=0.0, solve_seconds=0.0, evaluate_seconds=0.0,
                )  # fmt: skip
                return self._add(duplicate, None)
        started = time.perf_counter()
        with self.ranks.raise_together():
            x, y = self._extract(model, self._data, "data")
            held = None if self._test is None else self._extract(model, self._test, "test")
            labels = fingerprint(to_numpy(y))
            for entry in self._entries.values():
                if entry.labels != labels:
                    raise ValueError(
                        f"data: expected the labels of step {entry.step}, in the same order, found "
                        "others; a loader must not shuffle"
                    )
        extracted = time.perf_counter()
        probes = self._fit(x, y, self._start(step))
        memory = remember(probes, x)
        solved = time.perf_counter()
        scores = {} if held is None else probes.evaluate(*held, self._process_group)
        entry = Entry(
            step=step,
            source=source,
            weights=weights,
            duplicate_of=None,
            labels=labels,
            extract_seconds=extracted - started,
            solve_seconds=solved - extracted,
            evaluate_seconds=time.perf_counter() - solved,
            layers=tuple(LayerResult.of(n, p, scores.get(n)) for n, p in probes.items()),
        )
        return self._add(entry, memory)

    def _extract(
        self, model: nn.Module, batches: RepeatableData, what: str
    ) -> tuple[dict[str, Tensor], Tensor]:
        with random_states_kept(self._seed):
            rows, labels = extract(
                model, batches.loader(), self._layers, pool=self._pool, progress=False
            )
        if labels is None:
            raise ValueError(f"{what}: expected batches with labels, found none")
        return rows, labels

    def _fit(
        self, x: dict[str, Tensor], y: Tensor, start: Remembered | ProbeSet | None
    ) -> ProbeSet:
        chosen = {r.layer: r.l2 for entry in self._entries.values() for r in entry.layers}
        fit = partial(
            fit_probes, labels=y, solver=self._solver, tol=self._tol, max_passes=self._max_passes,
            progress=False, process_group=self._process_group,
        )  # fmt: skip
        probes = ProbeSet({})
        for name, rows in x.items():
            l2, first = self._l2 if self._l2 is not None else chosen.get(name), start
            if l2 is None:
                path = fit({name: rows}, seed=self._seed)
                l2, first = path[name].l2, path
            probes |= fit({name: rows}, l2=l2, warm_start=first)
        return probes

    def _start(self, step: int) -> Remembered | ProbeSet | None:
        """Return the probes of the nearest step, the earlier of two.

        The choice depends on what is recorded alone, so that a resumed run makes the same.
        """
        if self._warm_start == "zero" or not self._entries:
            return None
        near = min(self._entries, key=lambda other: (abs(other - step), other))
        original = self._entries[near].duplicate_of
        near = near if original is None else original
        if self._last is None or self._last[0] != near:
            directory = self._directory
            self._last = near, directory.remembered(near) if directory else self._kept[near]
        last = self._last[1]
        return last.probes if self._warm_start == "copy" and isinstance(last, Remembered) else last

    def _add(self, entry: Entry, memory: Remembered | None) -> Entry:
        if self._directory is not None:
            self._directory.add(entry, memory)
        elif memory is not None:
            self._kept[entry.step] = memory.probes
        self._entries[entry.step] = entry
        self._failures.pop(entry.source, None)
        if memory is not None:
            self._last = entry.step, memory
        return entry


def _described(choice: Any) -> Any:
    """Return a choice of layers or pools as JSON can hold it, functions by their names."""
    if callable(choice):
        return f"{choice.__module__}.{getattr(choice, '__qualname__', repr(choice))}"
    if isinstance(choice, Mapping):
        return {str(key): _described(value) for key, value in choice.items()}
    if choice is None or isinstance(choice, str):
        return choice
    return [_described(item) for item in choice]
