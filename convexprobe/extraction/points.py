"""Points of a network: which tensor is meant, of which call of which module."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from convexprobe.activations.manifest import FLOATS

Point = tuple[str, str, str | None, int]  # module, side, key, call


@dataclass(frozen=True)
class Request:
    """A point that was named, or one that a pattern or a predicate chose.

    Attributes:
        module: its dotted name; empty for the model itself.
        side: "input" or "output".
        key: of the item of a tuple or mapping, or of a head; None for the whole value.
        call: None means the only call of a named point, and every call of a chosen one.
        suffix: side and key as they were written.
        text: the point as it was written; empty for a predicate.
        named: whether the module was written in full.
        features: the first feature of a head's part, and the one after its last.
    """

    module: str
    side: str = "output"
    key: str | None = None
    call: int | None = None
    suffix: str = ""
    text: str = ""
    named: bool = False
    features: tuple[int, int] | None = None

    def identity(self) -> list[Any]:
        """What it reads and under which name, as JSON holds it."""
        name = self.text if self.named else self.suffix
        return [self.module, self.side, self.key, self.call, name]

    def wants(self, call: int) -> bool:
        """Whether to read this call. A named point without a call reads the first alone."""
        return call == self.call if self.call is not None else call == 0 or not self.named

    def point(self, call: int) -> Point:
        """The point of one call."""
        return self.module, self.side, self.key, call

    def name(self, call: int, calls: int) -> str:
        """The name among the results of one of `calls` calls."""
        if self.named:
            return self.text
        return f"{self.module}{f'#{call}' if calls > 1 else ''}{self.suffix}"

    def aliases(self, call: int) -> tuple[str, ...]:
        """Every name by which a mapping of pools may mean this point, the best one first."""
        module = self.module or "input"
        full = f"{module}#{call}{self.suffix}"
        return self.name(call, call + 1), full, f"{module}{self.suffix}", module

    def tensor(self, value: Any, rows: int, axis: int, where: str) -> Tensor:
        """The tensor at this point of a module whose input or output is `value`: a detached view.

        Its axis of so many rows is moved to the front.

        Raises, in messages that start with `where`:
            TypeError: it is not a dense tensor of floating-point numbers.
            ValueError: it has not so many rows; the value has no such item, or several items of
                which none is the activations of so many rows, and none was chosen.
        """
        items = {} if self.features else _items(value)
        if self.key is None and self.side == "output":  # one input of several has to be chosen
            value = next((x for x in items.values() if _is_activations(x, rows, axis)), value)
            items = _items(value)
        key = None if self.features else self.key
        if key is not None and key not in items:
            has = f"items {', '.join(f'[{key}]' for key in items)}" if items else described(value)
            raise ValueError(f"{where}: expected its {self.side} to have [{key}], found {has}")
        if key is not None:
            value = items[key]
        elif items:
            # with its side, which a glob needs in front of the brackets
            head = self.name(0, 1) + ("" if self.suffix or not self.module else f":{self.side}")
            choices = [f"{head}[{key}]" for key, item in items.items() if isinstance(item, Tensor)]
            raise ValueError(
                f"{where}: expected its {self.side} to be a tensor, found {described(value)}; "
                f"choose one of {', '.join(map(repr, choices))}"
            )
        if not isinstance(value, Tensor) or value.is_nested or value.layout != torch.strided:
            raise TypeError(f"{where}: expected a dense tensor, found {described(value)}")
        if str(value.dtype).removeprefix("torch.") not in FLOATS:
            raise TypeError(
                f"{where}: expected activations of {', '.join(FLOATS)}, found {value.dtype}"
            )
        if value.ndim <= axis or value.shape[axis] != rows:
            place = "" if axis == 0 else f" on axis {axis}"
            remedy = "" if rows not in value.shape else "; batch_axis= tells where the batch is"
            raise ValueError(
                f"{where}: expected activations of {rows} rows{place}, one per input, "
                f"found shape {tuple(value.shape)}{remedy}"
            )
        value = value.detach().movedim(axis, 0)
        return value if self.features is None else value[..., slice(*self.features)]


def _is_activations(value: Any, rows: int, axis: int) -> bool:
    """Whether a value is a dense tensor of floating-point numbers with a row per example."""
    plain = isinstance(value, Tensor) and not value.is_nested and value.layout == torch.strided
    return (
        plain
        and str(value.dtype).removeprefix("torch.") in FLOATS
        and value.ndim > axis
        and value.shape[axis] == rows
    )


def _items(value: Any) -> dict[str, Any]:
    if isinstance(value, tuple | list):
        value = dict(enumerate(value))
    return {str(key): item for key, item in value.items()} if isinstance(value, Mapping) else {}


def described(value: Any) -> str:
    """A value's kind and shape, for error messages."""
    if isinstance(value, Tensor) and value.is_nested:
        return "a nested tensor"  # which has no shape
    if isinstance(value, Tensor) and value.layout != torch.strided:
        return f"a {value.layout} tensor of shape {tuple(value.shape)}"
    if isinstance(value, Tensor):
        return f"a tensor of shape {tuple(value.shape)}"
    if isinstance(value, tuple | list | Mapping):
        kinds = ", ".join(f"[{key}] {type(item).__name__}" for key, item in _items(value).items())
        return f"a {type(value).__name__} of {kinds or 'nothing'}"
    return f"an object of type {type(value).__name__}"
