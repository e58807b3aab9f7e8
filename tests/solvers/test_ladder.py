"""The ladder of preconditioners: dearer from level to level, and bought from what was saved for."""

from __future__ import annotations

from dataclasses import replace
from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import pytest

from convexprobe.problem.objective import Problem
from convexprobe.solvers import LBFGS
from convexprobe.solvers.auto import first
from convexprobe.solvers.ladder import EVERY, MANY, STALE, Bought, ladder
from tests.oracle import Data, random_data


def sized(n: int, d: int, k: int, m: int = 1) -> Problem:
    """As much of a family as prices depend on."""
    return cast(Problem, SimpleNamespace(n=n, d=d, k=k, m=m, p=k * (d + 1)))


@pytest.mark.parametrize("k", [2, 3, 10, 1000])
@pytest.mark.parametrize("d", [4, 64, 129, 256, 512, 784, 1024, 1025, 4096, 25088])
@pytest.mark.parametrize("n", [50, 1000, 50_000])
def test_a_level_is_never_cheaper_than_the_one_below(n: int, d: int, k: int) -> None:
    levels = ladder(sized(n, d, k))
    prices = [level.price(sized(n, d, k)) for level in levels]
    assert prices[0] > 0 and (np.diff(prices) >= 0).all()
    assert (np.diff([level.rows for level in levels]) > 0).all()  # nor does it know less
    if n == 50_000 and d <= 1024:
        assert (np.diff(prices) > 0).all()


def test_a_level_is_next_when_its_price_has_been_spent_on_passes() -> None:
    problem = sized(10_000, 512, 10)
    levels = ladder(problem)
    price = levels[1].price(problem)
    assert Bought().next(problem, levels, stale=False) == 0
    assert Bought(0, price - 1e-9, 99.0).next(problem, levels, stale=False) is None
    assert Bought(0, price, 0.0).next(problem, levels, stale=False) == 1
    top = len(levels) - 1
    price = levels[top].price(problem)
    assert Bought(top, 1e9, price).next(problem, levels, stale=False) is None
    assert Bought(top, 1e9, price - 1e-9).next(problem, levels, stale=True) is None
    assert Bought(top, 1e9, price).next(problem, levels, stale=True) == top


@pytest.mark.parametrize("k", [2, 4])
def test_a_solve_buys_each_level_only_after_its_price(k: int) -> None:
    data = random_data(400, 20, k)
    problem = Data(data.x * np.logspace(0, -3, 20), data.y, k).problem(1e-7)
    levels, solver = ladder(problem), LBFGS()
    w = problem.constant_classifier()
    state: Any = solver.init(problem, w)
    spent, reached = 0.0, [-1]
    for step in range(60):
        before = state
        w, state = solver.step(problem, w, state)
        if state.inverse is before.inverse:
            assert state.bought == replace(
                before.bought, there=before.bought.there + 1, since=before.bought.since + 1
            )
            continue
        level, price = state.bought.level, levels[state.bought.level].price(problem)
        if level == before.bought.level:
            assert before.bought.since >= price
            assert (before.at.loss < STALE * before.built).any()
        elif level > 0:
            assert level > before.bought.level and before.bought.there >= price
        spent += price
        reached.append(level)
        assert spent <= 2.0 * step + levels[0].price(problem) + 1e-9  # first builds, and rebuilds
    assert max(reached) >= 1  # there was something to buy


def test_the_curvature_of_many_classes_is_rebuilt_seldom() -> None:
    problem = sized(5000, 128, MANY + 1)
    levels = ladder(problem)
    assert levels[0].price(problem) < EVERY == levels[0].least
    assert Bought(0, 0.0, EVERY - 1.0).next(problem, levels, stale=True) is None
    assert Bought(0, 0.0, EVERY).next(problem, levels, stale=True) == 0
    assert Bought(0, 0.0, EVERY).next(problem, levels, stale=False) is None
    assert first(problem) == LBFGS()
    assert first(sized(5000, 128, MANY)) != LBFGS()
