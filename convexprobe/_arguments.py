"""Check single arguments; each error says what was expected and what was found."""

from __future__ import annotations

from collections.abc import Iterable
from difflib import get_close_matches
from math import isnan
from numbers import Integral, Real
from typing import Any


def check_integer(name: str, value: Any, *, least: int = 0) -> int:
    """The value as an `int` of at least `least`.

    Raises:
        TypeError: not an integer (a bool is none).
        ValueError: below `least`.
    """
    if isinstance(value, bool) or not isinstance(value, Integral):
        raise TypeError(f"{name}: expected an integer, found {_shown(value)}")
    if value < least:
        raise ValueError(f"{name}: expected an integer of at least {least}, found {value}")
    return int(value)


def check_real(
    name: str, value: Any, *, above: float | None = None, least: float | None = None
) -> float:
    """The value as a `float`, `above` a bound or at `least` a bound; it may be infinite.

    Raises:
        TypeError: not a real number (a bool is none).
        ValueError: NaN, or outside the bound.
    """
    bound = "" if above is None else f" above {above:g}"
    bound = bound if least is None else f" of at least {least:g}"
    if isinstance(value, bool) or not isinstance(value, Real):
        raise TypeError(f"{name}: expected a number{bound}, found {_shown(value)}")
    low = (above is not None and value <= above) or (least is not None and value < least)
    if isnan(value) or low:
        raise ValueError(f"{name}: expected a number{bound}, found {value}")
    return float(value)


def check_choice(name: str, value: Any, choices: Iterable[str]) -> str:
    """The value, which must be one of the choices.

    Raises:
        TypeError: not a string.
        ValueError: not one of the choices; the message lists them and the nearest one.
    """
    known = list(choices)
    if not isinstance(value, str):
        raise TypeError(f"{name}: expected one of {', '.join(known)}, found {_shown(value)}")
    if value not in known:
        near = get_close_matches(value, known, n=1)
        hint = f"; did you mean {near[0]!r}?" if near else ""
        raise ValueError(f"{name}: expected one of {', '.join(known)}, found {value!r}{hint}")
    return value


def _shown(value: Any) -> str:
    """The value and its type, cut to a line."""
    text = repr(value).splitlines()[0] if repr(value) else ""
    text = text if len(text) <= 60 else f"{text[:57]}..."
    return f"{text} ({type(value).__name__})"
