"""Arrays of any library: which library, dtype and device, host copies, conversions, seeded draws.

The code above works on the namespace that `namespace` returns (the array API standard, through
array-api-compat), so the arrays that go in decide where the work runs.
"""

from __future__ import annotations

from types import ModuleType
from typing import Any, TypeAlias

import array_api_compat as compat
import numpy as np
import torch

Array: TypeAlias = Any
"""An array of any library that follows the array API standard.

A `torch.Tensor`, a `numpy.ndarray` or a `cupy.ndarray`. The standard has no class that they share,
so that type checkers see `Any`.
"""

is_array = compat.is_array_api_obj
is_cupy = compat.is_cupy_array
device = compat.device

_KNOWN: dict[type, ModuleType] = {
    torch.Tensor: compat.array_namespace(torch.empty(0)),
    np.ndarray: np,  # it follows the standard; the wrappers of array-api-compat take time
}


def namespace(*arrays: Array) -> ModuleType:
    """The array API namespace that the arrays share; those that are None do not count."""
    kind = type(arrays[0])  # known without asking: a solve asks thousands of times
    if kind in _KNOWN and all(type(a) is kind for a in arrays):
        return _KNOWN[kind]
    kinds = {type(a) for a in arrays if a is not None}
    if len(kinds) == 1 and kinds <= _KNOWN.keys():
        return _KNOWN[kinds.pop()]
    return compat.array_namespace(*(a for a in arrays if a is not None))


def as_array(value: Any) -> Array:
    """An array from an array of any library, a DLPack exporter or a nested sequence.

    Torch tensors are detached; objects without a library become NumPy arrays.
    """
    if isinstance(value, torch.Tensor):
        return value.detach()
    if is_array(value):
        return value
    if hasattr(value, "__dlpack__"):  # the protocol's own test: any other library's array
        return torch.from_dlpack(value)
    return np.asarray(value)


def to_numpy(array: Array) -> np.ndarray:
    """A copy or view of the array on the host, as NumPy (bfloat16 becomes float32)."""
    if isinstance(array, torch.Tensor):
        array = array.detach().cpu()
        return (array.float() if array.dtype == torch.bfloat16 else array).numpy()
    if compat.is_cupy_array(array):
        return array.get()
    if isinstance(array, (np.ndarray, np.generic)):
        return np.asarray(array)
    return np.from_dlpack(array)  # asked for by name: np.asarray would be an implicit copy


def to_numpy_together(*arrays: Array) -> list[np.ndarray]:
    """Host copies of arrays of one shape; from a device they come in one copy, as float64.

    The host waits for each copy from a device, so that one for each number would idle the device.
    """
    if on_cpu(arrays[0]):
        return [to_numpy(array) for array in arrays]
    xp = namespace(*arrays)
    return list(to_numpy(xp.stack([cast(array, xp.float64) for array in arrays])))


def like(values: Any, reference: Array, dtype: Any = None) -> Array:
    """Host values (NumPy or Python) as an array of the reference's library and device."""
    values = np.asarray(values)
    if isinstance(reference, torch.Tensor):
        # torch warns about, and may not write to, read-only memory
        own = values if values.flags.writeable else values.copy()
        # a copy from memory that is not pinned ends before the call does, without a wait
        out = torch.asarray(own).to(reference.device, non_blocking=True)
    else:
        out = namespace(reference).asarray(values, device=device(reference))
    return out if dtype is None else cast(out, dtype)


def beside(values: Array, reference: Array) -> Array:
    """Values from the host, or on the reference's device already, as an array there."""
    return like(values, reference) if isinstance(values, np.ndarray) else values


def move(array: Array, reference: Array, dtype: Any) -> Array:
    """The array in the library, on the device and in a dtype of a reference's, wherever it is."""
    if namespace(array) is namespace(reference) and device(array) == device(reference):
        return cast(array, dtype)
    return like(to_numpy(array), reference, dtype)


def to_torch(array: Array) -> torch.Tensor:
    """The array as a contiguous tensor on its device, sharing its memory where that is possible."""
    array = contiguous_rows(as_array(array))
    if isinstance(array, torch.Tensor):
        return array
    if isinstance(array, (np.ndarray, np.generic)):
        array = np.asarray(array)
        # torch warns about read-only memory
        return torch.from_numpy(array if array.flags.writeable else array.copy())
    return torch.from_dlpack(array)


def from_torch(values: torch.Tensor, reference: Array) -> Array:
    """The tensor's values in the library, dtype, shape and device of the reference."""
    values = values.reshape(reference.shape)
    if isinstance(reference, torch.Tensor):
        return values.to(reference.device, reference.dtype)
    if compat.is_cupy_array(reference):
        return cast(namespace(reference).from_dlpack(values), reference.dtype)
    return like(values.cpu().numpy(), reference, reference.dtype)


def cast(array: Array, dtype: Any) -> Array:
    """The array in another dtype, without a copy when it already has it."""
    return array if array.dtype == dtype else namespace(array).astype(array, dtype, copy=False)


def convert(block: Array, out: Array) -> Array:
    """The block in the dtype of `out`: itself if it has it, else written over the rows of `out`.

    A new array for every block would be slower and fragment the heap; see
    `docs/decisions/row_blocks.md`.
    """
    if block.dtype == out.dtype:
        return block
    if isinstance(out, torch.Tensor):
        return out[: len(block)].copy_(block)
    if isinstance(out, np.ndarray):
        np.copyto(out[: len(block)], block)
        return out[: len(block)]
    return cast(block, out.dtype)


def is_real(array: Array) -> bool:
    """Whether the array holds integers, booleans or real floats."""
    if isinstance(array, np.ndarray):
        return array.dtype.kind in "biuf"
    if isinstance(array, torch.Tensor):
        return not array.dtype.is_complex
    return bool(namespace(array).isdtype(array.dtype, ("bool", "integral", "real floating")))


def compute_dtype(array: Array) -> Any:
    """The dtype of products with these rows: float64 stays, everything narrower is float32."""
    xp = namespace(array)
    return xp.float64 if array.dtype == xp.float64 else xp.float32


def epsilon(dtype: Any, reference: Array) -> float:
    """The distance from 1 to the next larger number of the dtype."""
    return float(namespace(reference).finfo(dtype).eps)


def contiguous_rows(array: Array) -> Array:
    """The same matrix with each row contiguous, which block products need to be fast."""
    if isinstance(array, torch.Tensor):
        return array.contiguous()
    if isinstance(array, np.ndarray):
        array = np.ascontiguousarray(array)
        # BLAS has no fast path for big-endian or unaligned numbers
        return array if array.dtype.isnative else array.astype(array.dtype.newbyteorder("="))
    return array


def on_cpu(array: Array) -> bool:
    """Whether the array is in host memory."""
    if isinstance(array, torch.Tensor):
        return array.device.type == "cpu"
    return not compat.is_cupy_array(array)


def synchronise(array: Array) -> None:
    """Wait until the array's device has done its work, so that a clock can be read."""
    if isinstance(array, torch.Tensor) and not on_cpu(array):
        torch.accelerator.synchronize(array.device)
    elif compat.is_cupy_array(array):
        array.device.synchronize()


def is_out_of_memory(error: Exception) -> bool:
    """Whether the error says that a device has no room for an array."""
    if isinstance(error, torch.OutOfMemoryError):
        return True
    kind = type(error)  # by name: importing CuPy needs a driver
    return kind.__name__ == "OutOfMemoryError" and kind.__module__.startswith("cupy")


def generator(*key: int) -> np.random.Generator:
    """A private random stream for the key: the same draws on every library and device."""
    return np.random.default_rng(key)


_GOLDEN, _FIRST, _SECOND = -0x61C8864680B583EB, -0x40A7B892E31B1A47, -0x6B2FB644ECCEEE15


def uniform(key: int, rows: slice, reference: Array) -> Array:
    """Random numbers in [0, 1), one for each row number of a slice, float64, made on the device.

    Number `i` is draw `i` of the generator SplitMix64 from the seed `key` (Steele, Lea and Flood
    2014, "Fast splittable pseudorandom number generators"), so every library, device and division
    of the rows has the same one.

    Args:
        key: an integer of 63 bits.
        rows: the first row and the end.
        reference: an array of the library and device.
    """
    xp = namespace(reference)
    z = xp.arange(rows.start + 1, rows.stop + 1, dtype=xp.int64, device=device(reference))
    z = z * _GOLDEN + key  # of 64 bits, like what follows: it wraps
    for shift, factor in ((30, _FIRST), (27, _SECOND), (31, 1)):
        z = (z ^ ((z >> shift) & (2 ** (64 - shift) - 1))) * factor  # masked: no sign moves in
    return cast((z >> 11) & (2**53 - 1), xp.float64) * 2.0**-53
