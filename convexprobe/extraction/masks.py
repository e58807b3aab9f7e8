"""Which tokens of a layer are padding, told by the masks that the modules around it receive.

A batch may have several sequences with a mask each, and a decoder may have as many tokens as its
encoder. So a layer's mask is the one that was received by the innermost module in whose call it
runs: `encoder` and `decoder` of a Hugging Face model each receive an `attention_mask`. A layer that
runs after them, such as a head, may have the tokens of either: their masks have to agree, or to
differ in shape.

A mask that the caller chooses, by its name in the batch or by a function, is that of all layers.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from convexprobe._arguments import shown

# 1 is a token and 0 padding, as in Hugging Face's models
_TOKENS = ("attention_mask", "decoder_attention_mask")
# True, or minus infinity, is padding, as in torch's modules
_PADDING = ("src_key_padding_mask", "tgt_key_padding_mask", "key_padding_mask")
# the tokens of an encoder and of a decoder, and the masks that are a decoder's
_ENCODER = ("input_ids", "inputs_embeds", "input_features", "input_values", "src")
_DECODER = ("decoder_input_ids", "decoder_inputs_embeds", "tgt")
_DECODER_MASKS = {"decoder_attention_mask", "tgt_key_padding_mask"}
# the masks of the tokens that a decoder attends to, by the argument that those are
_MEMORY = {"encoder_hidden_states": "encoder_attention_mask", "memory": "memory_key_padding_mask"}

_REMEDY = (
    "'attention_mask' (n, t) with 1 for a token and 0 for padding, or 'src_key_padding_mask' with "
    "True for padding, is understood; or choose one with mask="
)


MaskChoice = str | Callable[[Any], Any]
"""The name of an item of the batch, or a function of the batch's inputs."""


def check_mask(mask: Any) -> None:
    """Raise TypeError unless it is a name, a function or None."""
    if mask is not None and not isinstance(mask, str) and not callable(mask):
        raise TypeError(f"mask: expected the name of an item or a function, found {shown(mask)}")


def chosen_mask(choice: MaskChoice, inputs: Any, where: str) -> Tensor:
    """The tokens that a caller's mask keeps, bool (n, t) on the host.

    Args:
        choice: a name with "padding" in it is of a mask whose True is padding, as in torch; of any
            other name, and of what a function returns, 1 or True is a token.
        inputs: the batch's inputs, as the loader gave them.
        where: what messages start with.

    Raises:
        TypeError: the mask is no array.
        ValueError: there is no such item, or it is not (n, t) of zeros and ones.
    """
    if isinstance(choice, str):
        items = inputs if isinstance(inputs, Mapping) else {}
        if choice not in items:
            has = ", ".join(map(repr, items)) or "no names"
            raise ValueError(f"{where}: expected the mask {choice!r} in the batch, found {has}")
        value = items[choice]
    else:
        value = choice(inputs)
    try:
        mask = torch.as_tensor(value).detach().cpu()
    except (TypeError, ValueError, RuntimeError) as error:
        raise TypeError(f"{where}: expected a mask (n, t), found {shown(value)}") from error
    kept = mask != 0
    if mask.ndim != 2 or not torch.equal(kept.to(mask.dtype), mask):
        raise ValueError(
            f"{where}: expected a mask (n, t) with 1 for a token and 0 for padding, found shape "
            f"{tuple(mask.shape)} and values from {_extremes(mask)}"
        )
    return ~kept if isinstance(choice, str) and "padding" in choice else kept


def _extremes(mask: Tensor) -> str:
    return f"{mask.min().item():g} to {mask.max().item():g}" if mask.numel() else "nothing"


@dataclass(frozen=True)
class _Sequence:
    """Tokens, `kept` (n, t) those that are no padding; None for all, or where `missing`."""

    mask: str
    kept: Tensor | None
    missing: bool = False


@dataclass
class _Scope:
    """A call of a module that received sequences, and the sequences of calls inside it."""

    sequences: list[_Sequence]
    memory: tuple[Tensor, _Sequence] | None = None
    inside: list[_Sequence] = field(default_factory=list)


class TokenMasks:
    """Follows a forward pass and finds the mask of each layer's tokens."""

    def start(self, inputs: Mapping[str, Any], rows: int) -> None:
        """A forward pass over so many rows begins, with these keyword arguments."""
        self.rows = rows
        masks = {name: value for name, value in inputs.items() if "mask" in name}
        sequences = self._sequences((*_TOKENS, *_PADDING), inputs)
        self.scopes = [_Scope(sequences)]
        shaped = [name for name, mask in masks.items() if isinstance(mask, Tensor)]
        shaped = [name for name in shaped if masks[name].ndim > 1 and len(masks[name]) == rows]
        self.unclear = None if sequences or not shaped else shaped[0]

    def attach(self, model: nn.Module, hooks: ExitStack) -> Callable[[], None]:
        """Follow the modules' calls; call the result once the hooks that ask are attached."""
        known = {*_TOKENS, *_PADDING, *_MEMORY, "pixel_values"}
        modules = []
        for module in model.modules():
            names = _arguments(module)  # once: it takes longer than many a small layer
            if module is not model and known & set(names):
                modules.append(module)
                enter = partial(self._enter, names)
                hooks.enter_context(module.register_forward_pre_hook(enter, with_kwargs=True))

        def attach_ends() -> None:
            for module in modules:
                hooks.enter_context(module.register_forward_hook(self._leave))

        return attach_ends

    def of(self, x: Tensor, source: Any) -> Tensor | None:
        """Which tokens to keep of activations (n, t, d), bool (n, t); None keeps all.

        All are kept if the batch has no mask. `source` is the input of the module.

        Raises:
            ValueError: it cannot be told which mask is theirs, or what a mask means.
        """
        scope = self.scopes[-1]
        if self.unclear is not None:
            raise ValueError(
                f"cannot tell which tokens the batch's {self.unclear!r} keeps; {_REMEDY}"
            )
        if not self.scopes[0].sequences:
            return None
        candidates = [*scope.sequences, *scope.inside]
        if scope.memory is not None and _same(source, scope.memory[0]):
            candidates = [scope.memory[1]]
        fitting = [s for s in candidates if s.kept is None or s.kept.shape == x.shape[:2]]
        if not fitting:
            return candidates[0].kept  # whose shape the pool refuses
        for sequence in fitting:
            if sequence.missing:
                raise ValueError(
                    "its tokens may be those of a sequence without a mask; give "
                    f"{sequence.mask!r} even if there is no padding, or choose one with mask="
                )
        whole = torch.ones(x.shape[:2], dtype=torch.bool)
        masks = [whole if s.kept is None else s.kept for s in fitting]
        if not all(torch.equal(mask, masks[0]) for mask in masks):
            names = " and ".join(dict.fromkeys(repr(s.mask) for s in fitting))
            raise ValueError(
                f"its tokens may be those of sequences with other padding ({names}), which are "
                "equally long; pad them to different lengths, or choose one with mask="
            )
        return masks[0]

    def _enter(
        self, names: list[str], _: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> None:
        outer = self.scopes[-1]
        scope = self._scope({**dict(zip(names, args, strict=False)), **kwargs}, outer)
        if scope is not outer:
            for enclosing in self.scopes:
                enclosing.inside += scope.sequences
        self.scopes.append(scope)

    def _leave(self, *_: Any) -> None:
        self.scopes.pop()

    def _scope(self, received: Mapping[str, Any], outer: _Scope) -> _Scope:
        """The scope that a call opens, or the one that it is in."""
        if not self.scopes[0].sequences:
            return outer
        memory = outer.memory
        for tokens, mask in _MEMORY.items():
            if isinstance(value := received.get(tokens), Tensor):
                known = self._sequence(mask, received)
                memory = value, known or _Sequence(mask, None, missing=True)
        # not `key_padding_mask`: attention receives that of its keys, not of its own tokens
        if own := self._sequences((*_TOKENS, *_PADDING[:2]), received):
            return _Scope(own, memory)
        if memory is not None and (outer.memory is None or outer.memory[0] is not memory[0]):
            decoder = [s for s in self.scopes[0].sequences if s.mask in _DECODER_MASKS]
            return _Scope(decoder or [_Sequence("decoder_attention_mask", None, True)], memory)
        if isinstance(received.get("pixel_values"), Tensor):
            return _Scope([_Sequence("pixel_values", None)], memory)  # images have no padding
        return outer

    def _sequences(self, names: tuple[str, ...], received: Mapping[str, Any]) -> list[_Sequence]:
        """The sequences whose masks a module received, and the other one if that has no mask."""
        sequences = [s for name in names if (s := self._sequence(name, received)) is not None]
        masks = {sequence.mask for sequence in sequences}
        for tokens, mask, known in (
            (_ENCODER, "attention_mask", masks - _DECODER_MASKS),
            (_DECODER, "decoder_attention_mask", masks & _DECODER_MASKS),
        ):
            if masks and not known and any(received.get(name) is not None for name in tokens):
                sequences.append(_Sequence(mask, None, missing=True))
        return sequences

    def _sequence(self, name: str, received: Mapping[str, Any]) -> _Sequence | None:
        """The sequence whose mask has this name, if there is one (n, t)."""
        mask = received.get(name)
        if not isinstance(mask, Tensor) or mask.ndim != 2 or len(mask) != self.rows:
            return None
        mask = mask.detach().cpu()
        if "padding" in name:
            return _Sequence(name, mask == 0)
        kept = mask != 0
        return _Sequence(name, kept) if torch.equal(kept.to(mask.dtype), mask) else None


def _arguments(module: nn.Module) -> list[str]:
    try:
        return list(inspect.signature(module.forward).parameters)
    except (TypeError, ValueError):  # of a function without a signature
        return []


def _same(a: Any, b: Tensor) -> bool:
    return isinstance(a, Tensor) and a.data_ptr() == b.data_ptr() and a.shape == b.shape
