"""The repeated blocks of a network, and the attention and the MLP inside a block, by structure.

A *list* is a `ModuleList` or a `Sequential`. Its *blocks* are children of one class that follow
each other, at least two of them or all of the list. The outermost lists count; where every block
itself holds such a list, they are stages (Swin, ConvNeXt), and the modules of those lists are the
blocks. Of several lists

1. those of modules that have children go before those of leaves;
2. those with attention in their blocks are taken, all of them: encoder and decoder, text and image;
3. without attention, those of the class of which there are most.

*Attention* is a module whose class is called so ("Attention", "Attn"), the outermost and the first
of a block, which is its self-attention. What it writes is the output of its output projection, the
last of its linear maps that gives as many features as the first one takes, before the residual sum;
each head has a slice of that map's input. The *MLP* is a module whose class is called so ("MLP",
"FeedForward", "FFN", "MoE"); without one, the last linear map of the block outside its attention.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass

from torch import nn

_ATTENTION = re.compile("attention|attn", re.IGNORECASE)
_MLP = re.compile("mlp|feed_?forward|ffn|moe", re.IGNORECASE)
# what libraries call the number of heads, of an attention module or in its configuration
_HEADS = ("num_heads", "num_attention_heads", "n_heads", "n_head", "nhead", "heads")


@dataclass(frozen=True)
class _Run:
    """Modules of one class that follow each other in a list."""

    names: tuple[str, ...]
    modules: tuple[nn.Module, ...]

    @property
    def with_children(self) -> bool:
        return any(True for _ in self.modules[0].children())

    @property
    def with_attention(self) -> bool:
        return any(_is_called(_ATTENTION, inner) for inner in self.modules[0].modules())


def block_names(model: nn.Module) -> list[str]:
    """The names of the repeated blocks, in the order of the model's definition.

    Raises:
        ValueError: the model has none.
    """
    runs = [run for run in _runs("", model) if len(run.names) > 1 or run.with_children]
    runs = [run for run in runs if run.with_children] or runs
    if any(run.with_attention for run in runs):
        runs = [run for run in runs if run.with_attention]
    else:
        counts = Counter[type]()
        for run in runs:
            counts[type(run.modules[0])] += len(run.names)
        most = [kind for kind, count in counts.most_common(1) if count > 1]
        runs = [run for run in runs if type(run.modules[0]) in most]
    if not runs:
        raise ValueError(
            "layers: expected a model with blocks, a ModuleList or Sequential of modules of one "
            f"class, found none in {type(model).__name__}; choose layers by name, glob or predicate"
        )
    return [name for run in runs for name in run.names]


def attention_output(block: nn.Module) -> str | None:
    """The name, inside a block, of the module whose output is that of its self-attention.

    That is the output projection or, where there is none that runs, the attention itself; None if
    the block has no attention.
    """
    name = _outermost(_ATTENTION, block)
    projection = None if name is None else _projection(block.get_submodule(name))
    return f"{name}.{projection}" if projection else name


def _projection(attention: nn.Module) -> str | None:
    """The name of the output projection inside an attention module; None if none runs."""
    if isinstance(attention, nn.MultiheadAttention):
        return None  # it reads the weights of its projection and does not call it
    maps = {name: _width(attention.get_submodule(name)) for name in _linear_maps(attention)}
    taken = next((width[0] for width in maps.values() if width), None)
    # not, say, the last layer of a perceptron that makes a bias of positions
    return next((n for n, width in reversed(maps.items()) if width and width[1] == taken), None)


def mlp_output(block: nn.Module) -> str | None:
    """The name, inside a block, of the module whose output is that of its MLP, if it has one."""
    name = _outermost(_MLP, block)
    return (
        next(reversed([*_linear_maps(block, outside=_ATTENTION)]), None) if name is None else name
    )


def head_slices(model: nn.Module, name: str) -> tuple[str, list[tuple[int, int]]]:
    """The output projection of an attention module, and the slice of its input that is each head's.

    Args:
        model: the network.
        name: the attention module, one around it, or its projection.

    Returns:
        The projection's name, and the first feature of each head with the one after its last.

    Raises:
        ValueError: there is no projection, or its heads cannot be counted.
    """
    module = model.get_submodule(name)
    inner = _projection(module) if _is_called(_ATTENTION, module) else attention_output(module)
    path = f"{name}.{inner}" if inner else name
    width = (_width(model.get_submodule(path)) or (None,))[0]
    if width is None:
        raise ValueError(
            f"layer {name!r}: expected attention with an output projection that runs, of whose "
            f"input a head is a part, found {type(module).__name__}; choose its whole output"
        )
    parents = path.split(".")
    around = [model.get_submodule(".".join(parents[:i])) for i in range(len(parents) - 1, -1, -1)]
    heads = next((h for m in (*module.modules(), *around) if (h := _heads(m))), None)
    if heads is None or width % heads:
        raise ValueError(
            f"layer {name!r}: expected attention that tells its number of heads, such as num_heads "
            f"dividing {width}, found {heads}; choose its whole output"
        )
    size = width // heads
    return path, [(start, start + size) for start in range(0, width, size)]


def is_list(module: nn.Module) -> bool:
    """Whether a module only holds others, one after another."""
    if isinstance(module, nn.ModuleList) or type(module) is nn.Sequential:
        return True
    # other subclasses of Sequential are modules of their own, such as a convolution with its norm
    kinds = {type(child) for child in module.children()}
    plain = isinstance(module, nn.Sequential) and type(module).forward is nn.Sequential.forward
    composite = any(True for child in module.children() for _ in child.children())
    return plain and len(kinds) == 1 and composite


def _runs(name: str, module: nn.Module) -> Iterator[_Run]:
    """The outermost runs of blocks inside a module; those of a stage instead of the stage."""
    children = [(f"{name}.{n}" if name else n, child) for n, child in module.named_children()]
    if not is_list(module):
        for place, child in children:
            yield from _runs(place, child)
        return
    start = 0
    while start < len(children):
        kind = type(children[start][1])
        stop = start + 1
        while stop < len(children) and type(children[stop][1]) is kind:
            stop += 1
        part, start = children[start:stop], stop
        if is_list(part[0][1]) or (len(part) == 1 and len(children) > 1):
            for place, child in part:
                yield from _runs(place, child)
            continue
        outer = _Run(*map(tuple, zip(*part, strict=True)))
        stages = [[*_runs_of_stage(place, child)] for place, child in part]
        inner = [run for runs in stages for run in runs]
        fits = not outer.with_attention or all(run.with_attention for run in inner)
        yield from inner if all(stages) and fits else [outer]


def _runs_of_stage(name: str, module: nn.Module) -> Iterator[_Run]:
    """The runs of the lists that a module holds itself, if it is a stage."""
    for place, child in module.named_children():
        modules = [*child.children()] if is_list(child) else []
        if modules and len({*map(type, modules)}) == 1 and not is_list(modules[0]):
            run = _Run(tuple(f"{name}.{place}.{n}" for n, _ in child.named_children()),
                       tuple(modules))  # fmt: skip
            if run.with_children:
                yield run


def _is_called(words: re.Pattern[str], module: nn.Module) -> bool:
    return words.search(type(module).__name__) is not None


def _outermost(words: re.Pattern[str], block: nn.Module) -> str | None:
    """The first module inside a block whose class is called so, but not of those inside it."""
    for name, module in block.named_modules():
        if name and _is_called(words, module) and (_has_weights(module)):
            return name
    return None


def _has_weights(module: nn.Module) -> bool:
    return next(module.parameters(), None) is not None


def _linear_maps(
    module: nn.Module, outside: re.Pattern[str] | None = None, name: str = ""
) -> Iterator[str]:
    """The names of the linear maps inside a module, in the order of its definition."""
    if _width(module) is not None:
        yield name
        return
    for inner, child in module.named_children():
        if outside is None or not _is_called(outside, child):
            yield from _linear_maps(child, outside, f"{name}.{inner}" if name else inner)


def _width(module: nn.Module) -> tuple[int, int] | None:
    """The number of input and output features of a linear map; None if the module is none.

    Adapters and quantized layers tell theirs as `nn.Linear` does, and are one map with all inside.
    """
    for names in (("in_features", "out_features"), ("nx", "nf")):  # the Conv1D of transformers
        wide, high = (getattr(module, name, None) for name in names)
        if isinstance(wide, int) and isinstance(high, int):
            return wide, high
    return None


def _heads(module: nn.Module) -> int | None:
    for owner in (module, getattr(module, "config", None)):
        for name in _HEADS:
            if isinstance(heads := getattr(owner, name, None), int) and heads > 0:
                return heads
    return None
