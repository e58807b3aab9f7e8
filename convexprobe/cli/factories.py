"""Call the functions that a command line names: `package.module:function`, `file.py:function`."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from importlib import import_module
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path
from typing import Any


def call_factory(what: str, name: str) -> Any:
    """What the function returns; it is called without arguments.

    Modules are looked for in the working directory, too.

    Raises:
        ValueError: no such module or function, or one that raised; the message says which.
    """
    place, colon, attribute = name.rpartition(":")
    if not colon or not place or not attribute:
        raise ValueError(
            f"{what}: expected MODULE:FUNCTION or FILE.py:FUNCTION, found {name!r}; the function "
            "takes no arguments"
        )
    with _working_directory_on_the_path():
        try:
            module = _from_file(Path(place)) if place.endswith(".py") else import_module(place)
        except Exception as error:  # whatever the user's module raises while it is imported
            raise ValueError(f"{what}: {place!r} cannot be imported: {_told(error)}") from error
        factory = getattr(module, attribute, None)
        if not callable(factory):
            known = [n for n, v in vars(module).items() if callable(v) and n[0] != "_"]
            raise ValueError(f"{what}: {place!r} has no function {attribute!r}, found {known}")
        try:
            return factory()
        except Exception as error:
            raise ValueError(f"{what}: {name}() raised {_told(error)}") from error


def _from_file(path: Path) -> Any:
    spec = spec_from_file_location(path.stem, path)
    if spec is None or spec.loader is None or not path.is_file():
        raise FileNotFoundError(f"no file {str(path)!r}")
    module = module_from_spec(spec)
    # under its name, as an import would: what its classes pickle and inspect needs it
    before = sys.modules.get(path.stem)
    sys.modules[path.stem] = module
    try:
        spec.loader.exec_module(module)
    except BaseException:
        del sys.modules[path.stem]
        if before is not None:
            sys.modules[path.stem] = before
        raise
    return module


@contextmanager
def _working_directory_on_the_path() -> Iterator[None]:
    here = str(Path.cwd())
    sys.path.insert(0, here)
    try:
        yield
    finally:
        sys.path.remove(here)


def _told(error: Exception) -> str:
    return f"{type(error).__name__}: {error}"
