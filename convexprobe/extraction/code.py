"""Whose code a module has, which globals a function reads, and which methods a call may reach."""

from __future__ import annotations

import dis
import functools
import sys
import types
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Any


def globals_read(code: types.CodeType, scope: dict[str, Any]) -> Iterator[tuple[str, Any]]:
    """Names and values of the globals that a function reads, with the functions inside it.

    Of the caller's own modules and of torch those are the members read, of others the module.
    """
    name: str = ""
    value: Any = None
    module = types.ModuleType("")
    for step in dis.get_instructions(code):
        if step.opname in ("LOAD_ATTR", "LOAD_METHOD") and isinstance(value, types.ModuleType):
            name = f"{name}.{step.argval}"
            if owner_of(value.__name__) in ("own", "torch"):
                value = getattr(value, step.argval, None)
        elif step.opname == "IMPORT_FROM":
            name, value = step.argval, module
            if owner_of(module.__name__) == "own":
                value = getattr(module, step.argval, module)
        elif step.opname not in ("EXTENDED_ARG", "PUSH_NULL"):
            if name:
                yield name, value
            name, value = "", None
            if step.opname in ("LOAD_GLOBAL", "LOAD_NAME") and step.argval in scope:
                name, value = step.argval, scope[step.argval]
            elif step.opname == "IMPORT_NAME":  # loaded or not, it is the same to the caller
                name = step.argval
                value = module = sys.modules.get(name) or types.ModuleType(name)
    for constant in code.co_consts:
        if isinstance(constant, types.CodeType):
            yield from globals_read(constant, scope)


def reachable(members: list[tuple[str, Any]]) -> set[str]:
    """Members that a call of the object may use, told by the names in the code; all if none is.

    A trainer's methods beside them read settings, such as a path, that no forward pass depends on.
    """
    names = {name for name, _ in members}
    reached = {name for name in names if name.startswith("__")} - {"__init__"}
    if not names & {"forward", "__call__"}:
        return names
    reached |= names & {"forward", "__call__"}
    waiting = list(reached)
    while waiting:
        name = waiting.pop()
        mentioned: set[str] = set()
        for value in (v for n, v in members if n == name):
            value = getattr(value, "fget", None) or getattr(value, "__func__", None) or value
            while hasattr(value, "__wrapped__"):
                value = value.__wrapped__
            if isinstance(value, types.FunctionType):
                mentioned |= _mentioned(value.__code__)
        waiting += (mentioned & names) - reached
        reached |= mentioned & names
    return reached


def _mentioned(code: types.CodeType) -> set[str]:
    inner = (c for c in code.co_consts if isinstance(c, types.CodeType))
    return set(code.co_names).union(*map(_mentioned, inner))


@functools.cache
def owner_of(module: str) -> str:
    """Whose code a module has: "python", "torch", "installed" or the caller's "own"."""
    root = root_of(module)
    if root in sys.stdlib_module_names:
        return "python"
    if root == "torch":
        return "torch"
    try:
        spec = find_spec(root)
    except ValueError:  # of `__main__`
        spec = None
    places = [] if spec is None else [spec.origin or "", *(spec.submodule_search_locations or ())]
    folders = {part for place in places for part in Path(place).parts}
    return "installed" if folders & {"site-packages", "dist-packages"} else "own"


def version_of(module: str) -> str:
    """The version of an installed package, otherwise nothing."""
    if owner_of(module) != "installed":
        return ""
    return str(getattr(sys.modules.get(root_of(module)), "__version__", ""))


def root_of(module: str) -> str:
    """The package that a module is in."""
    return module.partition(".")[0]
