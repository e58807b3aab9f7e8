"""Count what torch is asked to do: every operation, with its flops and the bytes it has to move.

Operations are counted as torch dispatches them, so the counts hold for any device that runs one
kernel an operation. Views and allocations are free. Bytes are those that an operation cannot avoid:
each number of an operand is read once, each number of a result is written once. An operand that is
given twice, or expanded, counts once; of what an index picks, as much counts as is picked.

On the device `meta` arrays have sizes and no numbers, so that a problem of any size is counted in
seconds. What the host asks of their numbers (`bool`, `float`, `.cpu()`) is answered by a script.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from math import inf, prod
from pathlib import Path
from types import FrameType
from typing import Any, TypeAlias

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode, _disable_current_modes
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import flop_registry

import convexprobe

_PACKAGE = Path(convexprobe.__file__).parent

_FREE = {"empty", "empty_like", "empty_strided", "new_empty", "lift_fresh", "detach", "alias"}

_MADE = {"new_full", "new_zeros", "new_ones", "full_like", "zeros_like", "ones_like"}
"""Operations that take an array for its dtype and shape alone."""

_WRITTEN_ONLY = {"copy_", "fill_", "zero_"}
"""Operations in place that do not read what they overwrite."""

_PICKS = {"gather", "index_select", "index", "take"}

DECOMPOSITIONS = {
    "linalg_cholesky_ex": 1 / 3,
    "cholesky_inverse": 2 / 3,
    "_linalg_eigh": 9.0,
    "linalg_inv_ex": 2.0,
    "_linalg_solve_ex": 2 / 3,
}
"""Flops of dense algebra with an `(r, r)` matrix, in `r^3` (Golub and Van Loan 2013, chapters 3, 4
and 8; 9 is of the symmetric eigenproblem with vectors)."""

_KINDS = {
    "index": {*_PICKS, "scatter_add_"},
    "copy": {*_MADE, *_WRITTEN_ONLY, "_to_copy", "clone", "cat", "stack", "zeros", "ones", "full"},
    "reduction": {"sum", "mean", "amax", "amin", "max", "min", "argmax", "any", "all"},
    "decomposition": DECOMPOSITIONS.keys(),
}  # fmt: skip

_TRANSCENDENTAL = {"exp", "log"}


@dataclass(frozen=True)
class Operation:
    """One operation.

    Attributes:
        name: of torch, without its overload, such as "mm".
        kind: "product", "decomposition", "copy", "index", "reduction", "elementwise", "read" (the
            host waits for numbers of the device) or "sent" (numbers of the host go there).
        dtype: in which it computes, such as "float32"; "tf32" for products that torch rounds so.
        result: the dtype of what it makes.
        flops: of a product or decomposition; of anything else, the numbers that it goes through.
        transcendental: of those, the numbers of which it takes an exponential or a logarithm.
        read, written: bytes.
        shapes, strides: of its operands, numbers.
        reach: for each array with numbers, its share of those touched, and how many bytes other
            operations have touched since that memory was touched last (infinite the first time).
        function: of the package, that asked for it.
    """

    name: str
    kind: str
    dtype: str
    result: str
    flops: float
    transcendental: float
    read: float
    written: float
    shapes: tuple[tuple[int, ...], ...]
    strides: tuple[tuple[int, ...], ...]
    reach: tuple[tuple[float, float], ...]
    function: str

    @property
    def bytes(self) -> float:
        """Bytes read and written."""
        return self.read + self.written


Answer: TypeAlias = Callable[[str, Mapping[str, Any]], Any]


class Counter(TorchDispatchMode):
    """Record all operations of torch in a `with` block, in `operations`.

    Args:
        answer: what the package's function of a name, with these variables, is told of an array
            without numbers: a number for all of it, or one for each of its first rows and all after
            the last; of `nonzero`, how many there are.
    """

    def __init__(self, answer: Answer | None = None) -> None:
        super().__init__()
        self.answer = answer
        self.operations: list[Operation] = []
        self._touched = 0.0  # bytes so far
        self._last: dict[int, float] = {}  # and when each place of memory was touched

    def take(self) -> list[Operation]:
        """The operations so far; those that follow are counted anew."""
        operations, self.operations = self.operations, []
        return operations

    def __torch_dispatch__(
        self, function: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        kwargs = kwargs or {}
        name = function.overloadpacket.__name__
        if function.is_view or name in _FREE:
            return function(*args, **kwargs)
        kind, (asking, caller) = _kind(function, args, kwargs), _callers()
        if kind == "read" and args[0].is_meta:
            out = self._tell(name, args[0], asking, kwargs)
        else:
            out = function(*args, **kwargs)
        reach = self._reach(_different(_tensors([*args, *kwargs.values(), out])))
        self.operations.append(_operation(function, kind, args, kwargs, out, reach, caller))
        self._touched += self.operations[-1].bytes
        return out

    def _reach(self, arrays: list[Tensor]) -> tuple[tuple[float, float], ...]:
        arrays = [t for t in arrays if not t.is_meta]
        sizes = [float(_bytes(t)) for t in arrays]
        reach = []
        for t, size in zip(arrays, sizes, strict=True):
            since = self._touched - self._last.get(t.data_ptr(), -inf)
            reach.append((size / max(sum(sizes), 1.0), since))
            self._last[t.data_ptr()] = self._touched
        return tuple(reach)

    def _tell(self, name: str, array: Tensor, asking: FrameType, kwargs: Any) -> Any:
        if self.answer is None:
            raise ValueError(f"{asking.f_code.co_name} asks for numbers: give Counter an `answer`")
        told = self.answer(asking.f_code.co_name, asking.f_locals)
        dtype = kwargs.get("dtype") or array.dtype
        if name == "nonzero":
            return torch.empty((int(told), array.ndim), dtype=torch.int64, device="meta")
        if name == "_local_scalar_dense":
            return bool(told) if dtype == torch.bool else told
        with _disable_current_modes():
            rows = told if isinstance(told, tuple) else (told,)
            out = torch.full(array.shape, rows[-1], dtype=dtype)
            for row, number in zip(out, rows, strict=False):
                row.fill_(number)
            return out


def _callers() -> tuple[FrameType, str]:
    """The innermost of the package's functions at work that does more than to hand arrays on, and
    the qualified name of the innermost that is not in `arrays/`."""
    frame: FrameType | None = sys._getframe(1)
    asking = None
    while frame is not None:
        path = Path(frame.f_code.co_filename)
        if path.is_relative_to(_PACKAGE) and path.name != "backend.py":
            asking = asking or frame
            if path.parent.name != "arrays":
                return asking, frame.f_code.co_qualname
        frame = frame.f_back
    return asking or sys._getframe(2), ""


def _kind(function: Any, args: tuple[Any, ...], kwargs: Any) -> str:
    name = function.overloadpacket.__name__
    if name in ("_local_scalar_dense", "nonzero"):
        return "read"
    if name == "_to_copy" and kwargs.get("device") is not None:
        there = torch.device(kwargs["device"]).type
        if there != args[0].device.type:
            return "read" if there == "cpu" else "sent"
    if function.overloadpacket in flop_registry:
        return "product"
    return next((kind for kind, names in _KINDS.items() if name in names), "elementwise")


def _operation(
    function: Any,
    kind: str,
    args: tuple[Any, ...],
    kwargs: Any,
    out: Any,
    reach: tuple[tuple[float, float], ...],
    caller: str,
) -> Operation:
    name = function.overloadpacket.__name__
    written = _written(function, args, kwargs)
    given = [*args, *(value for key, value in kwargs.items() if key != "out")]
    operands = [] if name in _MADE else _different(_tensors(given))
    results = written or _tensors([out])
    if name in _WRITTEN_ONLY:
        operands = [t for t in operands if all(t is not w for w in written)]
    read = float(sum(_bytes(t) for t in operands))
    write = float(sum(_bytes(t) for t in results))
    if name in _PICKS:
        read += write - _bytes(operands[0])
    if name == "scatter_add_":
        picked = _bytes(args[0]) // max(args[0].numel(), 1) * args[2].numel()
        read, write = read + picked - _bytes(args[0]), float(picked)
    if name == "_local_scalar_dense":
        write = read
    most = max((float(t.numel()) for t in [*operands, *results]), default=0.0)
    flops = most
    if kind == "product":
        flops = float(flop_registry[function.overloadpacket](*args, **kwargs, out_val=out))
    if kind == "decomposition":
        *batch, size, _ = args[0].shape
        flops = DECOMPOSITIONS[name] * prod(batch) * float(size) ** 3
        if name == "_linalg_solve_ex":
            flops += 2.0 * args[1].numel() * size
    dtypes = [t.dtype for t in [*operands, *results]]
    computed = next((t for t in dtypes if t.is_floating_point), dtypes[0])
    dtype, result = (str(t).removeprefix("torch.") for t in (computed, dtypes[-1]))
    if kind == "product" and dtype == "float32" and torch.backends.cuda.matmul.allow_tf32:
        dtype = "tf32"
    deep = most if name.removesuffix("_") in _TRANSCENDENTAL else 0.0
    shapes = tuple(tuple(t.shape) for t in operands)
    strides = tuple(t.stride() for t in operands)
    return Operation(
        name, kind, dtype, result, flops, deep, read, write, shapes, strides, reach, caller
    )


def _written(function: Any, args: tuple[Any, ...], kwargs: Any) -> list[Tensor]:
    """The arguments that are written, as the schema says."""
    values = []
    for i, argument in enumerate(function._schema.arguments):
        if argument.alias_info is not None and argument.alias_info.is_write:
            values.append(args[i] if i < len(args) else kwargs.get(argument.name))
    return _tensors(values)


def _tensors(values: list[Any]) -> list[Tensor]:
    return [leaf for leaf in tree_leaves(values) if isinstance(leaf, Tensor)]


def _different(tensors: list[Tensor]) -> list[Tensor]:
    """Those that are not the same numbers as one before."""
    seen: dict[Any, Tensor] = {}
    for t in tensors:
        place = (t.untyped_storage()._cdata, t.storage_offset(), t.shape, t.stride())
        seen.setdefault(place, t)
    return list(seen.values())


def _bytes(t: Tensor) -> int:
    """Bytes of the numbers that have a place of their own in memory."""
    sizes = zip(t.shape, t.stride(), strict=True)
    return prod(size for size, stride in sizes if stride != 0 or size == 0) * t.element_size()
