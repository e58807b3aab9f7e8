"""Checks of single arguments say what was expected and what was found, whatever they are given."""

from __future__ import annotations

from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from convexprobe._arguments import check_bool, check_choice, check_integer, check_path, check_real


class Unprintable:
    def __repr__(self) -> str:
        raise RuntimeError


@pytest.mark.parametrize("value", [3, np.int64(3), np.uint8(3)])
def test_integers_of_every_library_are_integers(value: Any) -> None:
    found = check_integer("rows", value, least=1)
    assert found == 3 and type(found) is int


@pytest.mark.parametrize("value", [0.5, Fraction(1, 2), np.float32(0.5)])
def test_numbers_of_every_library_are_numbers(value: Any) -> None:
    assert check_real("l2", value, least=0.0) == 0.5


WRONG = [True, "3", None, [3], 3j, Unprintable(), np.ones(3), float("nan"), -1, 10**400, "x" * 999]


@pytest.mark.parametrize("value", WRONG, ids=lambda value: type(value).__name__)
@pytest.mark.parametrize("check", [check_integer, check_real, check_bool, check_path])
def test_what_is_refused_is_named_and_shown_in_one_line(check: Any, value: Any) -> None:
    bounds = {check_integer: {"least": 0}, check_real: {"above": 0}}.get(check, {})
    try:
        found = check("name", value, **bounds)
    except (TypeError, ValueError) as error:
        assert str(error).startswith("name: expected ") and "\n" not in str(error)
        assert len(str(error)) < 200 or value == 10**400
    else:
        assert (check, type(found)) in {(check_integer, int), (check_bool, bool)} | {
            (check_path, type(Path()))
        }


def test_a_choice_that_does_not_exist_gives_the_nearest() -> None:
    assert check_choice("solver", "lbfgs", ["lbfgs", "saga"]) == "lbfgs"
    with pytest.raises(ValueError, match=r"solver: .* lbfgs, saga, found 'lbgs'; did you mean 'lb"):
        check_choice("solver", "lbgs", ["lbfgs", "saga"])
    with pytest.raises(TypeError, match=r"solver: expected one of lbfgs, saga, found 3 \(int\)"):
        check_choice("solver", 3, ["lbfgs", "saga"])
