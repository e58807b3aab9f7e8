"""Parts of a list for jobs that never talk to each other."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, TypeVar

from convexprobe._arguments import shown

S = TypeVar("S", bound=Sequence[Any])


def shard(items: S, part: str) -> S:
    """Part i of n consecutive parts of a list, tuple or range; their lengths differ by at most one.

    For jobs that never talk (a Slurm array over checkpoints or layers), and for the rows that a
    rank extracts: `Subset(data, shard(range(len(data)), f"{rank}/{ranks}"))`. Neighbours stay
    together, so that each checkpoint can start from the one before.

    Args:
        items: what is divided.
        part: "i/n", with i from 0 to n - 1.

    Raises:
        TypeError: part is not a string, or items have no length or no slices.
        ValueError: part is not of that form, or i is not below n.
    """
    if not isinstance(part, str):
        raise TypeError(f'part: expected "i/n" with 0 <= i < n, found {shown(part)}')
    i, _, n = part.partition("/")
    if not (i.isdecimal() and n.isdecimal() and int(i) < int(n)):
        raise ValueError(f'part: expected "i/n" with 0 <= i < n, found {part!r}')
    try:
        items[: 0 * len(items)]
    except (TypeError, KeyError):
        raise TypeError(f"items: expected a list, tuple or range, found {shown(items)}") from None
    return items[len(items) * int(i) // int(n) : len(items) * (int(i) + 1) // int(n)]  # type: ignore[return-value]  # a slice of S is an S
