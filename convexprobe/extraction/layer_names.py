"""The names of layers: how points of a network are written, and which modules they mean.

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
from collections.abc import Callable, Iterable, Sequence
from fnmatch import translate
from functools import cache

import torch
from torch import nn

from convexprobe.extraction.blocks import is_list
from convexprobe.extraction.points import Request, described
from convexprobe.extraction.structure import HEAD, WORDS, head_requests, word_requests

LayerChoice = str | Sequence[str] | Callable[[str, nn.Module], bool]

# module, call, all that follows, side, key; the module takes whatever the rest does not
_GRAMMAR = re.compile(r"(.*?)(?:#(\d+))?((?::(input|output))?(?:\[([^]]+)\])?)", re.DOTALL)


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
    word = WORDS.fullmatch(module)
    if word is not None and (side is None or module == "blocks"):
        meant = [m for name, m in modules.items() if matches(name, module)]
        # a list of blocks is never called, or its output is that of its last block
        if not meant or (side is None and all(map(is_list, meant))):
            number = None if call is None else int(call)
            return word_requests(model, text, word, number, suffix, side or "output", key)
    if text in modules:  # before globs, because a name may contain the signs of the grammar
        return [Request(text, text=text, named=True)]
    named = module in modules
    if module == "input" and not named and call is None and side is None:
        return [Request("", "input", key, text=text, named=True)]
    head = None if key is None else HEAD.fullmatch(key)
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
        heads = (head_requests(model, name, head[1], number, text, named) for name in names)
        return [request for each in heads for request in each]
    return [Request(name, side or "output", key, number, suffix, text, named) for name in names]


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
