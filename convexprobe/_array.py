"""The array layer: which library, device and dtype; host copies, row blocks, seeded draws.

The only file that names NumPy, torch or CuPy. Everything above it works on the namespace that
`namespace` returns (the array API standard through array-api-compat), so what goes in decides
where the work runs.
"""

from __future__ import annotations

import zlib
from types import ModuleType
from typing import Any, TypeAlias

import array_api_compat as compat
import numpy as np
import torch

Array: TypeAlias = Any
"""An array of any library that follows the array API standard."""


def namespace(*arrays: Array) -> ModuleType:
    """The array API namespace that the arrays share."""
    return compat.array_namespace(*(a for a in arrays if a is not None))


def is_array(value: Any) -> bool:
    """Whether the value is an array of a library that speaks the standard."""
    return bool(compat.is_array_api_obj(value))


def as_array(value: Any) -> Array:
    """An array from an array of any library, a DLPack exporter or a nested sequence.

    Torch tensors are detached; objects without a library become NumPy arrays.
    """
    if isinstance(value, torch.Tensor):
        return value.detach()
    if compat.is_array_api_obj(value):
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


def like(values: Any, reference: Array, dtype: Any = None) -> Array:
    """Host values (NumPy or Python) as an array of the reference's library and device."""
    values = np.asarray(values)
    if not values.flags.writeable and isinstance(reference, torch.Tensor):
        values = values.copy()  # torch warns about, and may not write to, read-only memory
    out = namespace(reference).asarray(values, device=compat.device(reference))
    return out if dtype is None else cast(out, dtype)


def to_torch(array: Array) -> torch.Tensor:
    """The array as a contiguous tensor where it is, sharing its memory where that can be."""
    array = contiguous_rows(as_array(array))
    if isinstance(array, torch.Tensor):
        return array
    if isinstance(array, (np.ndarray, np.generic)):
        array = np.asarray(array)
        # torch warns about read-only memory
        return torch.from_numpy(array if array.flags.writeable else array.copy())
    return torch.from_dlpack(array)


def from_torch(values: torch.Tensor, reference: Array) -> Array:
    """The tensor's values in the library, dtype, shape and place of the reference."""
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

    An array made anew for every block costs half as much again, and leaves holes in the heap that
    small arrays made in between keep open: 1.5 GB of them in one fit to 6 GB of streamed rows.
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
    """Spacing of the dtype at 1."""
    return float(namespace(reference).finfo(dtype).eps)


_FEW = 64
"""Rows of a left factor up to which MKL's threads help a product little: see `dot_rows`."""

_PART = 32
"""Rows that a thread multiplies at least."""


def dot_rows(a: Array, x: Array) -> Array:
    """`a x^T`, `(q, r)`: rows of `a` `(q, d)` with rows of `x` `(r, d)`.

    On a CPU with several threads and few rows in `a`, each thread takes its part of `x`; MKL has
    them share one product instead. GFLOP/s this way and MKL's (2 threads, float32, 640 x 2 048):
    27 and 16 at q = 1, 101 and 72 at 10, 156 and 139 at 30, 198 and 190 at 100; `a x` alike.
    """
    parts = _parts(a, x)
    if parts == 1:
        return a @ x.T
    (q, d), r = a.shape, x.shape[0]
    even = r - r % parts
    out = x.new_empty((q, r))
    products = a.expand(parts, q, d) @ x[:even].reshape(parts, -1, d).mT
    out[:, :even].view(q, parts, -1).copy_(products.transpose(0, 1))
    if even < r:
        out[:, even:] = a @ x[even:].T
    return out


def combine_rows(a: Array, x: Array) -> Array:
    """`a x`, `(q, d)`: linear combinations of the rows of `x` `(r, d)`; see `dot_rows`."""
    parts = _parts(a, x)
    if parts == 1:
        return a @ x
    (q, r), d = a.shape, x.shape[1]
    even = r - r % parts
    shares = a[:, :even].reshape(q, parts, -1).transpose(0, 1)
    out = (shares @ x[:even].reshape(parts, -1, d)).sum(0)
    return out if even == r else out + a[:, even:] @ x[even:]


def _parts(a: Array, x: Array) -> int:
    """How many parts of the rows of `x` are multiplied beside each other."""
    if not isinstance(x, torch.Tensor) or x.device.type != "cpu" or x.dtype != torch.float32:
        return 1
    most = x.shape[0] // _PART if a.shape[0] <= _FEW else 1
    return max(min(torch.get_num_threads(), most), 1)


def inverse_spd(matrix: Array) -> Array:
    """Inverses of symmetric positive definite matrices `(..., r, r)`.

    By Cholesky where the library has that inverse, else by LU, which is what the standard offers
    (measured in float64 on one thread: seven 1 024 x 1 024 matrices, 0.7 against 1.0 s).
    """
    if isinstance(matrix, torch.Tensor):
        factor, failed = torch.linalg.cholesky_ex(matrix)
        if not bool(failed.any()):
            return torch.cholesky_inverse(factor)
    return namespace(matrix).linalg.inv(matrix)


def cholesky(matrix: Array) -> Array | None:
    """The lower Cholesky factor of a symmetric matrix, or None if it is not positive definite."""
    if isinstance(matrix, torch.Tensor):
        factor, failed = torch.linalg.cholesky_ex(matrix)
        return None if bool(failed) else factor
    xp = namespace(matrix)
    try:
        factor = xp.linalg.cholesky(matrix)
    except np.linalg.LinAlgError:
        return None
    return factor if bool(xp.all(xp.isfinite(factor))) else None  # CuPy gives NaN instead


def solve_triangular(factor: Array, b: Array, *, upper: bool) -> Array:
    """`factor^-1 b` for a triangular factor `(r, r)` and `b` `(r, c)`.

    By LU where the library has no such solver (MKL's fails now and then at a thousand rows).
    """
    if isinstance(factor, torch.Tensor):
        return torch.linalg.solve_triangular(factor, b, upper=upper)
    return namespace(factor).linalg.solve(factor, b)


def contiguous_rows(array: Array) -> Array:
    """The same matrix with each row contiguous, which block products need to be fast."""
    if isinstance(array, torch.Tensor):
        return array.contiguous()
    if isinstance(array, np.ndarray):
        array = np.ascontiguousarray(array)
        # Big-endian or unaligned input would leave every fast path of BLAS.
        return array if array.dtype.isnative else array.astype(array.dtype.newbyteorder("="))
    return array


def block_rows(columns: int, reference: Array) -> int:
    """Rows a block holds so that it stays in cache between its two products.

    Measured on a CPU: 4 to 6 MB is best from 10 to 25 088 columns (0.84 s a pass at 64 rows of
    25 088 columns, 1.47 s at 512). A GPU wants far more rows in flight.
    """
    target, least, most = (5 << 20, 64, 8192) if on_cpu(reference) else (1 << 28, 512, 1 << 17)
    return min(max(target // (4 * max(columns, 1)), least), most)


def on_cpu(array: Array) -> bool:
    """Whether the array lives in host memory."""
    if isinstance(array, torch.Tensor):
        return array.device.type == "cpu"
    return not compat.is_cupy_array(array)


def device(array: Array) -> Any:
    """Where the array lives, as its library says it."""
    return compat.device(array)


def synchronise(array: Array) -> None:
    """Wait for the device that holds the array, so that a clock reads work done."""
    if isinstance(array, torch.Tensor) and array.device.type == "cuda":
        torch.cuda.synchronize(array.device)
    elif compat.is_cupy_array(array):
        array.device.synchronize()


def check_device(device: Any) -> None:
    """A RuntimeError or TypeError where torch has no such device."""
    torch.empty(0, device=device)


def is_out_of_memory(error: Exception) -> bool:
    """Whether a device had no room for an array."""
    if isinstance(error, torch.cuda.OutOfMemoryError):
        return True
    kind = type(error)  # by name: importing CuPy needs a driver
    return kind.__name__ == "OutOfMemoryError" and kind.__module__.startswith("cupy")


def arithmetic(reference: Array) -> str:
    """What decides the bits of dense algebra where the array lives, and a checksum of such bits."""
    place = torch.backends.cpu.get_cpu_capability()
    if not on_cpu(reference):
        place = torch.cuda.get_device_name(to_torch(reference).device)
    noise = generator(0).standard_normal((96, 96))
    matrix = like(noise + noise.T + 100.0 * np.eye(96), reference, namespace(reference).float64)
    bits = zlib.crc32(to_numpy(inverse_spd(matrix) @ matrix).tobytes())
    library = namespace(reference).__name__.rpartition(".")[2]
    return f"{library} on {place}, {torch.get_num_threads()} threads, bits {bits:08x}"


def generator(*key: int) -> np.random.Generator:
    """A private stream for the key: the same draws on every library and device."""
    return np.random.default_rng(key)
