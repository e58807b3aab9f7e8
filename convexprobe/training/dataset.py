"""The user's data as a loader that gives the same rows, in the same batches, every time."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from itertools import islice
from typing import Any

import numpy as np
import torch
from torch import Tensor

from convexprobe._arguments import shown
from convexprobe._hashing import fingerprint
from convexprobe._random_state import random_states_kept
from convexprobe.activations.manifest import StoredLabels
from convexprobe.arrays.backend import is_array, to_numpy
from convexprobe.extraction.batch import Batch
from convexprobe.extraction.tokens import IGNORED
from convexprobe.probes.classes import distinct, encode, unknown_labels
from convexprobe.probes.labels import concept_place, split_concepts, unknown_of

Concepts = dict[str | None, np.ndarray]
"""Labels `(n,)` by concept, of examples or of tokens; the one key None for plain labels."""


class RepeatableData:
    """Inputs and labels that can be read again and again.

    Args:
        data: inputs `(n, ...)`, or a mapping of them (keyword arguments of the model), with
            `labels`; or, without, a loader that can be iterated over again.
        labels: of any form that `fit_probes` takes; of tokens `(n, t)`, or a mapping of those.
        size: rows of a batch, where `data` are arrays.
        what: what messages call the data.
        seed: of the random states while the first batch of a loader is read.
        tokens: whether the rows of activations are tokens or words.
        axis: of the batch in the inputs of a loader.

    Attributes:
        concepts: the labels, of tokens those that a concept knows; None if each batch of a loader
            brings its own.
        examples: how many there are; None of a loader, which does not tell.
        rows: how many labels a concept has.
        description: identifies the data, for records: checksums of arrays, and of a loader its type
            and a checksum of its first batch.

    Raises:
        TypeError: data without labels, or a loader that can be iterated over only once.
        ValueError: inputs and labels of different lengths, or labels of tokens that are not
            `(n, t)`.
    """

    def __init__(
        self,
        data: Any,
        labels: Any,
        size: int,
        what: str,
        seed: int,
        *,
        tokens: bool = False,
        axis: int = 0,
    ) -> None:
        self.what, self._size, self._seed, self._given = what, size, seed, data
        self._tokens, self._axis = tokens, axis
        self._inputs: dict[str, Tensor] = {}
        self.concepts: Concepts | None = None
        self.examples: int | None = None
        if labels is None:
            self.description = self._describe_loader(data)
            return
        if axis:
            raise ValueError(
                "batch_axis: expected 0 for inputs beside labels, which are cut into batches along "
                f"axis 0, found {axis}; pass a loader of batches"
            )
        self._bare = not isinstance(data, Mapping)
        for name, value in ({"": data} if self._bare else dict(data)).items():
            where = f"{what}[{name!r}]" if name else what
            try:
                self._inputs[name] = x = torch.as_tensor(value).detach()
                if x.is_nested or x.layout != torch.strided:
                    raise TypeError("it is not dense")
            except (TypeError, ValueError, RuntimeError) as error:
                raise TypeError(
                    f"{where}: expected a dense array of inputs (n, ...) beside labels, found "
                    f"{type(value).__name__}: {error}"
                ) from None
        if not self._inputs:
            raise ValueError(f"{what}: expected inputs, found none")
        rows = {name: len(x) if x.ndim else 0 for name, x in self._inputs.items()}
        self.examples = next(iter(rows.values()))
        if len(set(rows.values())) > 1 or not self.examples:
            shapes = {name or what: tuple(x.shape) for name, x in self._inputs.items()}
            raise ValueError(f"{what}: expected inputs of as many rows, found shapes {shapes}")
        name = "labels" if what == "data" else f"{what} labels"
        if tokens:
            labels, self._numbers = _labelled_tokens(labels, self.examples, name)
        else:
            self._numbers = torch.arange(self.examples)
        self.rows = int(self._numbers.max()) + 1
        self.concepts = split_concepts(labels, self.rows, name)
        inputs = fingerprint(*(to_numpy(x) for x in self._inputs.values()))
        self.description = {
            "rows": self.rows, "inputs": inputs, "labels": labels_checksum(self.concepts)
        }  # fmt: skip

    def _describe_loader(self, loader: Any) -> dict[str, Any]:
        if is_array(loader) or isinstance(loader, Mapping | str | bytes):
            raise TypeError(
                f"{self.what}: expected labels beside {type(loader).__name__}, or a loader of "
                "batches with labels, found no labels"
            )
        if isinstance(loader, Iterator) or not isinstance(loader, Iterable):
            raise TypeError(
                f"{self.what}: without labels, expected a loader that can be iterated over again "
                f"and again, found {type(loader).__name__}"
            )
        with random_states_kept(self._seed):
            first = list(islice(loader, 1))  # none on a rank without rows
        checksums = []
        for values in first:
            try:
                batch = Batch.read(values, 0, tokens=self._tokens, axis=self._axis)
            except (TypeError, ValueError) as error:
                raise type(error)(f"{self.what}: {error}") from None
            if not batch.labels:
                raise ValueError(f"{self.what}: expected batches with labels, found none")
            checksums.append(f"{batch.checksum(0):08x}")
        return {"loader": type(loader).__name__, "first batch": checksums}

    def loader(self) -> Iterable[Any]:
        """The user's loader, or a list of views, so that `extract` knows the number of rows.

        The labels of views are the numbers of labels: `extract` takes no others than numbers.
        """
        if not self._inputs:
            return self._given
        batches = []
        for start in range(0, self.examples or 0, self._size):
            span = slice(start, start + self._size)
            batch = {name: value[span] for name, value in self._inputs.items()}
            batches.append((batch[""] if self._bare else batch, self._numbers[span]))
        return batches

    def read_labels(self, labels: StoredLabels) -> Concepts:
        """The labels of the rows, for which `extract` returned `labels`."""
        if labels is None:
            raise ValueError(f"{self.what}: expected batches with labels, found none")
        if self.concepts is not None:
            assert isinstance(labels, Tensor)  # numbers of them, see `loader`
            return {name: values[labels.numpy()] for name, values in self.concepts.items()}
        rows = len(labels if isinstance(labels, Tensor) else next(iter(labels.values())))
        return split_concepts(labels, rows, f"{self.what} labels")


def _labelled_tokens(labels: Any, examples: int, what: str) -> tuple[Any, Tensor]:
    """The labels of tokens that some concept knows, and the number of each or -100 `(n, t)`.

    Raises:
        ValueError: a concept's labels are not `(n, t)` or have another t, or none is known.
    """
    columns = dict(labels) if isinstance(labels, Mapping) else {None: labels}
    matrices: dict[Any, np.ndarray] = {}
    for name, given in columns.items():
        where = concept_place(what, name)
        values = _matrix(given, where)
        if values.ndim != 2 or len(values) != examples:
            raise ValueError(
                f"{where}: expected labels of shape ({examples}, t), one per token, found "
                f"{values.shape}; -100 leaves a token out"
            )
        matrices[name] = values
    if len({values.shape for values in matrices.values()}) > 1:
        shapes = {name: values.shape for name, values in matrices.items()}
        raise ValueError(f"{what}: expected concepts of as many tokens, found shapes {shapes}")
    some = [~unknown_labels(values) for values in matrices.values()]
    if not some or not np.any(some):
        raise ValueError(f"{what}: expected a token with a label other than -100, found none")
    known = np.logical_or.reduce(some)
    numbers = np.full(known.shape, IGNORED, np.int64)
    numbers[known] = np.arange(known.sum())
    flat = {name: values[known] for name, values in matrices.items()}
    return (flat if isinstance(labels, Mapping) else flat[None]), torch.from_numpy(numbers)


def _matrix(labels: Any, where: str) -> np.ndarray:
    try:
        values = to_numpy(labels) if is_array(labels) else np.asarray(labels)
        # a list of strings and of -100 keeps both
        return np.asarray(labels, dtype=object) if values.dtype.kind in "US" else values
    except ValueError as error:  # of lists of different lengths
        raise ValueError(
            f"{where}: expected labels of shape (n, t), one per token, found rows of different "
            f"lengths, {shown(labels)}; pad them with -100"
        ) from error


def labels_checksum(concepts: Concepts) -> str:
    """SHA-256 of the class of every row, and of the classes' names."""
    parts = []
    for name, values in concepts.items():
        unknown = unknown_of(name, values, None)
        classes = distinct(values, unknown=unknown)
        codes = encode(values, classes, unknown=unknown)
        parts += [codes, np.frombuffer(repr((name, classes)).encode(), np.uint8)]
    return fingerprint(*parts)
