"""MNIST: the four original files, downloaded once, checked against their sha256 and parsed."""

from __future__ import annotations

import gzip
import hashlib
import logging
import math
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Literal

import numpy as np
import pooch

_DIRECTORY_VARIABLE = "CONVEXPROBE_DATA"

# tried in this order; the original host answers most requests with an error
_MIRRORS = (
    "https://ossci-datasets.s3.amazonaws.com/mnist/",
    "https://storage.googleapis.com/cvdf-datasets/mnist/",
)

_SHA256 = {
    "train-images-idx3-ubyte.gz": (
        "440fcabf73cc546fa21475e81ea370265605f56be210a4024d2ca8f203523609"
    ),
    "train-labels-idx1-ubyte.gz": (
        "3552534a0a558bbed6aed32b30c495cca23d567ec52cac8be1a0730e8010255c"
    ),
    "t10k-images-idx3-ubyte.gz": (
        "8d422c7b0a1c1c79245a5bcf07fe86e33eeafee792b84584aec276f5a2dbc4e6"
    ),
    "t10k-labels-idx1-ubyte.gz": (
        "f7ae60f92e00ec6debd23a6088c31dbd2371eca3ffa0defaefb259924204aec6"
    ),
}

_PREFIXES = {"train": "train", "test": "t10k"}


def mnist(split: Literal["train", "test"]) -> tuple[np.ndarray, np.ndarray]:
    """The images and labels of one split of MNIST, in the order of the original files.

    If the environment variable `CONVEXPROBE_DATA` names a directory, the files are read from it
    or from its folder `mnist`; it is never written to, and no network is used. Otherwise they are
    downloaded at the first call (11.6 MB for both splits) and kept in the user's cache directory.
    Their sha256 is checked at every call, wherever they come from.

    Args:
        split: "train" (60 000 images) or "test" (10 000 images).

    Returns:
        images: uint8, shape `(n, 28, 28)`, 0 for the background to 255 for full ink.
        labels: int64, shape `(n,)`, the digits 0 to 9.
        Both are new arrays that the caller may change.

    Raises:
        ValueError: the split has another name; or a file is not the original one.
        FileNotFoundError: `CONVEXPROBE_DATA` is set and a file is not there.
        OSError: no mirror delivered a file, or the cache cannot be written.
    """
    if split not in _PREFIXES:
        raise ValueError(f"split: expected 'train' or 'test', found {split!r}")
    prefix = _PREFIXES[split]
    images = _read_idx(_locate(f"{prefix}-images-idx3-ubyte.gz"), shape=(-1, 28, 28))
    labels = _read_idx(_locate(f"{prefix}-labels-idx1-ubyte.gz"), shape=(len(images),))
    return images, labels.astype(np.int64)


def _locate(name: str) -> Path:
    # an empty value is how shells and CI files unset a variable
    directory = os.environ.get(_DIRECTORY_VARIABLE)
    return _find(name, Path(directory)) if directory else _download(name)


def _find(name: str, directory: Path) -> Path:
    # pooch's own `env=` is not used: it writes into the directory and fetches what is missing
    candidates = (directory / name, directory / "mnist" / name)
    for path in candidates:
        if path.is_file():
            return path
    state = "has no such file" if directory.is_dir() else "is not a directory"
    raise FileNotFoundError(
        f"expected {name} in the directory named by {_DIRECTORY_VARIABLE} or in its folder "
        f"'mnist', but {directory} {state}; put the file there, or unset the variable to download"
    )


def _download(name: str) -> Path:
    """The file in the cache, fetched from the first mirror that delivers the right bytes."""
    cache = Path(pooch.os_cache("convexprobe")) / "mnist"
    failures = []
    for mirror in _MIRRORS:
        fetcher = pooch.create(path=cache, base_url=mirror, registry=_SHA256)
        try:
            with _quiet_pooch():
                return Path(fetcher.fetch(name))
        except (OSError, ValueError) as error:  # requests' errors are OSErrors; a bad hash is not
            failures.append(f"{mirror}: {error}")
    raise OSError(
        f"could not download {name} to {cache}. Without a network, put MNIST's four .gz files in "
        f"a directory and set the environment variable {_DIRECTORY_VARIABLE} to it. Tried:\n  "
        + "\n  ".join(failures)
    )


@contextmanager
def _quiet_pooch() -> Iterator[None]:
    """Without pooch's announcement of every download on stderr."""
    logger = pooch.get_logger()
    level = logger.level
    logger.setLevel(logging.WARNING)
    try:
        yield
    finally:
        logger.setLevel(level)


def _read_idx(path: Path, shape: tuple[int, ...]) -> np.ndarray:
    """The array in a gzipped IDX file whose sha256 is known; -1 in `shape` is any length."""
    compressed = path.read_bytes()
    expected, found = _SHA256[path.name], hashlib.sha256(compressed).hexdigest()
    if found != expected:
        raise ValueError(
            f"{path} is damaged or another file: expected sha256 {expected}, "
            f"found {found} ({len(compressed)} bytes)"
        )
    array = _parse_idx(gzip.decompress(compressed), path)
    if array.ndim != len(shape) or any(
        want not in (-1, have) for want, have in zip(shape, array.shape, strict=True)
    ):
        raise ValueError(f"{path}: expected shape {shape} (-1: any), found {array.shape}")
    return array


def _parse_idx(content: bytes, path: Path) -> np.ndarray:
    """IDX: two zero bytes, the type (8: uint8), the number of axes, the length of each axis as
    a big-endian uint32, then the values in C order."""
    if len(content) < 4 or content[:3] != b"\0\0\x08":
        raise ValueError(
            f"{path}: expected an IDX file of unsigned bytes, which starts with 00 00 08, "
            f"found {content[:3].hex(' ') or 'nothing'}"
        )
    start = 4 + 4 * content[3]
    if len(content) < start:
        raise ValueError(f"{path}: expected a header of {start} bytes, found {len(content)}")
    lengths = tuple(np.frombuffer(content[4:start], dtype=">u4").tolist())
    if len(content) - start != math.prod(lengths):
        raise ValueError(
            f"{path}: expected {math.prod(lengths)} values for the shape {lengths} in its header, "
            f"found {len(content) - start}"
        )
    # frombuffer alone gives a read-only view, which torch warns about
    return np.frombuffer(content, dtype=np.uint8, offset=start).reshape(lengths).copy()
