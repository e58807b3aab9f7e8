"""A frozen model in, the activations of its layers out: one forward pass per batch."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from convexprobe._progress import progress_bar
from convexprobe._random_state import random_states_kept
from convexprobe.extraction.batch import Batch, expected_rows
from convexprobe.extraction.layer_names import LayerChoice, choose_layers
from convexprobe.extraction.pooling import PoolChoice, describe_pool, pool_rules
from convexprobe.extraction.recorder import Recorder
from convexprobe.extraction.writers import DirectoryWriter, MemoryWriter, Writer

_DTYPES = {name: getattr(torch, name) for name in ("float16", "bfloat16", "float32", "float64")}


def extract(
    model: nn.Module,
    loader: Iterable[Any],
    layers: LayerChoice | None = None,
    *,
    pool: PoolChoice = "flatten",
    dtype: torch.dtype | str | None = None,
    device: torch.device | str = "cpu",
    out: str | os.PathLike[str] | None = None,
    progress: bool | None = None,
) -> tuple[dict[str, Any], Tensor | None]:
    """Run a frozen model over a data set and keep the activations, one row per example.

    The model runs in evaluation mode, without gradients, on its own device. The first batch runs in
    full; later ones stop once the last point asked for has been read. Rows are pooled and copied as
    soon as a layer has run, so that nothing downstream can change them and no larger tensor stays
    in memory. Afterwards, even after an error, everything is as it was: the attributes, training
    flag, hooks and buffers of every submodule, and the global random states of torch, NumPy and
    Python, which a shuffling loader uses.

    Memory: a copy of the model's buffers, and the result, `n * d * itemsize` bytes a layer. The
    result is allocated once if a list or a `DataLoader` tells the length; otherwise the end takes
    one layer more. With `out`, memory has three times `writers.BLOCK` and a batch instead of the
    result, whatever n is.

    Args:
        model: the network. Wrappers that run a copy of it (`torch.compile`, `DataParallel`,
            TorchScript) are refused.
        loader: an iterable of batches of n_b rows. A batch is a tensor, a pair `(inputs, labels)`,
            or a mapping, whose `"labels"` (or `"label"`) are the labels and whose other items are
            the model's keyword arguments. Its `"attention_mask"` (n_b, t) also tells pools which
            tokens to keep.
        layers: a point, a list of points (`extraction.layer_names` has the grammar), or a predicate
            of name and module over all modules that define `forward`. None takes every leaf.
            Modules that were not named and never run are left out, if another one of the same
            choice runs.
        pool: how activations (n_b, ...) become rows (n_b, d), see `extraction.pooling`. Patterns of
            a mapping match the module or the point, with or without its `#call`.
        dtype: of the stored rows, a torch dtype or its name; None keeps each layer's own.
        device: where the rows and labels are stored.
        out: a directory to write to while the network runs, for activations larger than memory
            (`activations.manifest` has the format). To finish an interrupted extraction, make the
            same call again, with a loader that gives the same batches; the batches that are on disk
            do not run through the network again.
        progress: True shows a progress bar, False none, None one if stderr is a terminal.

    Returns:
        The rows (n, d) by point, in the order in which the network computes them, and the labels
        (n,), or None if the batches have none. A point that was named keeps that name; two names of
        one point share one tensor. With `out`, what `open_activations(out)` returns.

    Raises:
        TypeError: an argument, a batch or the value of a point has a type that cannot be used,
            such as integer activations.
        ValueError: a point does not exist, never runs, or is ambiguous (several calls or items);
            the shapes of activations, labels and batches disagree; the loader is empty; `out` has
            the activations of another model, dtype, pool or loader.
        OverflowError: `dtype` cannot hold finite activations, which are never stored as infinite.
        OSError: the disk is full; what was written can be read.
    """
    target = torch.device(device)
    if out is not None and target.type != "cpu":
        raise ValueError(f"device: expected the CPU beside out=, found {device!r}")

    def writer(request: dict[str, Any]) -> Writer:
        if out is None:
            return MemoryWriter(target, expected_rows(loader))
        return DirectoryWriter(Path(out), model, request)

    return extract_with(writer, model, loader, layers, pool, dtype, progress)


def extract_with(
    make_writer: Callable[[dict[str, Any]], Writer],
    model: nn.Module,
    loader: Iterable[Any],
    layers: LayerChoice | None = None,
    pool: PoolChoice = "flatten",
    dtype: torch.dtype | str | None = None,
    progress: bool | None = None,
) -> tuple[dict[str, Any], Tensor | None]:
    """`extract` with a writer that is made from what was asked for: points, dtype and pools."""
    requests = choose_layers(model, layers)
    if isinstance(loader, Tensor | Mapping | str):
        raise TypeError(f"loader must be an iterable of batches, found one {type(loader).__name__}")
    stored = _DTYPES.get(dtype) if isinstance(dtype, str) else dtype
    if dtype is not None and stored not in _DTYPES.values():
        raise ValueError(f"dtype must be one of {', '.join(_DTYPES)} or None, found {dtype!r}")
    points = [list(request.point(request.call or 0)) for request in requests]
    kind = None if stored is None else str(stored).removeprefix("torch.")
    writer = make_writer({"points": points, "dtype": kind, "pool": describe_pool(pool)})
    recorder = Recorder(requests, pool_rules(pool), stored, writer)
    home = next((t.device for t in (*model.parameters(), *model.buffers())), torch.device("cpu"))
    index = rows = labelled = 0
    # no_grad, and out of the caller's inference mode: the rows must be usable in autograd
    with _as_it_was(model), torch.inference_mode(False), torch.no_grad(), ExitStack() as hooks:
        recorder.attach(model, hooks)
        model.eval()
        with progress_bar(loader, desc="extract", show=progress) as bar:
            for index, item in enumerate(bar):
                batch = Batch.read(item, index, rows)
                rows, labelled = rows + batch.rows, labelled + (batch.labels is not None)
                if labelled not in (0, index + 1):
                    raise ValueError(
                        f"batch {index}: expected labels in every batch or in none, found them in "
                        f"{labelled} of {index + 1}"
                    )
                if not writer.skips(batch):
                    recorder.run(model, batch, home)
                    writer.end_batch(batch, recorder.names)
    if not rows:
        raise ValueError("loader: expected at least one row, found none")
    return writer.finish(recorder.names)


@contextmanager
def _as_it_was(model: nn.Module) -> Iterator[None]:
    """At the end, undo what running the model did to it and to the global random states.

    Attributes are restored too: a module that replaces a buffer, such as a cache of positions,
    usually notes its length in an attribute, and one without the other is broken.
    """
    dicts = [(d, dict(d)) for m in model.modules() for d in (vars(m), m._buffers)]
    buffers = [(buffer, buffer.detach().clone()) for buffer in model.buffers()]
    with random_states_kept():
        try:
            yield
        finally:
            for current, before in dicts:
                current.clear()  # an update alone would keep what was added, and another order
                current.update(before)
            with torch.no_grad():
                for buffer, copy in buffers:
                    if not torch.equal(buffer, copy):
                        buffer.copy_(copy)
