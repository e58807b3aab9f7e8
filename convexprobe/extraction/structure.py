"""Layers by structure: the requests of the words `blocks`, `attention`, `mlp` and `head`."""

from __future__ import annotations

import re

from torch import nn

from convexprobe.extraction.blocks import attention_output, block_names, head_slices, mlp_output
from convexprobe.extraction.points import Request

WORDS = re.compile(r"blocks(?:\.(?P<number>\d+|\*)(?:\.(?P<part>attention|mlp))?)?"
                   r"|(?P<all>attention|mlp)")  # fmt: skip
HEAD = re.compile(r"head (\d+|\*)")


def word_requests(
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
        head = None if key is None or part != "attention" else HEAD.fullmatch(key)
        if head is not None:
            requests += head_requests(model, place, head[1], call, text, named)
        else:
            requests.append(Request(place, side, key, call, suffix, text, named))
    if not requests:
        kind = type(model.get_submodule(blocks[0])).__name__
        raise ValueError(
            f"layer {text!r}: expected blocks with {part}, found none in {blocks[0]!r} ({kind}); "
            "choose modules by name or glob"
        )
    return requests


def head_requests(
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
