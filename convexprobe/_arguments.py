"""Check single arguments; each error says what was expected and what was found."""

from __future__ import annotations

import os
from collections.abc import Iterable
from difflib import get_close_matches
from math import isnan, nan
from numbers import Integral, Real
from pathlib import Path
from reprlib import Repr
from typing import Any

_REPR = Repr()  # does not fail where `repr` does, and never writes out all of a long list
_REPR.maxstring = _REPR.maxother = 60


def check_integer(name: str, value: Any, *, least: int = 0) -> int:
    """The value as an `int` of at least `least`.

    Raises:
        TypeError: not an integer (a bool is none).
        ValueError: below `least`.
    """
    if isinstance(value, bool) or not isinstance(value, Integral):
        raise TypeError(f"{name}: expected an integer, found {shown(value)}")
    if value < least:
        raise ValueError(f"{name}: expected an integer of at least {least}, found {shown(value)}")
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
        raise TypeError(f"{name}: expected a number{bound}, found {shown(value)}")
    low = (above is not None and value <= above) or (least is not None and value < least)
    try:
        number = nan if low else float(value)
    except OverflowError:  # an integer that no float can hold
        number = nan
    if isnan(number):
        raise ValueError(f"{name}: expected a number{bound}, found {shown(value)}")
    return number


def check_choice(name: str, value: Any, choices: Iterable[str]) -> str:
    """The value, which must be one of the choices.

    Raises:
        TypeError: not a string.
        ValueError: not one of the choices; the message lists them and the nearest one.
    """
    known = list(choices)
    if not isinstance(value, str):
        raise TypeError(f"{name}: expected one of {', '.join(known)}, found {shown(value)}")
    if value not in known:
        near = get_close_matches(value, known, n=1)
        hint = f"; did you mean {near[0]!r}?" if near else ""
        raise ValueError(f"{name}: expected one of {', '.join(known)}, found {value!r}{hint}")
    return value


def check_bool(name: str, value: Any) -> bool:
    """The value, which must be True or False; otherwise a TypeError."""
    if not isinstance(value, bool):
        raise TypeError(f"{name}: expected True or False, found {shown(value)}")
    return value


def check_path(name: str, value: Any) -> Path:
    """The value as a path; a TypeError if it is neither a string nor a path."""
    if not isinstance(value, (str, os.PathLike)):
        raise TypeError(f"{name}: expected a path, found {shown(value)}")
    return Path(value)


def shown(value: Any) -> str:
    """The value and its type, cut to a line."""
    text = (_REPR.repr(value).splitlines() or [""])[0]
    return f"{text} ({type(value).__name__})"
