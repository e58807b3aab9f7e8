"""A simulated accelerator: torch tensors on the device "simcuda", whose values the CPU computes.

A tensor of the device is a wrapper without memory. Each operation on it is caught, done by the CPU
on the values behind it, and wrapped again, so values are those of the CPU. As on CUDA, operands on
two devices and `.numpy()` raise. What would make the host wait for the device, and every byte that
moves between the two, is counted (`counted`).

`register` is for the whole process and cannot be taken back: use this in a process of its own.
"""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch.utils._pytree import tree_map
from torch.utils.backend_registration import (
    _DummyBackendModule,
    _setup_privateuseone_for_python_backend,
)

NAME = "simcuda"

MEMORY = 8e9
"""Bytes that the device says it has."""

_WAITS = {
    *("_local_scalar_dense", "equal", "is_nonzero", "nonzero", "masked_select", "_unique2"),
    *("unique_consecutive", "unique_dim", "bincount", "repeat_interleave", "_linalg_eigh"),
    *("_linalg_check_errors",),
}
"""Operations whose result, or the shape of it, the host has to wait for on CUDA."""

_INDEXES = {"index", "index_put", "index_put_", "_index_put_impl_"}
"""Operations that take indices from the host, and bring them to the device themselves."""


@dataclass
class Counts:
    """What the host and the device had to say to each other.

    Attributes:
        waits: how often the host waited for the device, by the lines of the package that made it:
            values read, copies to the host, copies to the device that block.
        to_device: bytes copied to the device, by line.
        to_host: bytes copied to the host, by line.
        launches: operations that the device had to run (views are none).
    """

    waits: Counter[str] = field(default_factory=Counter)
    to_device: Counter[str] = field(default_factory=Counter)
    to_host: Counter[str] = field(default_factory=Counter)
    launches: int = 0

    @property
    def synchronisations(self) -> int:
        """How often the host waited."""
        return self.waits.total()

    def __str__(self) -> str:
        found = [f"{self.synchronisations} synchronisations, {self.launches} launches"]
        for title, counter in (("", self.waits), ("bytes to the device", self.to_device),
                               ("bytes to the host", self.to_host)):  # fmt: skip
            found += [f"{n:12} {title} {line}" for line, n in counter.most_common(25)]
        return "\n".join(found)


_COUNTING: list[Counts] = []


@contextmanager
def counted() -> Iterator[Counts]:
    """Count what happens inside."""
    counts = Counts()
    _COUNTING.append(counts)
    try:
        yield counts
    finally:
        _COUNTING.remove(counts)


def _count(*, waits: bool = False, to_device: int = 0, to_host: int = 0, launches: int = 0) -> None:
    line = _lines() if _COUNTING and (waits or to_device or to_host) else ""
    for counts in _COUNTING:
        counts.waits[line] += int(waits)
        counts.to_device[line] += to_device
        counts.to_host[line] += to_host
        counts.launches += launches
        for counter in (counts.waits, counts.to_device, counts.to_host):
            if not counter[line]:
                del counter[line]


def _lines(depth: int = 4) -> str:
    """The innermost lines of the package that are running, the innermost first."""
    frame, found = sys._getframe(1), []
    while frame is not None and len(found) < depth:
        if frame.f_globals.get("__name__", "").startswith("convexprobe."):
            file = Path(frame.f_code.co_filename).name
            found.append(f"{file}:{frame.f_lineno} {frame.f_code.co_name}")
        frame = frame.f_back  # type: ignore[assignment]
    return " < ".join(found)


class DeviceTensor(torch.Tensor):
    """A tensor on the device; `values` is the tensor on the CPU behind it."""

    values: torch.Tensor
    __torch_function__ = torch._C._disabled_torch_function_impl

    @staticmethod
    def __new__(cls, values: torch.Tensor) -> DeviceTensor:
        out = torch.Tensor._make_wrapper_subclass(
            cls,
            values.shape,
            strides=values.stride(),
            storage_offset=values.storage_offset(),
            dtype=values.dtype,
            device=torch.device(NAME, 0),
        )
        out.values = values
        return out

    def __repr__(self, **_: Any) -> str:  # type: ignore[override]
        return f"{self.values!r} on {NAME}"

    def numpy(self, **_: Any) -> Any:  # type: ignore[override]
        raise TypeError(
            f"can't convert {NAME}:0 device type tensor to numpy. Use Tensor.cpu() to copy the "
            "tensor to host memory first."
        )

    def tolist(self) -> Any:
        return self.cpu().tolist()

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        name = func.overloadpacket.__name__
        if torch.is_inference_mode_enabled() and func._can_decompose():
            return func.decompose(*args, **kwargs)  # as it does by itself outside
        if name == "copy_":
            return _copy(*args, **kwargs)
        if name == "_to_copy":
            return _to_copy(*args, **kwargs)
        if name == "record_stream":
            return None
        return _run(func, name, args, kwargs)


def _run(func: Any, name: str, args: Any, kwargs: dict[str, Any]) -> Any:
    """The operation on the values behind its tensors."""
    wrappers: dict[int, DeviceTensor] = {}

    def unwrap(x: Any) -> Any:
        if isinstance(x, DeviceTensor):
            wrappers[id(x.values)] = x
            return x.values
        if isinstance(x, torch.Tensor) and name in _INDEXES:
            _count(waits=True, to_device=x.nbytes)
        elif isinstance(x, torch.Tensor) and x.ndim:  # one number may come from the host
            raise RuntimeError(
                "Expected all tensors to be on the same device, but found at least two devices, "
                f"{NAME}:0 and {x.device}! ({func})"
            )
        return x

    def wrap(x: Any) -> Any:
        if not isinstance(x, torch.Tensor):
            return x
        if id(x) not in wrappers:
            return DeviceTensor(x)
        wrapper = wrappers[id(x)]
        if wrapper.shape != x.shape:  # an output that was resized
            wrapper.data = DeviceTensor(x)
        return wrapper

    args, kwargs = tree_map(unwrap, (list(args), kwargs))
    if kwargs.get("device") is not None:
        kwargs["device"] = "cpu"
    if "generator" in {a.name for a in func._schema.arguments} and not kwargs.get("generator"):
        kwargs["generator"] = MODULE.generator
    masks = name in _INDEXES and any(
        x is not None and x.dtype in (torch.bool, torch.uint8) for x in args[1]
    )
    _count(waits=name in _WAITS or masks, launches=int(not func.is_view))
    return tree_map(wrap, func(*args, **kwargs))


def _copy(target: torch.Tensor, source: torch.Tensor, non_blocking: bool = False) -> torch.Tensor:
    """`target.copy_(source)`, from anywhere to anywhere."""
    there, here = (x.values if isinstance(x, DeviceTensor) else x for x in (target, source))
    there.copy_(here)
    _crosses(source, target, non_blocking)
    return target


def _to_copy(source: DeviceTensor, **kwargs: Any) -> torch.Tensor:
    """A copy in another dtype, or on another device."""
    device = kwargs.pop("device", None)
    non_blocking = kwargs.pop("non_blocking", False)
    values = torch.ops.aten._to_copy(source.values, **kwargs)
    if device is not None and torch.device(device).type != NAME:
        _crosses(source, values, non_blocking)
        return values
    _count(launches=1)
    return DeviceTensor(values)


def _crosses(source: torch.Tensor, target: torch.Tensor, non_blocking: bool) -> None:
    """Count a copy. The host waits for those to it, and for those from it unless told not to."""
    if not isinstance(target, DeviceTensor):
        _count(waits=True, to_host=source.nbytes)
    elif not isinstance(source, DeviceTensor):
        _count(waits=not non_blocking, to_device=source.nbytes)
    else:
        _count(launches=1)


class _Module(_DummyBackendModule):
    """What `torch.get_device_module("simcuda")` returns."""

    generator = torch.Generator()

    def is_available(self) -> bool:
        return True

    def synchronize(self, device: Any = None) -> None:
        _count(waits=True)

    def mem_get_info(self, device: Any = None) -> tuple[int, int]:
        return int(MEMORY), int(MEMORY)

    def get_device_name(self, device: Any = None) -> str:
        return NAME

    def get_rng_state(self, device: Any = 0) -> torch.Tensor:
        return self.generator.get_state()

    def set_rng_state(self, state: torch.Tensor, device: Any = 0) -> None:
        self.generator.set_state(state)

    def manual_seed_all(self, seed: int) -> None:
        self.generator.manual_seed(seed)

    def get_amp_supported_dtype(self) -> list[torch.dtype]:
        return [torch.float16, torch.bfloat16]


MODULE = _Module()


def register() -> None:
    """Make "simcuda" a device of torch, and torch's accelerator, for the rest of the process."""
    if torch._C._get_privateuse1_backend_name() == NAME:
        return
    _setup_privateuseone_for_python_backend(NAME, backend_module=MODULE)
    torch.accelerator.synchronize = MODULE.synchronize

    @torch.library.impl("aten::empty.memory_format", "PrivateUse1")
    def empty(size: Any, *, dtype: Any = None, memory_format: Any = None, **_: Any) -> torch.Tensor:
        return DeviceTensor(torch.empty(size, dtype=dtype, device="cpu"))

    @torch.library.impl("aten::empty_strided", "PrivateUse1")
    def empty_strided(size: Any, stride: Any, *, dtype: Any = None, **_: Any) -> torch.Tensor:
        return DeviceTensor(torch.empty_strided(size, stride, dtype=dtype, device="cpu"))
