"""Read the files of one checkpoint into a state dict.

A checkpoint is a file, or a directory with the files that a trainer writes for one model. Shards
(`model-00001-of-00002.safetensors`) are read by the index beside them, which names the shard of
every tensor. A file may hold the state dict under a key of `NESTED`, or as the only state dict
among its values. No pickled code is run: torch files are read with `weights_only=True`.
"""

from __future__ import annotations

import re
import warnings
from collections.abc import Mapping
from contextlib import suppress
from numbers import Real
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor

from convexprobe._files import open_regular, read_json
from convexprobe.training.adapters import ADAPTER_FILES
from convexprobe.training.matching import listed

SUFFIXES = (".pt", ".pth", ".ckpt", ".bin", ".safetensors", ".pth.tar", ".pt.tar")
MODEL_FILES = ("model.safetensors", "pytorch_model.bin", *ADAPTER_FILES)
INDEX = ".index.json"
INDICES = tuple(name + INDEX for name in MODEL_FILES if name not in ADAPTER_FILES)
NESTED = ("state_dict", "model_state_dict", "model", "module", "net", "weights", "params")
SHARD = re.compile(r"-\d{5}-of-\d{5}\.(safetensors|bin)")
STEP_KEYS = ("step", "global_step", "iteration")

_COMPANION = re.compile(
    r"(^|[-_.])(optimizers?|optim|schedulers?|scaler|rng_state|random_states|training_args|"
    r"trainer_state|sampler|dl_state_dict|tokenizer)(?![a-z])",
    re.IGNORECASE,
)
_MAX_STEP = 2**63


def suffix(name: str) -> str:
    """The suffix of a file of tensors, the longest that fits; empty for any other file."""
    return max((s for s in SUFFIXES if name.endswith(s) and name != s), key=len, default="")


def is_companion(path: Path) -> bool:
    """Whether a file is one that trainers write beside the model: optimiser, scheduler and such."""
    return _COMPANION.search(path.name) is not None


def model_file(path: Path) -> Path | None:
    """The file to read for a checkpoint: itself; in a directory the model's, or the only one."""
    if not path.is_dir():
        return path
    if known := [path / name for name in (*MODEL_FILES, *INDICES) if (path / name).is_file()]:
        return known[0]
    inside = list(path.iterdir())
    others = [p for p in inside if suffix(p.name) and not is_companion(p)]
    if indices := [p for p in inside if p.name.endswith(INDEX) and suffix(p.name[: -len(INDEX)])]:
        others = [p for p in others if not SHARD.search(p.name)] + indices
    return others[0] if len(others) == 1 and not SHARD.search(others[0].name) else None


def files(path: Path) -> list[Path]:
    """Every file that `read` reads for this one: an index and its shards, or the file alone.

    Raises:
        ValueError: an index that is damaged, or names files outside its directory.
        OSError: an index that cannot be read.
    """
    return [path, *sorted(set(_shards(path).values()))] if path.name.endswith(INDEX) else [path]


def stamp(path: Path) -> str | None:
    """Size and modification time of the files, which tell without reading whether they changed."""
    try:
        found = [file.stat() for file in files(path)]
    except (OSError, ValueError):
        return None
    return " ".join(f"{status.st_size}:{status.st_mtime_ns}" for status in found)


def read(path: Path, *, shard: bool = False) -> Mapping[str, Any]:
    """Everything in the files of a checkpoint; of a `shard`, in that file alone.

    Raises:
        ValueError: they cannot be read, or hold something else; the message starts with the path.
    """
    try:
        if path.name.endswith(INDEX):
            return _read_shards(path)
        if path.is_dir():
            raise ValueError(f"expected one of {', '.join((*MODEL_FILES, *INDICES))} in it")
        if SHARD.search(path.name) and not shard:
            raise ValueError("one shard of several; expected the index beside it")
        with open_regular(path):  # a pipe would block
            pass
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


def _shards(index: Path) -> dict[str, Path]:
    """The file of every tensor that an index names."""
    names = read_json(index).get("weight_map")
    if not isinstance(names, dict) or not names:
        raise ValueError(f"expected a weight_map in {index.name}, found none")
    for name in names.values():
        if not isinstance(name, str) or Path(name).name != name or not suffix(name):
            raise ValueError(f"{index.name} names the file {name!r}, which is no shard beside it")
    return {tensor: index.parent / name for tensor, name in names.items()}


def _read_shards(index: Path) -> dict[str, Any]:
    shards = _shards(index)
    state: dict[str, Any] = {}
    if gone := sorted({file.name for file in shards.values() if not file.exists()}):
        raise ValueError(f"the shard {listed(gone)} is missing; copy it beside {index.name}")
    for file in sorted(set(shards.values())):
        content = read(file, shard=True)
        wanted = [tensor for tensor, place in shards.items() if place == file]
        if missing := [tensor for tensor in wanted if tensor not in content]:
            raise ValueError(f"expected {listed(missing)} in {file.name}, found none")
        state |= {tensor: content[tensor] for tensor in wanted}
    return state


def step_in(content: Mapping[str, Any], file: Path | None = None) -> int | None:
    """The step that a checkpoint tells: in its content, or in the trainer's state beside the file.

    What is no step, such as a negative or an infinite number, tells none.
    """
    nested = any(isinstance(content.get(key), Mapping) for key in NESTED)
    values = [content.get(key) for key in STEP_KEYS]
    values = [v for v in values if nested or not isinstance(v, Tensor)]  # it may be a buffer
    if file is not None and file.name in (*MODEL_FILES, *INDICES):
        with suppress(OSError, ValueError):
            values.append(read_json(file.with_name("trainer_state.json")).get("global_step"))
    return next((step for value in values if (step := as_step(value)) is not None), None)


def as_step(value: Any) -> int | None:
    """A number as a step; None for anything but a whole number from 0 up to 2^63."""
    if isinstance(value, Tensor):
        plain = not (value.is_nested or value.is_meta or value.is_complex()) and value.numel() == 1
        value = value.item() if plain else None
    if isinstance(value, bool) or not isinstance(value, Real):
        return None
    number: Any = value
    return int(number) if 0 <= number < _MAX_STEP and number == int(number) else None


def state_in(content: Mapping[str, Any]) -> dict[str, Tensor]:
    """The state dict in the content of a checkpoint, whose names need not be the model's yet.

    Raises:
        ValueError: there is none.
    """
    inner = [content[key] for key in NESTED if isinstance(content.get(key), Mapping)]
    content = inner[0] if inner else content
    state = {name: value for name, value in content.items() if isinstance(value, Tensor)}
    if not state:  # under a name that a project of its own has chosen
        dicts = {name: value for name, value in content.items() if _has_tensors(value)}
        if len(dicts) == 1:
            return state_in(*dicts.values())
        if dicts:
            raise ValueError(
                f"expected one state dict, found several: {listed(sorted(map(str, dicts)))}; pass "
                "(step, function), whose function returns one"
            )
        raise ValueError(f"expected a state dict, found {listed(sorted(map(str, content)))}")
    if odd := [name for name in state if not isinstance(name, str)]:
        raise ValueError(f"expected names of tensors that are strings, found {odd[0]!r}")
    return state


def _has_tensors(value: Any) -> bool:
    return isinstance(value, Mapping) and any(isinstance(inner, Tensor) for inner in value.values())
