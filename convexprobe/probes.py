"""The results: a probe, the set of probes of a network, and their files."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from convexprobe._array import Array, compute_dtype, like, namespace, to_numpy
from convexprobe._files import replacing
from convexprobe.inputs import (
    check_activations,
    check_labels,
    check_layer,
    encode,
    probe_name,
    split_concepts,
)
from convexprobe.measures import Score, score
from convexprobe.plots import plot_errors
from convexprobe.solve import Status
from convexprobe.sources import Rows

if TYPE_CHECKING:
    from matplotlib.axes import Axes

OBJECTIVE = "F(W, b) = weighted mean cross-entropy + l2/2 ||W||^2, b free; nats"
_FORMAT = "convexprobe-1"


@dataclass(frozen=True)
class PathPoint:
    """One penalty of a path: its solution's loss, gap (nats) and error on validation rows."""

    l2: float
    loss: float
    gap: float
    status: Status
    validation_error: float
    validation_loss: float


@dataclass(frozen=True)
class Probe:
    """A softmax-linear classifier of one layer, with its certificate.

    Attributes:
        weights: `(k, d)`, in the library and on the device of the activations.
        bias: `(k,)`; minus infinity for a class that had no rows.
        classes: the `k` classes, in the order of the rows of `weights`.
        l2: the penalty.
        loss: mean cross-entropy on the rows it was fitted to, nats, without the penalty.
        objective: loss and penalty, nats: what was minimised.
        gap: bound on `objective` minus its optimum, nats.
        status: how the solve ended.
        passes: passes over the rows; those of the whole family for a path.
        seconds: likewise.
        train_error: error on the rows it was fitted to.
        validation_error: error on validation rows, or None without them.
        rows: total weight `S` of the rows, their number if unweighted.
        start: where the solve started: "zero" (the best constant classifier), "copied" or
            "transferred" from an earlier probe, "neighbour" on a path.
        path: every penalty tried; empty for a single one.
    """

    weights: Array
    bias: Array
    classes: tuple[Any, ...]
    l2: float
    loss: float
    objective: float
    gap: float
    status: Status
    passes: float
    seconds: float
    train_error: float
    validation_error: float | None
    rows: float
    start: str = "zero"
    path: tuple[PathPoint, ...] = field(default=(), repr=False)

    @property
    def C(self) -> float:
        """scikit-learn's `C`: `1 / (l2 S)`; twice that for two classes, where it fits their
        difference alone."""
        scale = 2.0 if len(self.classes) == 2 else 1.0
        return np.inf if self.l2 == 0 else scale / (self.l2 * self.rows)

    def logits(self, x: Any) -> Array:
        """Logits `(n, k)` of rows `(n, d)`, in their library.

        Raises:
            ValueError: rows of another width.
        """
        x = check_activations(x)["activations"]
        xp, dtype = namespace(x), compute_dtype(x)
        if x.shape[1] != self.weights.shape[1]:
            raise ValueError(f"expected {self.weights.shape[1]} features, found {x.shape[1]}")
        weights, bias = like(to_numpy(self.weights), x, dtype), like(to_numpy(self.bias), x, dtype)
        out = [block @ weights.T + bias[None, :] for _, block in Rows(x).blocks()]
        return xp.concat(out, axis=0)

    def log_proba(self, x: Any) -> Array:
        """Log-probabilities `(n, k)` of rows `(n, d)`, in their library.

        Raises:
            ValueError: rows of another width.
        """
        z = self.logits(x)
        xp = namespace(z)
        z = z - xp.max(z, axis=1, keepdims=True)
        return z - xp.log(xp.sum(xp.exp(z), axis=1, keepdims=True))

    def predict_proba(self, x: Any) -> Array:
        """Probabilities `(n, k)`, columns in the order of `classes`."""
        log_p = self.log_proba(x)
        return namespace(log_p).exp(log_p)

    def predict(self, x: Any) -> np.ndarray:
        """Most probable class of each row, host `(n,)`."""
        codes = to_numpy(self.log_proba(x)).argmax(axis=1)
        table = np.empty(len(self.classes), dtype=object)
        table[:] = self.classes
        plain = len({type(c) for c in self.classes}) == 1 and not isinstance(
            self.classes[0], (tuple, frozenset)
        )
        return np.asarray(list(self.classes))[codes] if plain else table[codes]

    def evaluate(self, x: Any, labels: Any) -> Score:
        """Error, loss and usable information on labelled rows."""
        log_p = to_numpy(self.log_proba(x))
        codes, _ = encode(check_labels(labels, len(log_p)), self.classes)
        return score(log_p, codes)

    def to_linear(self) -> torch.nn.Linear:
        """The probe as a torch layer that gives logits."""
        k, d = self.weights.shape
        layer = torch.nn.utils.skip_init(torch.nn.Linear, d, k)
        with torch.no_grad():
            layer.weight.copy_(torch.tensor(to_numpy(self.weights)))
            layer.bias.copy_(torch.tensor(to_numpy(self.bias)))
        return layer


class ProbeSet(Mapping[str, Probe]):
    """The probes of a network, by layer, in its order. Prints as a table; `a | b` joins sets."""

    def __init__(self, probes: Mapping[str, Probe]) -> None:
        self._probes = dict(probes)

    def __getitem__(self, layer: str) -> Probe:
        if layer not in self._probes:
            check_layer(layer, self._probes, "probes")
        return self._probes[layer]

    def __contains__(self, layer: object) -> bool:
        return layer in self._probes

    def __iter__(self) -> Iterator[str]:
        return iter(self._probes)

    def __len__(self) -> int:
        return len(self._probes)

    def __or__(self, other: Mapping[str, Probe]) -> ProbeSet:
        return ProbeSet({**self._probes, **other})

    def evaluate(self, activations: Any, labels: Any) -> dict[str, Score]:
        """Score every layer that is in both, on labelled rows.

        Args:
            activations: layer name -> `(n, d)`, or one such array.
            labels: in the form that `fit_probes` got; with concepts, any of those.

        Raises:
            ValueError: a layer without a probe, or input refused as by `fit_probes`.
        """
        layers = check_activations(activations)
        concepts = split_concepts(labels, next(iter(layers.values())).shape[0])
        for name in (probe_name(layer, concept) for layer in layers for concept in concepts):
            check_layer(name, self._probes, "probes")
        return {
            name: self._probes[name].evaluate(x, values)
            for layer, x in layers.items()
            for name, values in ((probe_name(layer, c), v) for c, v in concepts.items())
        }

    def plot(self, scores: Mapping[str, Score] | None = None, ax: Axes | None = None) -> Axes:
        """The paper's figure: error by layer.

        Args:
            scores: what `evaluate` returned; without it, errors on validation rows where there
                were any, on the fitted rows otherwise. The axis says which.
            ax: axes to draw on.
        """
        if scores is not None:
            return plot_errors({"": {n: s.error for n, s in scores.items()}}, ax=ax)
        held_out = {
            n: p.validation_error for n, p in self.items() if p.validation_error is not None
        }
        if len(held_out) == len(self):
            return plot_errors({"": held_out}, ax=ax, ylabel="validation error")
        train = {n: p.train_error for n, p in self.items()}
        return plot_errors({"": train}, ax=ax, ylabel="training error")

    def _table(self) -> list[dict[str, Any]]:
        return [
            {
                "layer": name,
                "features": p.weights.shape[1],
                "l2": p.l2,
                "loss": p.loss,
                "gap": p.gap,
                "train_error": p.train_error,
                "validation_error": p.validation_error,
                "passes": p.passes,
                "seconds": p.seconds,
                "status": p.status.name.lower(),
            }
            for name, p in self.items()
        ]

    def to_frame(self) -> Any:
        """A pandas frame, one row a layer.

        Raises:
            ImportError: pandas is not installed.
        """
        import pandas as pd

        return pd.DataFrame(self._table()).set_index("layer")

    def __str__(self) -> str:
        formats = {
            "layer": "{}", "features": "{}", "l2": "{:.2e}", "loss": "{:.4f}", "gap": "{:.1e}",
            "train_error": "{:.2%}", "validation_error": "{:.2%}", "passes": "{:.0f}",
            "seconds": "{:.2f}", "status": "{}",
        }  # fmt: skip
        lines = [list(formats)]
        for row in self._table():
            lines.append(["" if row[c] is None else f.format(row[c]) for c, f in formats.items()])
        widths = [max(len(line[i]) for line in lines) for i in range(len(formats))]
        rows = (
            "  ".join(c.ljust(w) if i in (0, 9) else c.rjust(w) for i, (c, w) in enumerate(pairs))
            for pairs in (list(zip(line, widths, strict=True)) for line in lines)
        )
        return "\n".join([*(r.rstrip() for r in rows), f"objective: {OBJECTIVE}"])

    __repr__ = __str__

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write a safetensors file; it appears complete or not at all.

        Raises:
            TypeError: classes that JSON cannot hold (only str, int, float, bool and None can).
        """
        tensors, meta = {}, []
        for i, (name, probe) in enumerate(self.items()):
            for c in probe.classes:
                if not isinstance(c, (str, int, float, bool, type(None))):
                    raise TypeError(f"layer {name!r}: class {c!r} cannot be saved; use str or int")
            # safetensors writes the raw buffer, so anything not in C order would be scrambled.
            tensors[f"{i}.weights"] = np.ascontiguousarray(to_numpy(probe.weights))
            tensors[f"{i}.bias"] = np.ascontiguousarray(to_numpy(probe.bias))
            entry = asdict(replace(probe, weights=None, bias=None))
            for item in (entry, *entry["path"]):
                item["status"] = item["status"].name
            meta.append({"layer": name, **entry})
        with replacing(path) as temporary:
            save_file(tensors, temporary, {"format": _FORMAT, "probes": json.dumps(meta)})


def load_probes(path: str | os.PathLike[str]) -> ProbeSet:
    """Read what `ProbeSet.save` wrote; arrays come back as NumPy. No pickle is read.

    Raises:
        FileNotFoundError: no such file.
        ValueError: not such a file, or a damaged one.
    """
    if not Path(path).is_file():
        raise FileNotFoundError(f"no file {os.fspath(path)!r}")
    try:
        with safe_open(path, framework="numpy") as file:
            meta = file.metadata() or {}
            if meta.get("format") != _FORMAT:
                raise ValueError(f"{os.fspath(path)!r} is not a file of probes ({_FORMAT})")
            probes = {}
            for i, entry in enumerate(json.loads(meta["probes"])):
                name = entry.pop("layer")
                path_points = tuple(
                    PathPoint(**{**point, "status": Status[point["status"]]})
                    for point in entry.pop("path")
                )
                entry.update(
                    weights=file.get_tensor(f"{i}.weights"),
                    bias=file.get_tensor(f"{i}.bias"),
                    classes=tuple(entry["classes"]),
                    status=Status[entry["status"]],
                    path=path_points,
                )
                probes[name] = Probe(**entry)
    except (SafetensorError, AttributeError, KeyError, TypeError, json.JSONDecodeError) as error:
        raise ValueError(f"{os.fspath(path)!r}: damaged or not a file of probes: {error}") from None
    return ProbeSet(probes)
