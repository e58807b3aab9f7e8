"""A frozen model in, the activations of its layers out: one forward pass per batch."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from contextlib import ExitStack, closing
from os import PathLike
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.data import Dataset, IterableDataset

from convexprobe._arguments import check_bool, check_choice, check_path, shown
from convexprobe._progress import progress_bar
from convexprobe.activations import manifest
from convexprobe.activations.layers import Activations
from convexprobe.extraction.batch import AxisChoice, Batch, axis_of, batch_axes, expected_rows
from convexprobe.extraction.layer_names import LayerChoice, check_model, choose_layers
from convexprobe.extraction.masks import MaskChoice, check_mask
from convexprobe.extraction.model_state import as_it_was, locked
from convexprobe.extraction.pooling import EXAMPLES, PoolChoice, pool_rules
from convexprobe.extraction.recorder import Recorder
from convexprobe.extraction.writers import BLOCK, DirectoryWriter, MemoryWriter, Writer

_DTYPES = {name: getattr(torch, name) for name in ("float16", "bfloat16", "float32", "float64")}


def extract(
    model: nn.Module,
    loader: Iterable[Any],
    layers: LayerChoice | None = None,
    *,
    pool: PoolChoice = "flatten",
    mask: MaskChoice | None = None,
    batch_axis: AxisChoice = 0,
    dtype: torch.dtype | str | None = None,
    device: torch.device | str = "cpu",
    out: str | PathLike[str] | None = None,
    progress: bool | None = None,
) -> tuple[Activations, manifest.StoredLabels]:
    """Run a frozen model over a data set and keep the activations, a row per example or per token.

    The model runs in evaluation mode, without gradients, on its own device. The first batch runs in
    full; later ones stop once the last point asked for has been read. Rows are pooled and copied as
    soon as a layer has run, so that nothing downstream can change them and no larger tensor stays
    in memory. Afterwards, even after an error, everything is as it was: the attributes, training
    flag, hooks and buffers of every submodule, and the global random states of torch, NumPy and
    Python, which a shuffling loader uses. Threads that extract from one model, or from models that
    share modules, take turns.

    Memory: a copy of the model's buffers, and the result, `n * d * itemsize` bytes a layer. The
    result is allocated once if a list or a `DataLoader` tells the length; otherwise, or if rows are
    tokens, the end takes one layer more. With `out`, memory has three times `writers.BLOCK` and a
    batch instead of the result, whatever n is.

    Args:
        model: the network. Wrappers that run a copy of it (`torch.compile`, `DataParallel`,
            TorchScript) are refused.
        loader: an iterable of batches of n_b rows. A batch is a tensor, a pair `(inputs, labels)`,
            or a mapping, whose `"labels"` (or `"label"`) are the labels and whose other items are
            the model's keyword arguments. Masks among them also tell pools of tokens what to leave
            out, see `extraction.masks`. Items that the model's `forward` does not take are for
            `mask` and for pools that ask for the batch. Labels are (n_b,), or (n_b, t) if rows are
            tokens or words, of which the label -100 leaves out. A mapping of such labels has those
            of several concepts by name: a token is left out if it is -100 in all of them, and one
            that is -100 in some is unknown to those (see `fit_probes`).
        layers: a point, a list of points (`extraction.layer_names` has the grammar), or a predicate
            of name and module over all modules that define `forward`. None takes every leaf.
            Modules that were not named and never run are left out, if another one of the same
            choice runs.
        pool: how activations (n_b, ...) become rows (n_b, d), see `extraction.pooling`. Patterns of
            a mapping match the module or the point, with or without its `#call`. "tokens" makes
            every token a row that the mask keeps and whose label is not -100, "words" every word.
        mask: which tokens pools keep, if not those that the batch's masks tell: the name of an item
            of the batch, or a function of the batch's inputs that returns (n_b, t), with 1 or True
            for the tokens to keep.
        batch_axis: the axis of the batch in the inputs and in all activations, such as 1 in torch's
            modules without `batch_first`; or a mapping from patterns of layers, of which `"input"`
            is one, to axes. Masks and labels have the batch in front.
        dtype: of the stored rows, a torch dtype or its name; None keeps each layer's own.
        device: where the rows and labels are stored.
        out: a directory to write to while the network runs, for activations larger than memory
            (`activations.manifest` has the format). To finish an interrupted extraction, make the
            same call again, with a loader that gives the same batches; the batches that are on disk
            do not run through the network again. The model's weights, attributes and code and those
            of pools are compared (`extraction.identity`); a warning names what cannot be, such as
            hooks, and then nothing is reused.
        progress: True shows a progress bar, False none, None one if stderr is a terminal.

    Returns:
        The rows (n, d) by point, in the order in which the network computes them, and the labels
        (n,), a dictionary of them if they are of concepts, or None if the batches have none. If
        rows are tokens or words, `examples` and `positions` of the former tell which example and
        token each row is (see `Activations`). A point that was named keeps that name; two names of
        one point share one tensor. With `out`, what `open_activations(out)` returns.

    Raises:
        TypeError: an argument, a batch or the value of a point has a type that cannot be used,
            such as integer activations.
        ValueError: a point does not exist, never runs, or is ambiguous (several calls or items);
            the shapes of activations, labels and batches disagree; the loader is empty; `out` has
            the activations of another model, dtype, pool or loader, or of what cannot be told.
        OverflowError: `dtype` cannot hold finite activations, which are never stored as infinite.
        OSError: the disk is full; what was written can be read.
        RuntimeError: another thread or process writes to `out`.
    """
    return extract_in_blocks(
        model, loader, layers, pool=pool, mask=mask, batch_axis=batch_axis, dtype=dtype,
        device=device, out=out, progress=progress,
    )  # fmt: skip


def extract_in_blocks(
    model: nn.Module,
    loader: Iterable[Any],
    layers: LayerChoice | None = None,
    *,
    pool: PoolChoice = "flatten",
    mask: MaskChoice | None = None,
    batch_axis: AxisChoice = 0,
    dtype: torch.dtype | str | None = None,
    device: torch.device | str = "cpu",
    out: str | PathLike[str] | None = None,
    progress: bool | None = None,
    block: int = BLOCK,
) -> tuple[Activations, manifest.StoredLabels]:
    """`extract`, with the size in bytes of the blocks that are written to `out`."""
    check_model(model)
    _check_loader(loader)
    rules, stored, target = pool_rules(pool), _check_dtype(dtype), _check_device(device)
    check_mask(mask)
    axes = batch_axes(batch_axis)
    tokens = any(rule.rows != EXAMPLES for rule in rules.values())
    directory = None if out is None else check_path("out", out)
    if directory is not None and target.type != "cpu":
        raise ValueError(f"device: expected the CPU beside out=, found {device!r}")
    if progress is not None:
        check_bool("progress", progress)
    # no_grad, and out of the caller's inference mode: the rows must be usable in autograd
    with (
        locked(model), torch.inference_mode(False), torch.no_grad(), ExitStack() as stack
    ):  # fmt: skip
        requests = choose_layers(model, layers)
        home, axis = _home(model), axis_of(axes, ["input"])
        if directory is None:
            writer: Writer = MemoryWriter(target, 0 if tokens else expected_rows(loader, axis))
        else:
            request = {
                "points": sorted((request.identity() for request in requests), key=repr),
                "dtype": None if stored is None else str(stored),
                "autocast": _autocast(home),
                "batch_axis": list(map(list, axes.items())),
            }
            writer = DirectoryWriter(directory, model, request, pool, mask, block)
        stack.enter_context(closing(writer))
        stack.enter_context(as_it_was(model))
        recorder = Recorder(requests, rules, stored, writer, mask, axes)
        recorder.attach(model, stack)
        model.eval()
        for module in model.modules():
            # torch's encoder would pack padded sequences into nested tensors, which have no rows
            if isinstance(module, nn.TransformerEncoder):
                module.use_nested_tensor = False
        _run(recorder, model, loader, home, progress, tokens=tokens, axis=axis)
        return writer.finish(recorder.names)


def _run(
    recorder: Recorder,
    model: nn.Module,
    loader: Iterable[Any],
    home: torch.device,
    show: Any,
    *,
    tokens: bool,
    axis: int,
) -> None:
    """Run all batches that are not stored yet through the model.

    Raises:
        ValueError: there is no row, or some batches have labels and others have none.
    """
    index = rows = labelled = stored = 0
    concepts: list[str] = []
    with progress_bar(loader, desc="extract", show=show) as bar:
        for index, item in enumerate(bar):
            batch = Batch.read(item, index, rows, tokens=tokens, axis=axis)
            rows, labelled = rows + batch.rows, labelled + bool(batch.labels)
            if labelled not in (0, index + 1):
                raise ValueError(
                    f"batch {index}: expected labels in every batch or in none, found them in "
                    f"{labelled} of {index + 1}"
                )
            concepts = concepts or list(batch.labels)
            if set(batch.labels) != set(concepts):
                raise ValueError(
                    f"batch {index}: expected {', '.join(map(repr, concepts))} as in the batches "
                    f"before, found {', '.join(map(repr, batch.labels))}"
                )
            if recorder.writer.skips(batch):
                stored += batch.rows
                continue
            columns = recorder.run(model, batch, home)
            recorder.writer.end_batch(batch, columns, recorder.names)
            stored += len(columns[manifest.EXAMPLES]) if tokens else batch.rows
    if not stored:
        found = f"found labels of -100 alone in {rows} examples" if rows else "found none"
        raise ValueError(f"loader: expected at least one row, {found}")


def _check_loader(loader: Any) -> None:
    """Raise TypeError unless it can be iterated over and is not one batch, or rows one by one."""
    if isinstance(loader, Tensor | np.ndarray | Mapping | str | bytes):
        raise TypeError(f"loader must be an iterable of batches, found one {type(loader).__name__}")
    if isinstance(loader, Dataset) and not isinstance(loader, IterableDataset):
        raise TypeError(
            f"loader must be an iterable of batches, found a {type(loader).__name__} of single "
            "examples; pass DataLoader(dataset, batch_size=250)"
        )
    if not isinstance(loader, Iterable) and not hasattr(loader, "__getitem__"):
        raise TypeError(f"loader must be an iterable of batches, found {shown(loader)}")


def _check_dtype(dtype: Any) -> torch.dtype | None:
    if isinstance(dtype, str):
        return _DTYPES[check_choice("dtype", dtype, _DTYPES)]
    if dtype is None or (isinstance(dtype, torch.dtype) and dtype in _DTYPES.values()):
        return dtype
    kind = ValueError if isinstance(dtype, torch.dtype) else TypeError
    raise kind(f"dtype: expected one of {', '.join(_DTYPES)} or None, found {shown(dtype)}")


def _check_device(device: Any) -> torch.device:
    if not isinstance(device, str | torch.device):
        raise TypeError(f"device: expected a torch device or its name, found {shown(device)}")
    try:
        torch.empty(0, device=device).cpu()  # which the meta device, without values, cannot
    except (AssertionError, NotImplementedError, RuntimeError) as error:
        reason = str(error).splitlines()[0]
        raise ValueError(f"device: {device!r} cannot store rows here: {reason}") from None
    return torch.device(device)


def _home(model: nn.Module) -> torch.device:
    """The device of the model's weights.

    Raises:
        ValueError: weights without values, which no hook of accelerate loads.
    """
    weights = dict((*model.named_parameters(), *model.named_buffers()))
    empty = next((name for name, tensor in weights.items() if tensor.is_meta), None)
    if empty is not None and not any("_hf_hook" in vars(module) for module in model.modules()):
        raise ValueError(
            f"model: {empty!r} is on the meta device and has no values; load the weights first"
        )
    return next((t.device for t in weights.values() if not t.is_meta), torch.device("cpu"))


def _autocast(device: torch.device) -> str | None:
    """The dtype of the caller's autocast region."""
    enabled = torch.is_autocast_enabled(device.type)
    return str(torch.get_autocast_dtype(device.type)) if enabled else None
