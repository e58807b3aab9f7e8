"""What a command writes: text or one JSON object on standard output, and exit codes."""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping
from math import isfinite
from pathlib import Path
from typing import Any

import numpy as np

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
