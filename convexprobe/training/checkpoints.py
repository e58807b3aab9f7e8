"""Find checkpoints and tell their steps.

| `checkpoints` | what is taken |
|---|---|
| a directory | its files of tensors, and its subdirectories with a model inside, by step |
| a list of paths | those, in that order |
| an iterable of `(step, path)`, `(step, state dict)` or `(step, function)` | those, in that order |

A function takes nothing and returns a model or a state dict. It is called when its turn comes, so
that one model at a time is in memory: `(step, lambda: AutoModel.from_pretrained(name,
revision=f"step{step}"))`, in a function that makes it for each step, reads a hub's revisions.

In a directory, files that trainers write beside a model (optimiser, scheduler, random states,
tokenizer) are passed over. A directory of one model, such as `checkpoint-500`, is one checkpoint.

The step is the number after "step", "checkpoint", "iter" or the like in a name; if no name has such
a word, the number after "epoch"; if no name has that either, the number at its end, which all names
must have after the same words. A file that all trainers call the same (`model.safetensors`) has the
name of its directory. A name without a step leaves it to the file: its "step", "global_step" or
"iteration", or the trainer's state beside it. If those do not tell it either, see
`probe_checkpoints`.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from convexprobe.training import state_dicts
from convexprobe.training.adapters import is_adapter, merged
from convexprobe.training.matching import match
from convexprobe.training.state_dicts import INDICES, MODEL_FILES, SHARD, SUFFIXES, as_step

_PART = r"\.[0-9]|[km](?![a-z0-9])|e[0-9]"  # after digits that are a part of 1.5, 10k or 1e3
_AFTER_A_WORD = [
    (re.compile(word + "[-_= ]*([0-9]+)", re.IGNORECASE), re.compile(part, re.IGNORECASE))
    for word, part in [
        ("(?:step|checkpoint|ckpt|iteration|iter)", _PART + "|[_,][0-9]{3}(?![0-9])"),  # or 1_000
        ("epoch", _PART),
    ]
]
# not the second half of a decimal, which is a score; not a version (`-v1`), which says nothing
_AT_THE_END = re.compile(r"(|.*[^0-9.]|.*[^0-9]\.)([0-9]+)")
_VERSION = re.compile(r"[-_.]v[0-9]+$")


@dataclass(frozen=True)
class Checkpoint:
    """One checkpoint that has not been read.

    Attributes:
        source: what messages call it: its path, or its step.
        step: its step, None if its name does not tell.
        place: its place among the others, from 0, if that may stand for a step; None elsewhere.
        read: returns everything in it, or a model that has its weights.
        file: the file that is read, an index for shards; None for what is no file.
    """

    source: str
    step: int | None
    place: int | None
    read: Callable[[], Any]
    file: Path | None = None

    def stamp(self) -> str | None:
        """What tells a changed file without reading it; None where there is no such thing."""
        return None if self.file is None else state_dicts.stamp(self.file)

    @property
    def is_adapter(self) -> bool:
        """Whether it changes the weights of a base model, which `load` then has to find."""
        return self.file is not None and is_adapter(self.file)

    def load(self, model: nn.Module) -> tuple[int | None, list[str]]:
        """Load it into the model: every weight, none of another shape.

        Returns:
            Its step, None if nothing tells it; and the names of what it has beside the model.

        Raises:
            ValueError: unreadable, or not of this model; the message starts with the source. The
                model may have some of the weights.
        """
        try:
            step = self.step
            if self.file is not None and is_adapter(self.file):
                step = state_dicts.step_in({}, self.file) if step is None else step
                found = merged(model, self.file.parent)
            else:
                content = self.read()
                content = content.state_dict() if isinstance(content, nn.Module) else content
                if not isinstance(content, Mapping):
                    raise TypeError(
                        f"expected a model or a state dict, found {type(content).__name__}"
                    )
                step = state_dicts.step_in(content, self.file) if step is None else step
                found = match(state_dicts.state_in(content), model)
            model.load_state_dict(found.state)
            return step, found.left_out
        except Exception as error:  # whatever a damaged file, or a model of its own kind, raises
            reason = str(error).removeprefix(f"{self.source}: ")
            raise ValueError(f"{self.source}: {reason or type(error).__name__}") from error


def find_checkpoints(checkpoints: Any) -> list[Checkpoint] | Iterator[Checkpoint]:
    """Return the checkpoints in order, as an iterator if their number is not known.

    The items of an iterator that cannot be used are returned too; their `load` raises the error.

    Raises:
        TypeError: something else than what the table at the top of this file says.
        ValueError: no checkpoints, a path that does not exist, a step twice, numbers in names that
            need not be steps.
    """
    if isinstance(checkpoints, str | os.PathLike):
        return _in_directory(Path(checkpoints))
    items = list(checkpoints.items()) if isinstance(checkpoints, Mapping) else checkpoints
    if isinstance(items, bytes | Tensor | nn.Module) or not isinstance(items, Iterable):
        raise TypeError(f"checkpoints: expected a directory or a list, found {type(checkpoints)}")
    if not isinstance(items, list | tuple):
        return (_lazy(item, place) for place, item in enumerate(items))
    if not items:
        raise ValueError("checkpoints: expected at least one, found none")
    steps = iter(_steps([_name(Path(i)) for i in items if isinstance(i, str | os.PathLike)]))
    known = [
        _checkpoint(item, place, next(steps) if isinstance(item, str | os.PathLike) else None)
        for place, item in enumerate(items)
    ]
    if any(one.step is not None for one in known):
        known = [replace(one, place=None) for one in known]  # some have steps, so places are none
    _check_steps(known)
    return known


def _in_directory(root: Path) -> list[Checkpoint]:
    """The checkpoints in a directory by step, those whose names tell none at the end."""
    if not root.is_dir():
        raise ValueError(f"checkpoints: expected a directory or a list, found {str(root)!r}")
    files, folders = [], []
    for path in sorted(root.iterdir()):
        if path.is_dir():
            model = state_dicts.model_file(path)
            known = model is not None and model.name in (*MODEL_FILES, *INDICES)
            of_deepspeed = path.name.startswith("global_step") and (root / "latest").is_file()
            if known or (any(p.search(path.name) for p, _ in _AFTER_A_WORD) and not of_deepspeed):
                folders.append(path)
        elif state_dicts.suffix(path.name) and not state_dicts.is_companion(path):
            files.append(path)
    own = state_dicts.model_file(root)
    if own is not None and own.name in (*MODEL_FILES, *INDICES):  # without its shards and copies
        others = [f for f in files if f.name not in MODEL_FILES and not SHARD.search(f.name)]
        files = [own, *others]
    paths = [*files, *folders]
    if not paths:
        raise ValueError(f"checkpoints: no file {' '.join(SUFFIXES)} in {str(root)!r}")
    alone = len(paths) == 1 and any(p.search(_name(paths[0])) for p, _ in _AFTER_A_WORD)
    names = ["" if path == own and not alone else _name(path) for path in paths]
    every = [_checkpoint(p, None, step) for p, step in zip(paths, _steps(names), strict=True)]
    _check_steps(every)
    return sorted(every, key=lambda one: (one.step is None, one.step or 0))


def _lazy(item: Any, place: int) -> Checkpoint:
    """Make a checkpoint of one item of an iterator, which may still be refused."""
    try:
        step = None
        if isinstance(item, str | os.PathLike):
            (step,) = _steps([_name(Path(item))])
        return _checkpoint(item, place, step)
    except (TypeError, ValueError) as error:
        return Checkpoint(f"item {place}", None, None, partial(_raise, error))


def _raise(error: Exception) -> Mapping[str, Any]:
    raise error


def _checkpoint(item: Any, place: int | None, step: int | None) -> Checkpoint:
    """Make a checkpoint of one item, whose name says `step`."""
    if isinstance(item, tuple | list) and len(item) == 2:
        given, item = item
        if (step := as_step(given)) is None:
            raise ValueError(f"checkpoints: expected a step of at least 0, found {given!r}")
    if isinstance(item, Mapping):
        step = state_dicts.step_in(item) if step is None else step
        step = place if step is None else step
        return Checkpoint(f"step {step}", step, None, lambda: item)
    if step is not None and callable(item) and not isinstance(item, nn.Module):
        return Checkpoint(f"step {step}", step, None, item)
    if not isinstance(item, str | os.PathLike):
        raise TypeError(
            "checkpoints: expected paths, state dicts, (step, either) or (step, function), found "
            f"{type(item)}"
        )
    path = Path(item)
    if place is not None and not path.exists():
        raise ValueError(f"checkpoints: no checkpoint at {str(path)!r}")
    file = state_dicts.model_file(path) or path
    return Checkpoint(str(path), step, place, partial(state_dicts.read, file), file)


def _check_steps(known: list[Checkpoint]) -> None:
    first: dict[int, Checkpoint] = {}
    for one in known:
        if one.step is not None and first.setdefault(one.step, one) is not one:
            raise ValueError(
                f"checkpoints: step {one.step} twice, {first[one.step].source} and {one.source}; "
                "pass (step, path) pairs"
            )


def _name(path: Path) -> str:
    """What tells the step of a path: its name, or that of its directory if all have the same."""
    if path.name in (*MODEL_FILES, *INDICES):
        path = path.parent
    name = os.path.basename(os.path.abspath(path))
    return name if path.is_dir() else name.removesuffix(state_dicts.suffix(name))


def _steps(names: list[str]) -> list[int | None]:
    """The step that each name tells."""
    for pattern, part in _AFTER_A_WORD:
        numbers = [[*pattern.finditer(name)] for name in names]
        for name, found in zip(names, numbers, strict=True):
            if found and part.match(name, found[-1].end()):
                raise ValueError(
                    f"checkpoints: the number of {name!r} is not plain digits; pass (step, path) "
                    "pairs"
                )
        if any(numbers):
            return [as_step(int(found[-1][1])) if found else None for found in numbers]
    ends = [_AT_THE_END.fullmatch(_VERSION.sub("", name)) for name in names]
    before = {re.sub("[0-9]+", "#", end[1]): end[0] for end in ends if end}
    if len(before) > 1:
        first, second, *_ = before.values()
        raise ValueError(
            f"checkpoints: the numbers of {first!r} and {second!r} need not be steps; pass "
            "(step, path) pairs"
        )
    # Dates, or 1_500 and 2_000: the last number is not the one that grows.
    every = [[int(number) for number in re.findall("[0-9]+", end[0])] for end in ends if end]
    last = [numbers[-1] for numbers in sorted(every)]
    if last != sorted(last):
        raise ValueError(
            f"checkpoints: the last numbers of names like {next(e[0] for e in ends if e)!r} do not "
            "grow with those before them; pass (step, path) pairs"
        )
    return [as_step(int(end[2])) if end else None for end in ends]
