"""Checksums that identify weights, arrays and files."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor

StateDict = Mapping[str, Tensor]


def raw_bytes(tensor: Tensor) -> memoryview:
    """The bytes of a contiguous host tensor, without a copy."""
    values: Any = tensor.reshape(-1).view(torch.uint8).numpy()
    return memoryview(values)


def digest(state: StateDict) -> str:
    """SHA-256 of the names, dtypes, shapes and values, whatever the order of the names.

    Raises:
        ValueError: a tensor without readable values, such as one on the meta device.
    """
    sha = hashlib.sha256()
    for name in sorted(state):
        tensor = state[name].detach()
        try:
            shape = [] if tensor.is_nested else tuple(tensor.shape)
            sha.update(f"{name} {tensor.dtype} {shape};".encode())
            for part in _values(tensor):
                sha.update(raw_bytes(part.cpu().contiguous()))
        # What torch raises for a layout or a dtype without an operation depends on which it is.
        except (NotImplementedError, RuntimeError, TypeError) as error:
            raise ValueError(f"tensor {name!r}: its values cannot be read: {error}") from None
    return sha.hexdigest()


def _values(tensor: Tensor) -> list[Tensor]:
    """Dense tensors that hold all values of a tensor of any layout."""
    if tensor.is_nested:
        return [dense for part in tensor.unbind() for dense in (torch.tensor(part.shape), part)]
    if tensor.is_quantized:
        return [tensor.int_repr(), tensor.dequantize()]
    if tensor.layout == torch.sparse_coo:
        tensor = tensor.coalesce()
        return [tensor.indices(), tensor.values()]
    if tensor.layout in (torch.sparse_csr, torch.sparse_bsr):
        return [tensor.crow_indices(), tensor.col_indices(), tensor.values()]
    if tensor.layout in (torch.sparse_csc, torch.sparse_bsc):
        return [tensor.ccol_indices(), tensor.row_indices(), tensor.values()]
    if tensor.layout != torch.strided:  # such as MKLDNN's
        tensor = tensor.to_dense()
    return [tensor.resolve_conj().resolve_neg()]


def fingerprint(*arrays: np.ndarray) -> str:
    """SHA-256 of arrays, their dtypes and shapes."""
    sha = hashlib.sha256()
    for array in arrays:
        sha.update(f"{array.dtype.str} {array.shape};".encode())
        sha.update(np.ascontiguousarray(array).view(np.uint8).reshape(-1).data)
    return sha.hexdigest()
