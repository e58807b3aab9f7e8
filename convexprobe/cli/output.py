"""What a command writes: text or one JSON object on standard output, and exit codes."""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping
from math import isfinite
from pathlib import Path
from typing import Any

import numpy as np

from convexprobe._tables import aligned

DONE, FAILED, USAGE, UNCERTIFIED, INTERRUPTED = 0, 1, 2, 3, 130
"""Exit codes: done; refused, in a line; wrong usage; done, but not every probe is certified or not
every checkpoint was probed; interrupted."""


def say(text: str) -> None:
    """Write a line, or lines, to standard output."""
    sys.stdout.write(f"{text}\n")


def warn(text: str) -> None:
    """Write one line to standard error."""
    sys.stderr.write(f"convexprobe: {' '.join(text.split())}\n")


def to_json(value: Any) -> str:
    """JSON without what the standard does not have: infinities and NaN become null."""
    return json.dumps(plain(value), indent=1, allow_nan=False, ensure_ascii=False)


def plain(value: Any) -> Any:
    """The value in the types of JSON."""
    if isinstance(value, Mapping):
        return {str(k): plain(v) for k, v in value.items()}
    if isinstance(value, list | tuple | set):
        return [plain(v) for v in value]
    if isinstance(value, np.generic):
        value = value.item()
    if isinstance(value, float) and not isfinite(value):
        return None
    return str(value) if isinstance(value, Path) else value


def tell_arrays(arrays: Mapping[str, Any], as_json: bool) -> None:
    """A table of arrays: shapes, dtypes, and the classes of a column."""
    table = [["array", "shape", "dtype", "classes"]]
    content = []
    for name, x in arrays.items():
        shape, dtype = tuple(map(int, x.shape)), str(x.dtype).removeprefix("torch.")
        classes = ""
        if len(shape) == 1 and ((isinstance(x, np.ndarray) and x.dtype.kind in "biuSU")
                                or dtype.startswith(("int", "uint", "bool"))):  # fmt: skip
            values, counts = np.unique(np.asarray(x), return_counts=True)
            each = [f"{v}: {c}" for v, c in zip(values[:8], counts[:8], strict=True)]
            classes = ", ".join(each) + (f", ... ({len(values)})" if len(values) > 8 else "")
        content.append({"array": name, "shape": shape, "dtype": dtype, "classes": classes})
        table.append([name, "x".join(map(str, shape)) or "number", dtype, classes])
    say(to_json({"kind": "arrays", "arrays": content}) if as_json else aligned(table, left=(0, 3)))
