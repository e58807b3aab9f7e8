"""A command's options in a TOML file: `--config` reads what a run recorded."""

from __future__ import annotations

import json
import os
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from convexprobe._files import read_regular, write_whole

CONFIG = "config.toml"
_MOST = 1 << 20  # bytes of a file of options


def read_config(path: str | os.PathLike[str], command: str | None = None) -> dict[str, Any]:
    """The tables of a file by name; of a command, its own table.

    Raises:
        OSError: it cannot be opened.
        ValueError: not TOML; or no table of the command.
    """
    try:
        content = tomllib.loads(read_regular(path, _MOST).decode())
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ValueError(f"config: {os.fspath(path)!r} is not TOML: {error}") from None
    if command is None:
        return content
    if not isinstance(content.get(command), dict):
        raise ValueError(
            f"config: {os.fspath(path)!r} has no table [{command}], found {sorted(content)}"
        )
    return content[command]


def write_config(path: Path, tables: Mapping[str, Mapping[str, Any]]) -> None:
    """Write tables of strings, numbers, booleans and lists of them; `None` is left out.

    Keys are names of options and of packages, which TOML takes as they are.
    """
    lines = []
    for name, table in tables.items():
        lines.append(f"[{name}]")
        lines += [f"{k} = {_value(v)}" for k, v in table.items() if v is not None]
        lines.append("")
    write_whole(path, "\n".join(lines).encode())


def _value(value: Any) -> str:
    if isinstance(value, list | tuple):
        return f"[{', '.join(map(_value, value))}]"
    if isinstance(value, bool):
        return "true" if value else "false"
    # 1e-06, inf and nan are written alike by Python and TOML
    return _text(value) if isinstance(value, str) else repr(value)


def _text(text: str) -> str:
    """A basic string: JSON's, in which only DEL is to be escaped too."""
    return json.dumps(text, ensure_ascii=False).replace("\x7f", "\\u007f")
