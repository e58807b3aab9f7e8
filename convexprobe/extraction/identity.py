"""What a network or a function computes, as checksums that two processes agree on.

An attribute counts as `pickle` would store it, so that a class leaves out what does not matter by
`__getstate__` or `__reduce__`. A function is its bytecode, its defaults, the values of its closure
and, in the caller's own code, the globals that it reads. What lies in an installed package is its
name, its bytecode and the package's version; what lies in torch or Python, its name.
"""

from __future__ import annotations

import copyreg
import functools
import hashlib
import pickle
import sys
import types
import weakref
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from enum import Enum
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from convexprobe._hashing import digest, fingerprint
from convexprobe.extraction.code import globals_read, owner_of, reachable, root_of, version_of

_SCALARS = (type(None), type(...), type(NotImplemented), bool, int, float, complex, str, bytes)
_BY_NAME = (torch.dtype, torch.device, torch.layout, torch.memory_format)
_WITHOUT_CODE = (
    types.BuiltinFunctionType, types.MethodDescriptorType, types.WrapperDescriptorType,
    types.MethodWrapperType, types.ClassMethodDescriptorType,
)  # fmt: skip
_SLOTS = (types.MemberDescriptorType, types.GetSetDescriptorType)
_OF_EVERY_MODULE = set(vars(nn.Module()))
# where a model was loaded from, and which callback of a trainer runs, change nothing it computes
_PASSED_OVER = {"_name_or_path", "name_or_path", "_current_fx_name"}
# nor does what saving a Hugging Face model notes in its configuration
_NOTED = {*_PASSED_OVER, "architectures", "dtype", "model_type", "transformers_version"}
_OF_EVERY_CLASS = {
    *vars(type("", (), {})), "__annotations__", "__abstractmethods__", "_abc_impl", "__slots__",
    "__dataclass_fields__", "__dataclass_params__", "__match_args__", "__static_attributes__",
    "__firstlineno__", "__orig_bases__", "__parameters__", "__type_params__", "__annotate__",
    "__annotate_func__", "__annotations_cache__", "__conditional_annotations__",
}  # fmt: skip


@dataclass(frozen=True)
class ModelIdentity:
    """Models with equal checksums compute the same, up to what is `unknown`.

    Attributes:
        weights: SHA-256 of the parameters and buffers.
        modules: SHA-256 of the module tree: names, classes, attributes and code; no training flags.
        unknown: a sentence for each thing that could not be identified.
    """

    weights: str
    modules: str
    unknown: tuple[str, ...]


def describe_model(model: nn.Module) -> ModelIdentity:
    """The identity of what a model computes, the same in every process that builds it."""
    describer = _Describer(model)
    weights, modules = describer.model(model)
    return ModelIdentity(weights, modules, tuple(describer.unknown))


def describe_function(function: Callable[..., Any]) -> tuple[str, tuple[str, ...]]:
    """A callable's name with the SHA-256 of what it computes, and what of it is unknown."""
    name = getattr(function, "__qualname__", type(function).__qualname__)
    describer = _Describer()
    describer.place = f"function {name!r}"
    return f"{name} {_sha(describer.text(function))}", tuple(describer.unknown)


def describe_value(value: Any) -> str:
    """A text that is the same for equal values and, where they can be identified, for no others."""
    return _Describer().text(value)


class _Describer:
    """Turns objects into texts, and notes what it cannot tell apart."""

    def __init__(self, model: nn.Module | None = None) -> None:
        self.unknown: dict[str, None] = {}
        self.place = ""
        self.strict = True  # False inside installed packages: their version stands for all
        self.named: dict[int, str] = {}  # what belongs to the model, by `id`
        self.stack: list[int] = []  # what is being described, by `id`
        # the objects are kept, because `id` is given again once one is gone
        self.finished: dict[tuple[int, bool], tuple[Any, str]] = {}
        if model is not None:
            for name, value in (
                *model.named_modules(), *model.named_parameters(), *model.named_buffers()
            ):  # fmt: skip
                self.named[id(value)] = f"the model's {name!r}"

    def model(self, model: nn.Module) -> tuple[str, str]:
        """Checksums of the weights and of the module tree."""
        lines = []
        for self.place, hooks in _hooks(model):
            for hook in hooks:
                if owner_of(type(hook).__module__) == "torch":  # such as weight norm's
                    lines.append(self.text(hook))
                else:
                    self._note("has a hook, which may change what it computes", hook)
        for name, module in model.named_modules(remove_duplicate=False):
            self.place = f"module {name!r}" if name else "the model"
            lines += [name, self.text(type(module)), *self._attributes(module)]
        return self._weights(model), _sha(*lines)

    def _weights(self, model: nn.Module) -> str:
        state: dict[str, Tensor] = dict(model.named_buffers(remove_duplicate=False))
        state |= dict(model.named_parameters(remove_duplicate=False))
        try:
            return digest(state)
        except ValueError:
            readable = {}
            for name, tensor in state.items():
                self.place = f"parameter or buffer {name!r}"
                if self._content(tensor):
                    readable[name] = tensor
            return digest(readable)

    def text(self, value: Any) -> str:
        """The value, or its type and a checksum of it; values of equal texts compute the same."""
        if type(value) in _SCALARS:
            return f"{type(value).__name__} {value!r}"
        if (key := id(value)) in self.named:
            return self.named[key]
        if (key, self.strict) in self.finished:
            return self.finished[key, self.strict][1]
        if key in self.stack:
            return f"the value {len(self.stack) - self.stack.index(key)} levels above"
        place, strict = self.place, self.strict
        self.stack.append(key)
        try:
            content = _sha(*self._parts(value))
        except Exception as error:  # of the user's own `__reduce__`, or a RecursionError
            content = type(error).__name__
            self._note("holds something that cannot be identified", value)
        finally:
            self.stack.pop()
            self.place, self.strict = place, strict
        self.finished[key, strict] = value, f"{type(value).__name__} {content}"
        return self.finished[key, strict][1]

    def _note(self, sentence: str, value: Any) -> None:
        if self.strict:
            name = getattr(value, "__qualname__", None)
            name = f" {name!r}" if isinstance(name, str) else ""
            self.unknown[f"{self.place} {sentence} ({type(value).__name__}{name})"] = None

    def _parts(self, value: Any) -> Iterable[str]:
        match value:
            case tuple() | list() if type(value) in (tuple, list):
                return map(self.text, value)
            case dict() if type(value) is dict:
                return (self.text(item) for pair in value.items() for item in pair)
            case set() | frozenset() if type(value) in (set, frozenset):
                return sorted(map(self.text, value))  # their order depends on the process
            case types.FunctionType() if "_torchdynamo_orig_callable" in vars(value):  # compiled
                return [self.text(vars(value)["_torchdynamo_orig_callable"])]
            case types.FunctionType():
                return self._function(value)
            case types.MethodType():
                return self.text(value.__func__), self.text(value.__self__)
            case types.CodeType():
                return self._code(value)
            case types.ModuleType():
                return [value.__name__]
            case type():
                return self._class(value)
            case nn.Module():
                return self.model(value)
            case Tensor():
                return [self._content(value)]
            case np.ndarray() if not value.dtype.hasobject:
                return [fingerprint(value)]
            case Enum():
                return [_name(type(value)), value.name, self.text(value.value)]
            case slice():
                return map(self.text, (value.start, value.stop, value.step))
            case weakref.ref():
                return [self.text(value())]
            case property():
                return map(self.text, (value.fget, value.fset))
            case staticmethod() | classmethod():
                return [self.text(value.__func__)]
            case functools.cached_property():
                return [self.text(value.func)]
        if isinstance(value, _BY_NAME):
            return [str(value)]
        if isinstance(value, _WITHOUT_CODE):
            return self._builtin(value)
        if isinstance(value, torch._ops.OpOverload | torch._ops.OpOverloadPacket):
            if not str(value).startswith(("aten.", "prims.")):
                self._note("calls an operator that is not torch's", value)
            return [str(value)]
        if callable(value) and hasattr(value, "__wrapped__"):  # functools.cache
            return [self.text(value.__wrapped__)]
        return self._reduced(value)

    def _reduced(self, value: Any) -> Iterator[str]:
        """What `pickle` would store: a name, or how to make the object and its state."""
        registered = copyreg.dispatch_table.get(type(value))
        reduced = registered(value) if registered else value.__reduce_ex__(2)
        yield self.text(type(value))
        if isinstance(reduced, str):
            home: str = pickle.whichmodule(value, reduced)  # type: ignore[attr-defined]
            if getattr(sys.modules.get(home), reduced, None) is not value:
                raise TypeError(f"{reduced} is no name of the object")
            yield f"{home}.{reduced}"
        else:
            make, args, state, items, pairs = (*reduced, None, None, None)[:5]
            if isinstance(state, dict) and "transformers_version" in state:
                state = {name: state[name] for name in sorted(set(state) - _NOTED)}
            yield from map(self.text, (make, args, state))
            yield from map(self.text, (list(items or ()), list(pairs or ())))

    def _attributes(self, module: nn.Module) -> Iterator[str]:
        try:
            state = module.__getstate__()
        except Exception:  # parametrized modules refuse to be pickled
            state = vars(module)
        if isinstance(state, tuple):  # of a class with slots
            state = {**(state[0] or {}), **state[1]}
        place = self.place
        for name in sorted(set(state) - _OF_EVERY_MODULE - _PASSED_OVER):
            self.place = f"{place}, attribute {name!r},"
            yield f"{name} {self.text(state[name])}"

    def _content(self, tensor: Tensor) -> str:
        try:
            return digest({"": tensor})
        except ValueError:
            self._note("holds values that cannot be read", tensor)
            return ""

    def _builtin(self, value: Any) -> Iterator[str]:
        home = getattr(value, "__objclass__", None) or getattr(value, "__self__", None)
        module = getattr(value, "__module__", None) or ""
        if isinstance(home, type):
            module = home.__module__
        elif home is not None and not isinstance(home, types.ModuleType):  # bound to an object
            module = type(home).__module__
            yield self.text(home)
        if owner_of(module) == "own":
            self._note("calls code that is not Python's", value)
        yield f"{module}.{value.__qualname__}"

    def _function(self, function: Any, follow: bool = True) -> Iterator[str]:
        module = str(function.__globals__.get("__name__"))
        owner = owner_of(module)
        self.strict = owner == "own"
        yield f"{module}.{function.__qualname__} {version_of(module)}"
        for cell in function.__closure__ or ():
            try:
                yield self.text(cell.cell_contents)
            except ValueError:  # a cell that is filled later
                yield "empty"
        if owner not in ("torch", "python"):
            yield from self._code(function.__code__)
            yield self.text([function.__defaults__, function.__kwdefaults__])
        if owner == "own" and follow:
            yield self.text({k: v for k, v in vars(function).items() if k != "__wrapped__"})
            for name, value in globals_read(function.__code__, function.__globals__):
                if isinstance(value, types.ModuleType) and owner_of(value.__name__) == "own":
                    self._note(f"uses the module {name!r} as a whole", function)
                yield f"{name} {self.text(value)}"

    def _code(self, code: types.CodeType) -> Iterator[str]:
        arguments = code.co_varnames[: code.co_argcount + code.co_kwonlyargcount]
        yield f"{code.co_code.hex()} {code.co_flags} {code.co_names} {arguments} {code.co_freevars}"
        yield code.co_exceptiontable.hex()
        yield from map(self.text, code.co_consts)

    def _class(self, cls: type) -> Iterator[str]:
        """Names of the class and its bases, and what those outside torch and Python define."""
        own: list[tuple[str, Any]] = []
        for base in cls.__mro__:
            yield f"{_name(base)} {version_of(base.__module__)}"
            owner = owner_of(base.__module__)
            for name, value in sorted(vars(base).items()):
                if name in _OF_EVERY_CLASS or isinstance(value, _SLOTS):
                    continue
                if owner == "own":
                    own.append((name, value))
                elif isinstance(value, types.FunctionType):
                    # other packages add methods to torch's classes, depending on who is imported
                    home = str(value.__globals__.get("__name__"))
                    patched = root_of(home) != root_of(base.__module__)
                    if name in ("forward", "__call__") if patched else owner == "installed":
                        yield f"{name} {self.text(value)}"
        followed = reachable(own)
        self.strict = self.strict or bool(own)
        for name, value in own:
            if isinstance(value, types.FunctionType) and name not in followed:
                parts = list(self._function(value, follow=False))
                self.strict = True
                yield f"{name} {_sha(*parts)}"
            else:
                yield f"{name} {self.text(value)}"


def _hooks(model: nn.Module) -> Iterator[tuple[str, list[Any]]]:
    """The hooks of forward passes, with their places."""
    everywhere = torch.nn.modules.module
    for everyone in (everywhere._global_forward_hooks, everywhere._global_forward_pre_hooks):
        yield "every module", list(everyone.values())
    for name, module in model.named_modules():
        hooks = [*module._forward_hooks.values(), *module._forward_pre_hooks.values()]
        yield (f"module {name!r}" if name else "the model"), hooks


def _name(cls: type) -> str:
    return f"{cls.__module__}.{cls.__qualname__}"


def _sha(*parts: str) -> str:
    sha = hashlib.sha256()
    for part in parts:
        data = part.encode(errors="surrogatepass")
        sha.update(f"{len(data)}:".encode() + data)
    return sha.hexdigest()
