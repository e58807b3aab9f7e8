"""Points of a network: how they are written, which modules and which tensors they mean.

A point is written `module[#call][:input|:output][[key]]`:

| point | meaning |
|---|---|
| `fc1`, `fc1:output` | the output of the module `fc1`; of a tuple or a mapping its one tensor of
  activations: the first of floating-point numbers that has a row per example |
| `fc1:input` | its first positional input, or all its keyword inputs if it has no positional one |
| `relu#1` | the second call, in one forward pass, of a module that runs several times |
| `lstm:output[0]` | one item of a value that is a tuple or a mapping |
| `input` | the input of the model itself, unless a module has that name |

| `blocks`, `attention`, `mlp` | of every block its output, or that of its attention or MLP |
| `blocks.3`, `blocks.3.mlp`, `blocks.*.mlp` | the same of block 3, and of all |
| `blocks.3.attention[head 2]` | the part of a head: the slice that head 2 writes of the input of
  the attention's output projection; `[head *]` are all; any module with attention may precede it |

`extraction.blocks` says which modules those are. Modules that are called so go before these words,
but a list that is called `blocks` means the blocks. Points that one word chooses are named as the
modules are.

The module may be a glob, matched against every module that defines `forward`: `*` stands for any
characters but a dot, `**` for any characters, `?` for one that is no dot, and brackets for one of a
set, unless they follow `:input` or `:output`. A module that a glob matches is read at every call,
as `name#0`, `name#1`... if there are several.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from fnmatch import translate
from functools import cache
from typing import Any

import torch
from torch import Tensor, nn

from convexprobe.activations.manifest import FLOATS
from convexprobe.extraction.blocks import (
    attention_output,
    block_names,
    head_slices,
    is_list,
    mlp_output,
)

LayerChoice = str | Sequence[str] | Callable[[str, nn.Module], bool]
Point = tuple[str, str, str | None, int]  # module, side, key, call

# module, call, all that follows, side, key; the module takes whatever the rest does not
_GRAMMAR = re.compile(r"(.*?)(?:#(\d+))?((?::(input|output))?(?:\[([^]]+)\])?)", re.DOTALL)

_WORDS = re.compile(r"blocks(?:\.(?P<number>\d+|\*)(?:\.(?P<part>attention|mlp))?)?"
                    r"|(?P<all>attention|mlp)")  # fmt: skip
_HEAD = re.compile(r"head (\d+|\*)")


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


def choose_layers(model: nn.Module, layers: LayerChoice | None) -> list[Request]:
    """The points chosen by names and globs or by a predicate; None chooses every leaf.

    Raises:
        TypeError: neither names nor a predicate, or a model that may not run hooks.
        ValueError: a name that no module has, a glob that matches none, nothing chosen at all, or
            a model with lazy parameters.
    """
    check_model(model)
    modules = dict(model.named_modules(remove_duplicate=False))
    modules.pop("")
    if layers is None or callable(layers):
        requests = [Request(name) for name in _matching(modules, layers or _is_leaf)]
    elif isinstance(layers, Iterable):
        texts = [layers] if isinstance(layers, str) else layers
        requests = [request for text in texts for request in _parse(model, modules, text)]
    else:
        raise TypeError(f"layers: expected names or a predicate, found {described(layers)}")
    if not requests:
        raise ValueError("layers: expected at least one submodule to be chosen, found none")
    return list(dict.fromkeys(requests))


def check_model(model: nn.Module) -> None:
    """Raise TypeError if the model may not run hooks, ValueError if it has lazy parameters."""
    if not isinstance(model, nn.Module):
        raise TypeError(f"model must be a torch.nn.Module, found {type(model).__name__}")
    copies = (nn.DataParallel, nn.parallel.DistributedDataParallel, torch.jit.ScriptModule)
    for name, module in model.named_modules():
        where = f"model, submodule {name!r}" if name else "model"
        # compiled modules are told by name: importing torch._dynamo takes seconds
        kind = type(module).__name__
        wrapped = isinstance(module, copies) or kind == "OptimizedModule"
        if wrapped or module._compiled_call_impl is not None:
            raise TypeError(
                f"{where}: expected plain modules, found a wrapped or compiled one ({kind}), which "
                "may not run hooks; pass the original, such as model.module or model._orig_mod"
            )
        if any(nn.parameter.is_lazy(tensor) for tensor in module._parameters.values()):
            raise ValueError(f"{where}: lazy, its shape is not known yet; run one batch through it")


def _parse(model: nn.Module, modules: dict[str, nn.Module], text: str) -> list[Request]:
    """The requests of one name, word or glob."""
    if not isinstance(text, str):
        raise TypeError(f"layers: expected names, found {text!r}")
    match = _GRAMMAR.fullmatch(text)
    assert match is not None
    module, call, suffix, side, key = match.groups()
    word = _WORDS.fullmatch(module)
    if word is not None and (side is None or module == "blocks"):
        meant = [m for name, m in modules.items() if matches(name, module)]
        # a list of blocks is never called, or its output is that of its last block
        if not meant or (side is None and all(map(is_list, meant))):
            number = None if call is None else int(call)
            return _parse_word(model, text, word, number, suffix, side or "output", key)
    if text in modules:  # before globs, because a name may contain the signs of the grammar
        return [Request(text, text=text, named=True)]
    named = module in modules
    if module == "input" and not named and call is None and side is None:
        return [Request("", "input", key, text=text, named=True)]
    head = None if key is None else _HEAD.fullmatch(key)
    if (
        not named and side is None and key is not None and head is None
    ):  # a set of characters of the glob
        module, call, suffix, key = text, None, "", None
    names = [module] if named else _matching(modules, lambda name, _: matches(name, module))
    if not names:
        near = difflib.get_close_matches(module, modules, n=3, cutoff=0.0)
        raise ValueError(
            f"layer {text!r}: expected the name of a module, or a pattern that matches one, found "
            f"none; the nearest are {', '.join(map(repr, near)) or 'none: no submodules'}"
        )
    number = None if call is None else int(call)
    if head is not None and side != "output":
        return [r for name in names for r in _heads(model, name, head[1], number, text, named)]
    return [Request(name, side or "output", key, number, suffix, text, named) for name in names]


def _parse_word(
    model: nn.Module,
    text: str,
    word: re.Match[str],
    call: int | None,
    suffix: str,
    side: str,
    key: str | None,
) -> list[Request]:
    """The requests of `blocks`, `attention` or `mlp`, or of one of the blocks.

    Raises:
        ValueError: no blocks, no such block, or no such part of a block.
    """
    number, part = word["number"], word["part"] or word["all"]
    blocks = block_names(model)
    if number not in (None, "*"):
        if int(number) >= len(blocks):
            raise ValueError(
                f"layer {text!r}: expected a block from 0 to {len(blocks) - 1}, found {number}"
            )
        blocks = [blocks[int(number)]]
    named = number not in (None, "*")
    requests: list[Request] = []
    for name in blocks:
        inner: str | None = ""
        if part is not None:
            find = attention_output if part == "attention" else mlp_output
            inner = find(model.get_submodule(name))
        if inner is None:
            continue
        place = f"{name}.{inner}" if inner else name
        head = None if key is None or part != "attention" else _HEAD.fullmatch(key)
        if head is not None:
            requests += _heads(model, place, head[1], call, text, named)
        else:
            requests.append(Request(place, side, key, call, suffix, text, named))
    if not requests:
        kind = type(model.get_submodule(blocks[0])).__name__
        raise ValueError(
            f"layer {text!r}: expected blocks with {part}, found none in {blocks[0]!r} ({kind}); "
            "choose modules by name or glob"
        )
    return requests


def _heads(
    model: nn.Module, name: str, number: str, call: int | None, text: str, named: bool
) -> list[Request]:
    """The requests of one head of an attention module, or with `*` of all."""
    place, slices = head_slices(model, name)
    if number != "*" and int(number) >= len(slices):
        raise ValueError(
            f"layer {text!r}: expected a head from 0 to {len(slices) - 1}, found {number}"
        )
    chosen = range(len(slices)) if number == "*" else [int(number)]
    return [
        Request(place, "input", f"head {i}", call, f":input[head {i}]", text,
                named and number != "*", slices[i])
        for i in chosen
    ]  # fmt: skip


def matches(name: str, glob: str) -> bool:
    """Whether a dotted name fits a glob, in which `*` stays within a dot and `**` crosses dots."""
    return _pattern(glob).fullmatch(name) is not None


@cache
def _pattern(glob: str) -> re.Pattern[str]:
    parts = re.split(r"(\*\*+|\*|\?|\[!?\]?[^]]*\])", glob)
    known = {"*": "[^.]*", "?": "[^.]"}

    def regex(part: str) -> str:
        if part.startswith("**"):
            return ".*"
        text = translate(part)  # of a set of characters, or of what stands for itself
        return known.get(part) or text[text.index(":") + 1 : text.rindex(")")]

    return re.compile("".join(map(regex, filter(None, parts))), re.DOTALL)


def _matching(modules: dict[str, nn.Module], choose: Callable[[str, nn.Module], bool]) -> list[str]:
    """Names of the modules chosen of those that define `forward`; one name for each module."""
    names: dict[nn.Module, str] = {}
    for name, module in modules.items():
        # containers such as ModuleList are never called, so a pattern cannot mean them
        runs = type(module).forward is not nn.Module.forward or "forward" in vars(module)
        if runs and choose(name, module):
            names.setdefault(module, name)
    return list(names.values())


def _is_leaf(name: str, module: nn.Module) -> bool:
    # a weight that is parametrized (weight norm, ...) does not make a layer a container
    children = dict(module.named_children()).keys() - {"parametrizations"}
    return not children and "parametrizations" not in name.split(".")


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
