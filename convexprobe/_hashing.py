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
    """SHA-256 of the names, dtypes, shapes and bytes, whatever the order of the names."""
    sha = hashlib.sha256()
    for name in sorted(state):
        tensor = state[name].detach().cpu().contiguous()
        sha.update(f"{name} {tensor.dtype} {tuple(tensor.shape)};".encode())
        sha.update(tensor.reshape(-1).view(torch.uint8).numpy().data)
    return sha.hexdigest()


def fingerprint(*arrays: np.ndarray) -> str:
    """SHA-256 of arrays, their dtypes and shapes."""
    sha = hashlib.sha256()
    for array in arrays:
        sha.update(f"{array.dtype.str} {array.shape};".encode())
        sha.update(np.ascontiguousarray(array).view(np.uint8).reshape(-1).data)
    return sha.hexdigest()
