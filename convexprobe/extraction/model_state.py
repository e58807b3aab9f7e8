"""Keep a model as it was, whatever runs it and in however many threads."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from threading import Lock, RLock
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn

from convexprobe._hashing import digest
from convexprobe._random_state import random_states_kept

_LOCKS: WeakKeyDictionary[nn.Module, Any] = WeakKeyDictionary()
_GUARD = Lock()  # of the dictionary


@contextmanager
def locked(model: nn.Module) -> Iterator[None]:
    """Let one thread at a time use any module of the model; the same thread may enter again."""
    with _GUARD:
        locks = {id(m): _LOCKS.setdefault(m, RLock()) for m in model.modules()}
    with ExitStack() as stack:
        for key in sorted(locks):  # one order for all models, so that no two threads wait in turn
            stack.enter_context(locks[key])
        yield


@contextmanager
def as_it_was(model: nn.Module) -> Iterator[None]:
    """At the end, undo what running the model did to it and to the global random states.

    Attributes are restored too: a module that replaces a buffer, such as a cache of positions,
    usually notes its length in an attribute, and one without the other is broken. So are the
    dictionaries of parameters, in which offloaded weights come and go.
    """
    dicts = [
        (current, dict(current))
        for m in model.modules()
        for current in (vars(m), m._buffers, m._parameters, m._modules)
    ]
    buffers = [(buffer, buffer.detach().clone()) for buffer in model.buffers()]
    with random_states_kept():
        try:
            yield
        finally:
            for current, before in dicts:
                current.clear()  # an update alone would keep what was added, and another order
                current.update(before)
            with torch.no_grad():
                for buffer, copy in buffers:
                    if not _equal(buffer, copy):
                        buffer.copy_(copy)


def _equal(a: Tensor, b: Tensor) -> bool:
    if a.layout == torch.strided and not (a.is_nested or a.is_meta):
        return torch.equal(a, b)
    try:  # sparse and nested tensors cannot be compared
        return digest({"": a}) == digest({"": b})
    except ValueError:  # without values
        return True
