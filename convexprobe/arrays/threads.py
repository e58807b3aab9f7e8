"""Threads of NumPy's own linear algebra, which would compete with torch's."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from threading import Lock
from typing import Any

from threadpoolctl import ThreadpoolController

_lock, _inside, _given = Lock(), 0, [0]


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
    A library that others may share (MKL, or a system's) is left as it is. Python threads may be
    inside at the same time: the last one out restores.
    """
    global _inside, _given
    with _lock:
        if not _inside:
            _given = [lib.get_num_threads() for lib in _libraries()]
            for lib in _libraries():
                lib.set_num_threads(1)
        _inside += 1
    try:
        yield
    finally:
        with _lock:
            _inside -= 1
            if not _inside:
                for lib, threads in zip(_libraries(), _given, strict=True):
                    lib.set_num_threads(threads)
