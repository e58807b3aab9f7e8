"""MNIST: the four original files, downloaded once, checked against their sha256 and parsed."""

from __future__ import annotations

import gzip
import hashlib
import logging
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import numpy as np
import pooch

from convexprobe._arguments import check_choice
from convexprobe._files import read_regular

_DIRECTORY_VARIABLE = "CONVEXPROBE_DATA"

_SHA256 = {
    f"{name}-ubyte.gz": sha256
    for name, sha256 in {
        "train-images-idx3": "440fcabf73cc546fa21475e81ea370265605f56be210a4024d2ca8f203523609",
        "train-labels-idx1": "3552534a0a558bbed6aed32b30c495cca23d567ec52cac8be1a0730e8010255c",
        "t10k-images-idx3": "8d422c7b0a1c1c79245a5bcf07fe86e33eeafee792b84584aec276f5a2dbc4e6",
        "t10k-labels-idx1": "f7ae60f92e00ec6debd23a6088c31dbd2371eca3ffa0defaefb259924204aec6",
    }.items()
}

_MOST = 1 << 24
"""Bytes that are read of a file: the largest has 9.9 MB."""

_PREFIXES = {"train": "train", "test": "t10k"}


def mnist(split: Literal["train", "test"]) -> tuple[np.ndarray, np.ndarray]:
    """The images and labels of one split of MNIST, in the order of the original files.

    If the environment variable `CONVEXPROBE_DATA` names a directory, the files are read from it or
    from its folder `mnist`; it is never written to, and no network is used. Otherwise the files are
    downloaded at the first call (11.6 MB for both splits) and kept in the user's cache directory.
    Their SHA-256 is checked at every call, wherever they come from.

    Args:
        split: "train" (60 000 images) or "test" (10 000 images).

    Returns:
        images: uint8, shape `(n, 28, 28)`, 0 for the background to 255 for full ink.
        labels: int64, shape `(n,)`, the digits 0 to 9.
        Both are new arrays that the caller may change.

    Raises:
        TypeError, ValueError: the split has no such name, or a file is not the original one.
        FileNotFoundError: `CONVEXPROBE_DATA` is set and a file is not there.
        OSError: no mirror delivered a file, or the cache cannot be written.
    """
    return Files().read(split)


@dataclass(frozen=True)
class Files:
    """The four files.

    Attributes:
        mirrors: base URLs, tried in this order.
        sha256: by file name.
        cache: the directory for downloads; by default in the user's cache directory.
    """

    # the original host answers most requests with an error
    mirrors: tuple[str, ...] = (
        "https://ossci-datasets.s3.amazonaws.com/mnist/",
        "https://storage.googleapis.com/cvdf-datasets/mnist/",
    )
    sha256: Mapping[str, str] = field(default_factory=lambda: _SHA256)
    cache: Path = field(default_factory=lambda: Path(pooch.os_cache("convexprobe")) / "mnist")

    def read(self, split: str) -> tuple[np.ndarray, np.ndarray]:
        """As `mnist`."""
        prefix = _PREFIXES[check_choice("split", split, _PREFIXES)]
        images = self._read_idx(f"{prefix}-images-idx3-ubyte.gz", shape=(-1, 28, 28))
        labels = self._read_idx(f"{prefix}-labels-idx1-ubyte.gz", shape=(len(images),))
        return images, labels.astype(np.int64)

    def locate(self, name: str) -> Path:
        """The path of a file, which is downloaded if need be."""
        # an empty value is how shells and CI files unset a variable
        directory = os.environ.get(_DIRECTORY_VARIABLE)
        return _find(name, Path(directory)) if directory else self._download(name)

    def _download(self, name: str) -> Path:
        """The file in the cache, from the first mirror that delivers the right bytes."""
        failures = []
        for mirror in self.mirrors:
            fetcher = pooch.create(path=self.cache, base_url=mirror, registry=dict(self.sha256))
            try:
                with _quiet_pooch():
                    return Path(fetcher.fetch(name))
            except (OSError, ValueError) as error:  # a wrong hash is a ValueError
                failures.append(f"{mirror}: {error}")
        raise OSError(
            f"could not download {name} to {self.cache}. Without a network, put MNIST's four .gz "
            f"files in a directory and set the environment variable {_DIRECTORY_VARIABLE} to it. "
            "Tried:\n  " + "\n  ".join(failures)
        )

    def _read_idx(self, name: str, shape: tuple[int, ...]) -> np.ndarray:
        """The array in a gzipped IDX file; -1 in `shape` is any length."""
        path = self.locate(name)
        compressed = read_regular(path, _MOST)
        expected, found = self.sha256[name], hashlib.sha256(compressed).hexdigest()
        if found != expected:
            raise ValueError(
                f"{path} is damaged or another file: expected sha256 {expected}, "
                f"found {found} ({len(compressed)} bytes)"
            )
        # IDX: a header of four bytes, and four for the length of each axis; then the values
        values = np.frombuffer(gzip.decompress(compressed), np.uint8, offset=4 + 4 * len(shape))
        return values.reshape(shape).copy()  # a view would be read-only, which torch warns about


def _find(name: str, directory: Path) -> Path:
    # pooch's own `env=` is not used: it writes into the directory and fetches what is missing
    for path in (directory / name, directory / "mnist" / name):
        if path.is_file():
            return path
    state = "has no such file" if directory.is_dir() else "is not a directory"
    raise FileNotFoundError(
        f"expected {name} in the directory named by {_DIRECTORY_VARIABLE} or in its folder "
        f"'mnist', but {directory} {state}; put the file there, or unset the variable to download"
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
