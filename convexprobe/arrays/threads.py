"""Threads of NumPy's own linear algebra, which would compete with torch's."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from threading import Lock
from typing import Any

from threadpoolctl import ThreadpoolController

_held = Lock()


@cache
def _libraries() -> list[Any]:
    """Controllers of the OpenBLAS that NumPy's wheel brings along for itself."""
    found = ThreadpoolController().select(internal_api="openblas").lib_controllers
    return [lib for lib in found if "numpy" in "/".join(Path(lib.filepath).parts[-3:-1])]


@contextmanager
def numpy_on_one_thread() -> Iterator[None]:
    """NumPy's products run on one thread inside; how many they had is restored at the end.

    Long products go to torch (`arrays/products.py`). After one on several threads OpenBLAS's own
    wait for the next and keep the cores busy meanwhile: on two cores a fit took four times as long.
    A library that others may share (MKL, or a system's) is left as it is. Of several Python threads
    the first one inside does it, until it leaves: OpenBLAS has one number for all of them.
    """
    if not _held.acquire(blocking=False):
        yield
        return
    given = [lib.get_num_threads() for lib in _libraries()]
    try:
        for lib in _libraries():
            lib.set_num_threads(1)
        yield
    finally:
        for lib, threads in zip(_libraries(), given, strict=True):
            lib.set_num_threads(threads)
        _held.release()
