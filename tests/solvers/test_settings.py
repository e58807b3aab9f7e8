"""Solvers refuse settings that cannot be meant, by name, before any work is done."""

from __future__ import annotations

from typing import Any

import pytest

from convexprobe.solvers import (
    LBFGS,
    SAG,
    SOLVERS,
    SVRG,
    Adam,
    Curvature,
    Katyusha,
    NewtonCG,
    RMSprop,
    by_name,
)

REFUSED: list[tuple[type, dict[str, Any], type[Exception]]] = [
    (NewtonCG, {"rows": -5}, ValueError),
    (NewtonCG, {"rows": 2.5}, TypeError),
    (NewtonCG, {"tolerance": 0.0}, ValueError),
    (NewtonCG, {"tolerance": 1.5}, ValueError),
    (NewtonCG, {"iterations": 0}, ValueError),
    (NewtonCG, {"seed": -1}, ValueError),
    (LBFGS, {"memory": 0}, ValueError),
    (LBFGS, {"seed": "a"}, TypeError),
    (LBFGS, {"preconditioner": "curvature"}, TypeError),
    (LBFGS, {"preconditioner": Curvature}, TypeError),
    (NewtonCG, {"preconditioner": None}, TypeError),
    (SAG, {"preconditioner": 5}, TypeError),
    (SAG, {"epochs": 0}, ValueError),
    (SVRG, {"loopless": "yes"}, TypeError),
    (SVRG, {"rows": 0}, ValueError),
    (Katyusha, {"momentum": 0.75}, ValueError),
    (Katyusha, {"momentum": float("nan")}, ValueError),
    (Adam, {"batch": -1}, ValueError),
    (Adam, {"rate": 0.0}, ValueError),
    (Adam, {"decay": (2, 2)}, ValueError),
    (Adam, {"decay": 0.9}, TypeError),
    (RMSprop, {"decay": 1.0}, ValueError),
    (RMSprop, {"rate": "fast"}, TypeError),
]


@pytest.mark.parametrize(("kind", "settings", "error"), REFUSED)
def test_a_setting_that_cannot_be_meant_is_refused_by_name(
    kind: type, settings: dict[str, Any], error: type[Exception]
) -> None:
    (name,) = settings
    with pytest.raises(error, match=rf"{kind.__name__}\({name}=\)"):
        kind(**settings)


@pytest.mark.parametrize("name", SOLVERS)
def test_every_solver_has_settings_that_it_accepts(name: str) -> None:
    assert isinstance(by_name(name), SOLVERS[name])


@pytest.mark.parametrize("solver", [NewtonCG, None, 5, object()])
def test_what_is_no_solver_is_refused_with_what_to_do(solver: Any) -> None:
    with pytest.raises(TypeError, match="solver: expected a name or a configured solver"):
        by_name(solver)
    if solver is NewtonCG:
        with pytest.raises(TypeError, match=r"call it: NewtonCG\(\)"):
            by_name(solver)
