"""`Recorder`: what was measured of a network at every step, in memory or in a directory."""

from __future__ import annotations

import json
import os
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from textwrap import shorten
from typing import Any

from torch import Tensor, nn

from convexprobe._hashing import digest
from convexprobe._locks import DirectoryLock
from convexprobe.arrays.ranks import Communicator, LostRankError
from convexprobe.extraction.identity import ModelIdentity, describe_model
from convexprobe.extraction.model_state import locked
from convexprobe.probes.probe_set import ProbeSet
from convexprobe.probes.warm_start import Remembered
from convexprobe.training.history import ProbeHistory
from convexprobe.training.measurement import Measurement
from convexprobe.training.results import Entry
from convexprobe.training.run_directory import RunDirectory, lock_directory


class Recorder:
    """Measures networks, keeps the results by step, and measures nothing twice.

    Over ranks every decision is one of all: to take over what is recorded, to see a duplicate, to
    fail.

    Args:
        measurement: how a network is measured.
        ranks: those over which its rows are distributed.
        warm_start: "auto", "copy" or "zero".
        on_error: "warn" or "raise".
        out: the directory, or None.
        settings: what is recorded there of the run.
        unknown: sentences on what of the settings cannot be told; nothing is taken over then.

    Attributes:
        entries: by step.
        failures: reasons by source.

    Raises:
        ValueError: `out` records other settings, or something else.
        OSError: it cannot be written.
        RuntimeError: it has another writer.
    """

    def __init__(
        self,
        measurement: Measurement,
        ranks: Communicator,
        *,
        warm_start: str,
        on_error: str,
        out: str | os.PathLike[str] | None,
        settings: Mapping[str, Any],
        unknown: Sequence[str],
    ) -> None:
        self.measurement, self.ranks = measurement, ranks
        self.failures: dict[str, str] = {}
        self._warm_start, self._on_error = warm_start, on_error
        self._kept: dict[int, ProbeSet] = {}  # by step, where there is no directory
        self._last: tuple[int, Remembered | ProbeSet] | None = None  # a step and its probes
        self._warned = False
        self._last_reason: str | None = None  # of a failure after which nothing was measured
        self._lock: DirectoryLock | None = None
        self._directory: RunDirectory | None = None
        with self.ranks.raise_together():
            if out is not None:
                rank = f"rank_{ranks.rank}_of_{ranks.size}" if ranks.size > 1 else ""
                self._lock = lock_directory(Path(out, rank))
                try:
                    self._directory = RunDirectory(Path(out, rank), settings)
                except BaseException:
                    self._lock.close()
                    raise
        self.entries = self._recorded_by_all()
        if unknown and self.entries:
            self._warn_unknown(unknown)
            self.entries = {}

    def _recorded_by_all(self) -> dict[int, Entry]:
        """The entries that every rank has: a kill may come between the writing of two ranks."""
        entries = {} if self._directory is None else self._directory.entries
        keys = {s: json.dumps([s, e.weights, e.duplicate_of]) for s, e in entries.items()}
        texts = self.ranks.texts(json.dumps(list(keys.values())))
        common = set.intersection(*(set(json.loads(text)) for text in texts))
        complete = {s: e for s, e in entries.items() if keys[s] in common}
        return {s: e for s, e in complete.items() if e.duplicate_of in (None, *complete)}

    @property
    def history(self) -> ProbeHistory:
        """All that is recorded so far."""
        source = self._kept if self._directory is None else self._directory
        return ProbeHistory(list(self.entries.values()), source, list(self.failures.items()))

    def close(self) -> None:
        """Let others write to the directory."""
        if self._lock is not None:
            self._lock.close()

    def fail(self, source: str, error: Exception, *, once: bool = False) -> None:
        """Note that something could not be probed, and warn, or raise; see `on_error`.

        Args:
            source: what could not be probed.
            error: why.
            once: warn of a reason once, until something is measured: a training may fail at every
                step for the same one.
        """
        if self._on_error == "raise":
            raise error
        known = isinstance(error, TypeError | ValueError | OverflowError)
        text = str(error).removeprefix(f"{source}: ")
        text = text if known else f"{type(error).__name__}: {text}"
        self.failures[source] = shorten(text, 400, placeholder="...")  # torch may list its backends
        reason, before = text.replace(source, ""), self._last_reason
        self._last_reason = reason
        if not once or reason != before:
            message = f"not probed: {source}: {self.failures[source]}"
            warnings.warn(message, UserWarning, stacklevel=4)

    def measure(
        self,
        model: nn.Module,
        step: int,
        source: str,
        *,
        stamp: str | None = None,
        replaces: bool = False,
        once: bool = False,
    ) -> Entry | None:
        """Measure a network, unless it is recorded at this step.

        Args:
            model: the network.
            step: its step.
            source: what messages and the table call it.
            stamp: size and modification time of its file.
            replaces: measure a step again whose weights have changed since this source was
                recorded; else that is a failure.
            once: as in `fail`.

        Returns:
            The entry; None after a failure.

        Raises:
            OSError: the directory cannot be written.
            LostRankError: another rank is gone.
        """
        try:
            with locked(model):  # while another thread runs it, it has hooks
                entry, memory = self._measure(model, step, source, stamp, replaces)
        except LostRankError:
            raise
        except Exception as error:  # whatever the model, the loader or a pool raises
            self.fail(source, error, once=once)
            return None
        if self.entries.get(step) is not entry:
            self._add(entry, memory)
        self.failures.pop(source, None)
        self._last_reason = None
        return entry

    def _measure(
        self, model: nn.Module, step: int, source: str, stamp: str | None, replaces: bool
    ) -> tuple[Entry, Remembered | None]:
        """The entry of a network, and its probes if it is not recorded already."""
        with self.ranks.raise_together():
            network = identify(model)
        self.ranks.check_same(step=step)
        self._check_same_weights(model, network.weights)
        entry = self.entries.get(step)
        if entry is not None:
            if self.all_agree(self.is_of(entry, network)):
                return entry, None
            self._make_way(entry, network, source, replaces)
        original = next(
            (e.step for e in self.entries.values() if self._is_original(e, network)), -1
        )
        texts = self.ranks.texts(str(original))
        known: dict[str, Any] = {
            "step": step, "source": source, "weights": network.weights, "stamp": stamp,
            "modules": None if network.unknown else network.modules,
        }  # fmt: skip
        if original >= 0 and set(texts) == {str(original)}:
            duplicate = replace(
                self.entries[original], **known, duplicate_of=original,
                extract_seconds=0.0, solve_seconds=0.0, evaluate_seconds=0.0,
            )  # fmt: skip
            return duplicate, None
        others = list(self.entries.values())
        with self.ranks.raise_together():
            start = self._start(step)
        measured = self.measurement.run(
            model,
            start,
            {r.layer: r.l2 for entry in others for r in entry.layers},
            others[0].labels if others else None,
        )
        values: dict[str, Any] = {k: v for k, v in vars(measured).items() if k != "memory"}
        return Entry(**known, duplicate_of=None, **values), measured.memory

    def is_of(self, entry: Entry, network: ModelIdentity) -> bool:
        """Whether an entry is of this network, as far as that can be told for certain."""
        if entry.weights != network.weights:
            return False
        if network.unknown or entry.modules is None:
            self._warn_unknown(network.unknown or ["the network that was recorded is unknown"])
            return False
        return entry.modules == network.modules

    def _is_original(self, entry: Entry, network: ModelIdentity) -> bool:
        return entry.duplicate_of is None and self.is_of(entry, network)

    def _warn_unknown(self, unknown: Sequence[str]) -> None:
        if not self._warned:
            self._warned = True
            message = (
                f"recorded steps are measured again: {unknown[0]}, so they cannot be told apart"
            )
            warnings.warn(message, UserWarning, stacklevel=6)

    def _make_way(self, entry: Entry, network: ModelIdentity, source: str, replaces: bool) -> None:
        """Delete an entry of other weights at the step, or refuse to; one unknown stays for now."""
        if entry.weights != network.weights:
            if not self.all_agree(replaces and same_source(entry.source, source)):
                raise ValueError(
                    f"step {entry.step} is recorded already, with other weights, from "
                    f"{entry.source}; take another step, or another directory"
                )
            self.remove(entry.step)
            message = f"changed since it was recorded; the probes of step {entry.step} are replaced"
            warnings.warn(f"{source}: {message}", UserWarning, stacklevel=5)
        elif not self.all_agree(bool(network.unknown) or entry.modules in (None, network.modules)):
            raise ValueError(
                f"step {entry.step} is recorded already, of a network with other modules, "
                "attributes or code; take another directory"
            )

    def remove(self, step: int) -> None:
        """Forget a step and its duplicates, which have no probes of their own."""
        steps = [e.step for e in self.entries.values() if step in (e.duplicate_of, e.step)]
        steps.sort(key=lambda other: other == step)  # a kill leaves no duplicate without probes
        for gone in steps:
            del self.entries[gone]
            self._kept.pop(gone, None)
        self._last, directory = None, self._directory
        with self.ranks.raise_together():
            if directory is not None:
                for gone in steps:
                    directory.remove(gone)

    def all_agree(self, flag: bool) -> bool:
        """Whether a flag is True on every rank."""
        return set(self.ranks.texts(str(flag))) == {"True"}

    def _check_same_weights(self, model: nn.Module, weights: str) -> None:
        """Refuse networks that differ between ranks, and name the first tensor that does."""
        if len(set(self.ranks.texts(weights))) > 1:
            with self.ranks.raise_together():
                sums = {name: digest({"": tensor})[:8] for name, tensor in _state(model).items()}
            self.ranks.check_same(tensors=list(sums))
            self.ranks.check_same(**{f"model, {name!r}": value for name, value in sums.items()})

    def _start(self, step: int) -> Remembered | ProbeSet | None:
        """The probes of the nearest step, the earlier of two.

        The choice depends on what is recorded alone, so that a resumed run makes the same.
        """
        if self._warm_start == "zero" or not self.entries:
            return None
        near = min(self.entries, key=lambda other: (abs(other - step), other))
        original = self.entries[near].duplicate_of
        near = near if original is None else original
        if self._last is None or self._last[0] != near:
            directory = self._directory
            try:
                self._last = near, directory.remembered(near) if directory else self._kept[near]
            except ValueError as error:  # somebody changed the file since it was checked
                warnings.warn(f"step {step} starts from zero: {error}", UserWarning, stacklevel=6)
                return None
        last = self._last[1]
        return last.probes if self._warm_start == "copy" and isinstance(last, Remembered) else last

    def _add(self, entry: Entry, memory: Remembered | None) -> None:
        if entry.step in self.entries:
            self.remove(entry.step)
        with self.ranks.raise_together():
            if self._directory is not None:
                self._directory.add(entry, memory)
            elif memory is not None:
                self._kept[entry.step] = memory.probes
        self.entries[entry.step] = entry
        if memory is not None:
            self._last = entry.step, memory


def identify(model: nn.Module) -> ModelIdentity:
    """What a network computes.

    Raises:
        ValueError: weights that are not there.
    """
    for name, tensor in _state(model).items():
        if tensor.is_meta:
            raise ValueError(
                f"model: {name!r} has no values (it is on the meta device, as in an offloaded "
                "model); load the model whole"
            )
    return describe_model(model)


def same_source(first: str, second: str) -> bool:
    """Whether two sources are one, written perhaps as a relative path and an absolute one."""
    return first == second or os.path.abspath(first) == os.path.abspath(second)


def _state(model: nn.Module) -> dict[str, Tensor]:
    return {**dict(model.named_parameters()), **dict(model.named_buffers())}
