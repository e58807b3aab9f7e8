"""Find checkpoints, put them in order, and read each as a state dict of the model.

| `checkpoints` | what is taken |
|---|---|
| a directory | its files that end in `SUFFIXES`, and subdirectories with a `MODEL_FILES`, by step |
| a list of paths | those, in that order |
| an iterable of `(step, path)` or `(step, state dict)` | those, in that order |

The step is the number after "step", "checkpoint", "iter" or the like in the name; without such a
word the last number in the name; without a number the "step" or "global_step" in the file; and
else the place among the others, from 0.

A file may hold the state dict under a key such as "state_dict" or "model", and its names may share
a prefix ("module.", "_orig_mod.", "model.") that the model's do not have. No pickled code is run:
torch files are read with `weights_only=True`.
"""

from __future__ import annotations

import os
import re
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from convexprobe._hashing import StateDict

SUFFIXES = (".pt", ".pth", ".ckpt", ".bin", ".safetensors")
MODEL_FILES = ("model.safetensors", "pytorch_model.bin")
NESTED = ("state_dict", "model_state_dict", "model", "module", "net", "weights", "params")

_MARKED_STEP = re.compile(r"(?:step|checkpoint|ckpt|iteration|iter)[-_= ]*(\d+)", re.IGNORECASE)
_MAX_NAMES = 4  # that a message lists


@dataclass(frozen=True)
class Checkpoint:
    """One checkpoint that has not been read.

    Attributes:
        step: its step, None if only the file tells.
        place: its place among the others, from 0.
        source: what messages call it: its path, or its step.
        read: returns everything in it.
    """

    step: int | None
    place: int
    source: str
    read: Callable[[], Mapping[str, Any]]

    def load(self) -> tuple[int, dict[str, Tensor]]:
        """Read the step and the state dict, whose names need not be the model's yet.

        Raises:
            ValueError: unreadable, or without a state dict; the message starts with the source.
        """
        content = self.read()
        steps = [self.step, *(_number(content.get(key)) for key in ("step", "global_step"))]
        step = next((step for step in steps if step is not None), self.place)
        inner = [content[key] for key in NESTED if isinstance(content.get(key), Mapping)]
        content = inner[0] if inner else content
        state = {str(k): v for k, v in content.items() if isinstance(v, Tensor)}
        if not state:
            names = sorted(map(str, content))[:_MAX_NAMES]
            raise ValueError(f"{self.source}: expected a state dict, found {names}")
        return step, state


def _number(value: Any) -> int | None:
    if isinstance(value, Tensor) and value.numel() == 1:
        value = value.item()
    return int(value) if isinstance(value, int | float) and value == int(value) else None


def find_checkpoints(checkpoints: Any) -> tuple[Iterator[Checkpoint], int | None]:
    """Return the checkpoints in order, and their number if it is known.

    Raises:
        TypeError: something else than what the table at the top of this file says.
        ValueError: a directory without checkpoints, a path that does not exist, a step twice.
    """
    items = checkpoints
    if isinstance(checkpoints, str | os.PathLike):
        root = Path(checkpoints)
        if not root.is_dir():
            raise ValueError(f"checkpoints: expected a directory or a list, found {str(root)!r}")
        paths = [p for p in root.iterdir() if p.is_dir() or p.suffix in SUFFIXES]
        items = sorted((p for p in paths if _file(p) is not None), key=_order)
        if not items:
            raise ValueError(f"checkpoints: no file {' '.join(SUFFIXES)} in {str(root)!r}")
    elif isinstance(checkpoints, Mapping):
        items = list(checkpoints.items())
    if not isinstance(items, Iterable):
        raise TypeError(f"checkpoints: expected a directory or a list, found {type(items)}")
    if not isinstance(items, list | tuple):
        return (_checkpoint(item, place) for place, item in enumerate(items)), None
    known = [_checkpoint(item, place) for place, item in enumerate(items)]
    sources: dict[int, str] = {}
    for one in known:
        if one.step is not None and sources.setdefault(one.step, one.source) != one.source:
            raise ValueError(
                f"checkpoints: step {one.step} twice, {sources[one.step]} and {one.source}; "
                "pass (step, path) pairs"
            )
    return iter(known), len(known)


def _checkpoint(item: Any, place: int) -> Checkpoint:
    """Make a checkpoint of one item of a list."""
    step: Any = None
    if isinstance(item, tuple | list) and len(item) == 2:
        step, item = item
        if isinstance(step, bool) or _number(step) is None or step < 0:
            raise TypeError(f"checkpoints: expected a step of at least 0, found {step!r}")
        step = int(step)
    if isinstance(item, Mapping):
        step = place if step is None else step
        return Checkpoint(step, place, f"step {step}", lambda: item)
    if not isinstance(item, str | os.PathLike):
        raise TypeError(
            f"checkpoints: expected paths, state dicts or (step, either), found {type(item)}"
        )
    path = Path(item)
    file = _file(path)
    if file is None:
        raise ValueError(f"checkpoints: no checkpoint at {str(path)!r}")
    return Checkpoint(_step(path) if step is None else step, place, str(path), partial(_read, file))


def _file(path: Path) -> Path | None:
    """Return the file to read: the path itself, or the model's file in the directory it is."""
    if path.is_dir():
        return next((path / name for name in MODEL_FILES if (path / name).is_file()), None)
    return path if path.is_file() else None


def _step(path: Path) -> int | None:
    name = path.name if path.is_dir() else path.stem
    numbers = _MARKED_STEP.findall(name) or re.findall(r"\d+", name)
    return int(numbers[-1]) if numbers else None


def _order(path: Path) -> tuple[bool, int, str]:
    step = _step(path)
    return step is None, step or 0, path.name


def _read(path: Path) -> Mapping[str, Any]:
    try:
        if path.suffix == ".safetensors":
            return load_file(path)
        with warnings.catch_warnings(action="ignore"):  # of old formats: it reads or it fails
            content = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # both libraries raise whatever a foreign file leads to
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise ValueError(f"{path}: cannot be read as a checkpoint: {reason}") from error
    if not isinstance(content, Mapping):
        raise ValueError(f"{path}: expected a state dict, found {type(content).__name__}")
    return content


def match(state: StateDict, model: nn.Module, source: str) -> dict[str, Tensor]:
    """Return the state dict under the model's own names, with none missing or left over.

    Raises:
        ValueError: names that are missing or unexpected, or shapes that differ: which ones.
    """
    wanted = {k: v for k, v in model.state_dict().items() if isinstance(v, Tensor)}
    stripped = dict(state)
    while set(stripped) != set(wanted):
        prefixes = {name.split(".", 1)[0] if "." in name else "" for name in stripped}
        if len(prefixes) != 1 or "" in prefixes:
            break
        stripped = {name.split(".", 1)[1]: tensor for name, tensor in stripped.items()}
    else:
        state = stripped
    differences = {
        "missing": [k for k in wanted if k not in state],
        "unexpected": [k for k in state if k not in wanted],
        "other shapes:": [
            f"{k} {tuple(state[k].shape)} for {tuple(v.shape)}"
            for k, v in wanted.items()
            if k in state and state[k].shape != v.shape
        ],
    }
    if listed := [f"{what} {_listed(names)}" for what, names in differences.items() if names]:
        raise ValueError(f"{source}: does not fit the model: {'; '.join(listed)}")
    return dict(state)


def _listed(names: list[str]) -> str:
    rest = len(names) - _MAX_NAMES
    return ", ".join(names[:_MAX_NAMES]) + (f" and {rest} more" if rest > 0 else "")
