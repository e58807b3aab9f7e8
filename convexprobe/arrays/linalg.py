"""Dense linear algebra on small matrices of any array library.

NumPy's arrays are handed to torch, whose LAPACK inverts four times and finds eigenvectors twice as
fast as the one of NumPy's wheels.
"""

from __future__ import annotations

import zlib

import numpy as np
import torch

from convexprobe.arrays.backend import Array, generator, like, namespace, on_cpu, to_numpy, to_torch


def inverse_spd(matrix: Array, *, wait: bool = True) -> Array:
    """Inverses of symmetric positive definite matrices `(..., r, r)`.

    By Cholesky where the library has that inverse, which is faster; else by LU, also for a matrix
    that is not positive definite.

    Args:
        matrix: the matrices.
        wait: whether the host waits until a device says that all of them are; if it does not, the
            inverse of one that is not is NaN there.
    """
    if isinstance(matrix, np.ndarray):
        return inverse_spd(to_torch(matrix)).numpy()
    if isinstance(matrix, torch.Tensor):
        factor, failed = torch.linalg.cholesky_ex(matrix)
        if not wait and not on_cpu(matrix):
            return torch.cholesky_inverse(factor).where(failed[..., None, None] == 0, torch.nan)
        if not bool(failed.any()):
            return torch.cholesky_inverse(factor)
    return namespace(matrix).linalg.inv(matrix)


def cholesky(matrix: Array) -> Array | None:
    """The lower Cholesky factors of symmetric matrices `(..., r, r)`, or None if one is not
    positive definite."""
    if isinstance(matrix, np.ndarray):
        found = cholesky(to_torch(matrix))
        return None if found is None else found.numpy()
    if isinstance(matrix, torch.Tensor):
        factor, failed = torch.linalg.cholesky_ex(matrix)
        return None if bool(failed.any()) else factor
    xp = namespace(matrix)
    try:
        factor = xp.linalg.cholesky(matrix)
    except np.linalg.LinAlgError:
        return None
    return factor if bool(xp.all(xp.isfinite(factor))) else None  # CuPy gives NaN instead


def cholesky_solve(factor: Array, b: Array) -> Array:
    """`(L L^T)^-1 b` for lower factors `(..., r, r)` and `b` `(..., r, c)`."""
    if isinstance(factor, np.ndarray):
        return cholesky_solve(to_torch(factor), to_torch(b)).numpy()
    if isinstance(factor, torch.Tensor):
        return torch.cholesky_solve(b, factor)
    xp = namespace(factor)
    return xp.linalg.solve(xp.matrix_transpose(factor), xp.linalg.solve(factor, b))


def solve_triangular(factor: Array, b: Array, *, upper: bool) -> Array:
    """`factor^-1 b` for a triangular factor `(r, r)` and `b` `(r, c)`."""
    if isinstance(factor, np.ndarray):
        return solve_triangular(to_torch(factor), to_torch(b), upper=upper).numpy()
    if isinstance(factor, torch.Tensor):
        return torch.linalg.solve_triangular(factor, b, upper=upper)
    return namespace(factor).linalg.solve(factor, b)  # the standard has no triangular solver


def solve(matrix: Array, b: Array) -> Array:
    """`matrix^-1 b` for matrices `(..., r, r)` and `b` `(..., r, c)`, without a check of them.

    The check would make the host wait for a device. A singular matrix gives numbers that are not
    finite on a device; elsewhere it may raise.
    """
    if isinstance(matrix, torch.Tensor):
        return torch.linalg.solve_ex(matrix, b).result
    return namespace(matrix).linalg.solve(matrix, b)


def arithmetic(reference: Array) -> str:
    """Name what decides the bits of dense algebra on the array's device, and checksum some bits."""
    place = torch.backends.cpu.get_cpu_capability()
    if not on_cpu(reference):
        device = to_torch(reference).device
        place = torch.get_device_module(device).get_device_name(device)
    noise = generator(0).standard_normal((96, 96))
    matrix = like(noise + noise.T + 100.0 * np.eye(96), reference, namespace(reference).float64)
    bits = zlib.crc32(to_numpy(inverse_spd(matrix) @ matrix).tobytes())
    library = namespace(reference).__name__.rpartition(".")[2]
    return f"{library} on {place}, {torch.get_num_threads()} threads, bits {bits:08x}"


def eigh(matrix: Array) -> tuple[Array, Array]:
    """Eigenvalues, in ascending order, and eigenvectors of a symmetric matrix `(r, r)`.

    Where the library finds none (entries that overflowed, or many that are alike), the diagonal and
    the coordinates stand for them: a preconditioner is then a poor one, and nothing breaks.
    """
    if isinstance(matrix, np.ndarray):
        values, vectors = eigh(to_torch(matrix))
        return values.numpy(), vectors.numpy()
    xp = namespace(matrix)
    matrix = xp.where(xp.isfinite(matrix), matrix, 0.0)
    host, finite = on_cpu(matrix), None
    try:
        values, vectors = xp.linalg.eigh(matrix)
        finite = xp.all(xp.isfinite(vectors))
        if host and bool(finite):
            return values, vectors
    except (np.linalg.LinAlgError, torch.linalg.LinAlgError):
        pass
    diagonal = xp.linalg.diagonal(matrix)
    order = xp.argsort(diagonal)
    eye = xp.eye(matrix.shape[0], dtype=matrix.dtype, device=matrix.device)
    diagonal, eye = xp.take(diagonal, order), xp.take(eye, order, axis=1)
    if host or finite is None:
        return diagonal, eye
    return xp.where(finite, values, diagonal), xp.where(finite, vectors, eye)  # nobody waits
