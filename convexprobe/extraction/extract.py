"""A frozen model in, the activations of its layers out: one forward pass per batch."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from convexprobe._progress import progress_bar
from convexprobe._random_state import random_states_kept
from convexprobe.extraction.batch import Batch, expected_rows
from convexprobe.extraction.layer_names import LayerChoice, choose_layers
from convexprobe.extraction.pooling import (
    PoolChoice,
    describe_pool,
    pool_rules,
)
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
    """Activations of a frozen model, one row per example.

    The model runs in evaluation mode without gradients, on its own device. The first batch runs
    in full; later ones stop as soon as the deepest point asked for has been read. Rows are pooled
    and copied the moment a layer has run, so nothing downstream can change them and no larger
    tensor stays alive. Afterwards the model is as it was, even after an error: the attributes,
    training flag, hooks and buffers of every submodule; so are the global random states of torch,
    NumPy and Python, even if the loader shuffles.

    Memory: the result, `n * d * itemsize` bytes a layer, allocated once where a list or a
    `DataLoader` tells the length, else one layer more at the end; one copy of the model's buffers.
    With `out`, three times `sinks.BLOCK` and a batch instead of the result, whatever n is.

    Args:
        model: the network. Wrappers that run a copy of it (`torch.compile`, `DataParallel`,
            TorchScript) are refused.
        loader: an iterable of batches of n_b rows. A batch is a tensor, an `(inputs, labels)`
            pair, or a mapping that is passed as keyword arguments, less its `"labels"` (or
            `"label"`); its `"attention_mask"` (n_b, t) also serves the pooling of tokens.
        layers: a point, a list of points (see `extraction.layer_names`), or a predicate of the name
            and the module over all modules that define `forward`. None takes every leaf. Modules
            that were not named and never run are left out, if others of the same choice do run.
        pool: how activations (n_b, ...) become rows (n_b, d), see `extraction.pooling`. The
            patterns of a mapping match the point, with or without its `#call`, or the module.
        dtype: of the stored rows, a torch dtype or its name; None keeps that of each layer.
        device: where the rows and labels are stored.
        out: a directory to write to while the network runs, for activations larger than memory
            (`activations.manifest` has the format). A call that was interrupted goes on when it is
            made again with a loader that gives the same batches: what is written does not run
            through the network again.
        progress: None shows a bar if stderr is a terminal; True always; False never.

    Returns:
        The rows (n, d) by point, in the order in which the network computes them, and the labels
        (n,), None if the batches have none. A point that is named keeps the name it was asked by;
        two names of one point share one tensor. With `out`, what `open_activations(out)` returns.

    Raises:
        TypeError: an argument, a batch or the value of a point has a type that cannot be used,
            such as integer activations.
        ValueError: a point does not exist, never runs, or is ambiguous (several calls or items);
            the shapes of activations, labels and batches disagree; the loader is empty; `out` has
            the activations of another model, dtype, pool or loader.
        OverflowError: finite activations that `dtype` cannot hold: nothing is stored as infinite.
        OSError: the disk is full; what was written can be read.
    """
    requests = choose_layers(model, layers)
    if isinstance(loader, Tensor | Mapping | str):
        raise TypeError(f"loader must be an iterable of batches, found one {type(loader).__name__}")
    wanted = _DTYPES.get(dtype) if isinstance(dtype, str) else dtype
    if dtype is not None and wanted not in _DTYPES.values():
        raise ValueError(f"dtype must be one of {', '.join(_DTYPES)} or None, found {dtype!r}")
    if out is None:
        writer: Writer = MemoryWriter(torch.device(device), expected_rows(loader))
    elif torch.device(device).type != "cpu":
        raise ValueError(f"device: expected the CPU beside out=, found {device!r}")
    else:
        points = [list(request.point(request.call or 0)) for request in requests]
        kind = None if wanted is None else str(wanted).removeprefix("torch.")
        request = {"points": points, "dtype": kind, "pool": describe_pool(pool)}
        writer = DirectoryWriter(Path(out), model, request)
    recorder = Recorder(requests, pool_rules(pool), wanted, writer)
    home = next((t.device for t in (*model.parameters(), *model.buffers())), torch.device("cpu"))
    index = rows = labelled = 0
    # no_grad, and out of the caller's inference mode: the rows must be usable in autograd
    with _as_it_was(model), torch.inference_mode(False), torch.no_grad(), ExitStack() as hooks:
        recorder.attach(model, hooks)
        model.eval()
        with progress_bar(loader, desc="extract", show=progress) as bar:
            for index, found in enumerate(bar):
                batch = Batch.read(found, index, rows)
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
    """Undo, at the end, what running `model` does to it and to the global random states.

    All attributes, not the training flags alone: a module that replaces a buffer usually notes so
    in an attribute (the length of a cache of positions), and one without the other is broken.
    """
    dicts = [(d, dict(d)) for m in model.modules() for d in (vars(m), m._buffers)]
    buffers = [(buffer, buffer.detach().clone()) for buffer in model.buffers()]
    with random_states_kept():
        try:
            yield
        finally:
            for current, before in dicts:
                current.clear()  # an update alone would keep what was added, change the order
                current.update(before)
            with torch.no_grad():
                for buffer, copy in buffers:
                    if not torch.equal(buffer, copy):
                        buffer.copy_(copy)
