"""Files that appear complete or not at all, and last once they are there."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

TEMPORARY = ".tmp"
"""The last part of the name of a file that is being written; a kill leaves it behind."""


@contextmanager
def replacing(path: str | os.PathLike[str]) -> Iterator[Path]:
    """A temporary path beside `path`, with its suffix, to write to; moved over it at the end.

    After an error the temporary file is gone and `path` as it was. Afterwards the bytes and the
    name are on the disk (`fsync` of the file and of its directory), so that a file written later
    never exists without it.
    """
    path = Path(path)
    temporary = path.with_name(f".{path.stem}.{os.getpid()}{TEMPORARY}{path.suffix}")
    try:
        yield temporary
        _sync(temporary)
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)
    with suppress(OSError):  # some file systems have no directories to sync
        _sync(path.parent)


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def remove_leftovers(directory: Path) -> None:
    """Delete what a killed process was writing there."""
    for path in directory.glob(f".*{TEMPORARY}*"):
        path.unlink(missing_ok=True)
