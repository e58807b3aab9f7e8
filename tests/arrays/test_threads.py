"""NumPy's own linear algebra on one thread: for as long as a solve runs, and no longer."""

from __future__ import annotations

from collections.abc import Iterator
from threading import Thread

import pytest

from convexprobe.arrays.threads import _libraries, numpy_on_one_thread
from convexprobe.solvers import LBFGS
from convexprobe.solvers.loop import solve
from tests.oracle import random_data


def threads() -> list[int]:
    return [library.get_num_threads() for library in _libraries()]


@pytest.fixture(autouse=True)
def two_threads() -> Iterator[None]:
    if not _libraries():
        pytest.skip("NumPy has no OpenBLAS of its own here")
    before = threads()
    for library in _libraries():
        library.set_num_threads(2)
    yield
    for library, count in zip(_libraries(), before, strict=True):
        library.set_num_threads(count)


def test_threads_are_what_they_were_also_after_an_error() -> None:
    with numpy_on_one_thread(), numpy_on_one_thread():
        assert set(threads()) == {1}
    assert set(threads()) == {2}
    with pytest.raises(ZeroDivisionError), numpy_on_one_thread():
        raise ZeroDivisionError
    assert set(threads()) == {2}


def test_other_python_threads_change_nothing() -> None:
    seen: list[int] = []

    def other() -> None:
        with numpy_on_one_thread():
            seen.extend(threads())

    with numpy_on_one_thread():
        thread = Thread(target=other)
        thread.start()
        thread.join()
        seen += threads()
    assert set(seen) == {1} and set(threads()) == {2}


def test_a_solve_runs_on_one_and_leaves_two() -> None:
    problem, seen = random_data(50, 4, 3).problem(1e-2), []
    solve(
        problem, LBFGS(), problem.constant_classifier(),
        callbacks=[lambda record: seen.extend(threads())],
    )  # fmt: skip
    assert set(seen) == {1} and set(threads()) == {2}
