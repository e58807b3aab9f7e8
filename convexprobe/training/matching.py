"""Match the names of a state dict to a model's.

Training wraps models, and files hold more or less than the model that is probed:

| difference | what is done |
|---|---|
| names of wrappers (`WRAPPERS`) anywhere | they are passed over, in the file and in the model |
| a prefix ("bert.", "model.") that only one of them has | it is taken off, or put on |
| weights that the model ties, of which the file has one | the others are the same |
| modules beside the model's own, such as a head; old buffers | they are left out, and told |

Whatever else differs is an error: the network would not be the one that was trained.
"""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from collections.abc import Collection, Iterator
from typing import NamedTuple

import torch
from torch import Tensor, nn

from convexprobe._hashing import StateDict

WRAPPERS = {"module", "_orig_mod", "_fsdp_wrapped_module", "_checkpoint_wrapped_module"}
"""What DataParallel, `torch.compile`, FSDP and activation checkpointing put into names."""

# what models of older versions saved and computed again: positions, causal masks, frequencies
_OLD_BUFFER = re.compile(
    r"(position_ids|masked_bias|attn_mask|inv_freq|num_batches_tracked|relative_position_index)$"
)
_MAX_NAMES = 4  # that a message lists


class Matched(NamedTuple):
    """A state dict under the model's own names, complete, and the names that were left out."""

    state: dict[str, Tensor]
    left_out: list[str]


def match(state: StateDict, model: nn.Module) -> Matched:
    """The state dict under the model's own names, with none missing.

    Raises:
        ValueError: names that are missing, or that tell of another network; tensors of another
            shape or kind; tied weights with two values; or several parts that fit equally well.
    """
    wanted = {k: v for k, v in model.state_dict().items() if isinstance(v, Tensor)}
    own, given = _short(wanted), _short(state)
    off, on = _prefixes(given, own)
    under = f"{off}." if off else ""
    inside = {name.removeprefix(under): full for name, full in given.items() if _in(name, under)}
    beside = [full for name, full in given.items() if not _in(name, under)]
    start = f"{on}." if on else ""
    found = {own[start + name]: state[full] for name, full in inside.items() if start + name in own}
    more = {name: full for name, full in inside.items() if start + name not in own}
    modules = {name[len(start) :].split(".")[0] for name in own if _in(name, start)}
    foreign = [f for n, f in more.items() if not _is_harmless(n, state[f], modules)]
    twice = _fill_ties(found, wanted, model)
    kinds = {k: (_kind(v), _kind(wanted[k])) for k, v in found.items()}
    differences = {
        "missing": [k for k in wanted if k not in found],
        "unexpected": foreign,
        "other kinds of tensors:": [f"{k} {a} for {b}" for k, (a, b) in kinds.items() if a != b],
        "other shapes:": [
            f"{k} {tuple(found[k].shape)} for {tuple(wanted[k].shape)}"
            for k, (a, b) in kinds.items()
            if a == b and found[k].shape != wanted[k].shape
        ],
        "two values of the tied weights": twice,
    }
    if said := [f"{what} {listed(names)}" for what, names in differences.items() if names]:
        if differences["missing"] and (beside or more) and not foreign:
            said.append(f"found beside the model's {listed([*beside, *more.values()])}")
        raise ValueError(f"does not fit the model: {'; '.join(said)}")
    return Matched(found, [*beside, *more.values()])


def listed(names: list[str]) -> str:
    """The first names, and how many more there are."""
    rest = len(names) - _MAX_NAMES
    return ", ".join(names[:_MAX_NAMES]) + (f" and {rest} more" if rest > 0 else "")


def _short(names: Collection[str]) -> dict[str, str]:
    """The names by what they are without wrappers, unless two would be one."""
    short = {".".join(p for p in name.split(".") if p not in WRAPPERS): name for name in names}
    return short if len(short) == len(names) else {name: name for name in names}


def _in(name: str, start: str) -> bool:
    return name.startswith(start) and len(name) > len(start)


def _prefixes(given: Collection[str], own: Collection[str]) -> tuple[str, str]:
    """The prefix to take off the given names, or to put on, that fits most names to the model's."""
    fits: Counter[tuple[str, str]] = Counter()
    fits["", ""] = len(set(given) & set(own))
    if fits["", ""] < len(own):
        fits.update((off, "") for name in given for off, rest in _cuts(name) if rest in own)
        names = set(given)
        fits.update(("", on) for name in own for on, rest in _cuts(name) if rest in names)
    best, most = max(fits.items(), key=lambda item: (item[1], item[0] == ("", "")))
    if fits["", ""] == most:
        return "", ""
    # only parts that fit the whole model are doubtful: of others one is as wrong as the other
    equal = [off or on for (off, on), count in fits.items() if count == most == len(own)]
    if len(equal) > 1:
        raise ValueError(
            f"does not fit the model in one way: the parts {listed(equal)} all do; pass "
            "(step, function), whose function returns the state dict of one"
        )
    return best


def _cuts(name: str) -> Iterator[tuple[str, str]]:
    """Every way to cut a name at a dot."""
    at = name.find(".")
    while at >= 0:
        yield name[:at], name[at + 1 :]
        at = name.find(".", at + 1)


def _is_harmless(name: str, tensor: Tensor, modules: set[str]) -> bool:
    """Whether a tensor that the model lacks says nothing of what the model computes.

    It is a buffer that older versions saved, or of a module beside the model's outermost ones; not
    one more block of a list, nor a part of a module that the model has without it.
    """
    first = name.split(".")[0]
    old = _OLD_BUFFER.search(name) or not (tensor.is_floating_point() or tensor.is_complex())
    return bool(old) or (first not in modules and not first.isdigit())


def _fill_ties(found: dict[str, Tensor], wanted: StateDict, model: nn.Module) -> list[str]:
    """Give weights that are one in the model one value; name those that have two."""
    same: dict[int, list[str]] = defaultdict(list)
    named = (
        *model.named_parameters(remove_duplicate=False),
        *model.named_buffers(remove_duplicate=False),
    )
    for name, tensor in named:
        if name in wanted:
            same[id(tensor)].append(name)
    twice = []
    for names in same.values():
        known = [name for name in names if name in found]
        if not known or len(names) == 1:
            continue
        first = found[known[0]]
        found.update({name: first for name in names if name not in found})
        twice += [f"{known[0]} and {name}" for name in known[1:] if _differ(first, found[name])]
    return twice


def _differ(a: Tensor, b: Tensor) -> bool:
    if a is b or _kind(a) != _kind(b) or a.shape != b.shape or a.is_meta:
        return False  # the last ones are told anyway
    return not torch.equal(a, b)


def _kind(tensor: Tensor) -> str:
    """Layout and numbers of a tensor: where these differ, a copy would fail or lose something."""
    if tensor.is_nested:
        return "nested"
    if tensor.is_meta:
        return "without values (on the meta device)"
    if tensor.is_quantized:
        return "quantised"
    number = "complex" if tensor.is_complex() else "real" if tensor.is_floating_point() else "whole"
    layout = str(tensor.layout).removeprefix("torch.").removeprefix("_")
    return f"{number}{'' if layout == 'strided' else f', {layout}'}"
