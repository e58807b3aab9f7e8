"""The pools: functions that turn a batch of activations `(n, ...)` into rows `(n, d)`.

`extraction.pooling` lists them, and gives each layer its own.
"""

from __future__ import annotations

import math
import operator
from collections.abc import Callable, Mapping
from functools import cache
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from convexprobe._arguments import check_integer, shown

Mask = Callable[[Tensor], Tensor | None]  # activations (n, t, d) -> tokens that are kept (n, t)


def random_features(count: int, seed: int = 0) -> Callable[[Tensor], Tensor]:
    """A pool that keeps `count` of the flat features, drawn without replacement, in their order.

    The draw depends on `seed` and the number of features alone: it is the same for every batch,
    checkpoint and device.

    Raises:
        TypeError: `count` or `seed` is not an integer.
        ValueError: `count` is below 1 or, once the pool is applied, above the number of features.
    """
    count, seed = check_integer("count", count, least=1), operator.index(seed)

    def pool(x: Tensor) -> Tensor:
        flat = flatten(x)
        if count > flat.shape[1]:
            raise ValueError(
                f"random_features(count={count}) needs at least as many features, "
                f"found {flat.shape[1]} in activations of shape {tuple(x.shape)}"
            )
        order = torch.randperm(flat.shape[1], generator=_generator(seed), device="cpu")
        return flat.index_select(1, order[:count].sort().values.to(flat.device))

    pool.__qualname__ = f"random_features({count}, seed={seed})"
    return pool


def random_projection(dim: int, seed: int = 0) -> Callable[[Tensor], Tensor]:
    """A pool that multiplies the flat features by a Gaussian matrix of variance `1 / dim`.

    It keeps squared lengths in expectation (Johnson & Lindenstrauss 1984). The matrix takes
    `4 * dim * width` bytes and depends on `seed` and the number of features alone.

    Raises:
        TypeError: `dim` or `seed` is not an integer.
        ValueError: `dim` is below 1.
    """
    dim, seed = check_integer("dim", dim, least=1), operator.index(seed)

    @cache  # it costs far more to draw than to apply
    def matrix(width: int, device: torch.device, dtype: torch.dtype) -> Tensor:
        z = torch.randn(dim, width, generator=_generator(seed), dtype=torch.float32, device="cpu")
        return z.div_(math.sqrt(dim)).to(device, dtype)

    def pool(x: Tensor) -> Tensor:
        flat = flatten(x).to(_accumulator(x))
        # a model that runs under autocast would round this product to half precision
        with torch.autocast(flat.device.type, enabled=False):
            return F.linear(flat, matrix(flat.shape[1], flat.device, flat.dtype))

    pool.__qualname__ = f"random_projection({dim}, seed={seed})"
    return pool


def token_at(
    positions: int | str | Callable[[Any], Any],
) -> Callable[[Tensor, Tensor, Any], Tensor]:
    """A pool that takes one token of each example, such as the last one of its subject.

    Args:
        positions: places on the axis of tokens, padding counted; a negative one counts from the
            end. One integer for all examples, the name of an item `(n,)` of the batch, or a
            function of the batch's inputs that returns integers `(n,)`.

    Raises, once the pool is applied:
        TypeError: the positions are no integers.
        ValueError: there is no such item, not one position an example, or one that is beyond the
            sequence or padding.
    """
    if isinstance(positions, bool) or not (isinstance(positions, int | str) or callable(positions)):
        raise TypeError(
            f"positions: expected an integer, a name or a function, found {shown(positions)}"
        )

    def pool(x: Tensor, mask: Tensor, batch: Any) -> Tensor:
        if mask is None:
            raise ValueError(f"token_at needs shape (n, t, d), found {tuple(x.shape)}")
        n, t = mask.shape
        at = _positions(positions, batch, n).to(x.device)
        beyond = (at < -t) | (at >= t)
        if beyond.any():
            row = int(beyond.nonzero()[0])
            raise ValueError(
                f"token_at: position {int(at[row])} of row {row} is beyond the sequence of {t} "
                "tokens; count from 0, padding and special tokens too"
            )
        index, at = torch.arange(n, device=x.device), at % t
        padding = ~mask[index, at]
        if padding.any():
            row = int(padding.nonzero()[0])
            raise ValueError(
                f"token_at: position {int(at[row])} of row {row} is padding; count from 0 in the "
                "padded sequence"
            )
        return x[index, at]

    pool.__qualname__ = f"token_at({positions!r})" if not callable(positions) else "token_at"
    return pool


def _positions(positions: Any, batch: Any, n: int) -> Tensor:
    """The position of each of n examples, int64 (n,)."""
    if isinstance(positions, int):
        return torch.full((n,), positions)
    if isinstance(positions, str) and not (isinstance(batch, Mapping) and positions in batch):
        has = ", ".join(map(repr, batch)) if isinstance(batch, Mapping) else "no names"
        raise ValueError(f"token_at: expected an item {positions!r} in the batch, found {has}")
    given = batch[positions] if isinstance(positions, str) else positions(batch)
    at = torch.as_tensor(given)
    if at.is_floating_point() or at.is_complex() or at.dtype == torch.bool:
        raise TypeError(f"token_at: expected integer positions, found {at.dtype}")
    if at.shape != (n,):
        raise ValueError(
            f"token_at: expected positions of shape ({n},), one per row, found {tuple(at.shape)}"
        )
    return at.long()


def _generator(seed: int) -> torch.Generator:
    # On the CPU, because a GPU draws other numbers from the same seed. Shifted, because a network
    # initialised after torch.manual_seed(0) holds the very numbers that a generator of seed 0
    # draws, and a projection would be correlated with them.
    return torch.Generator("cpu").manual_seed((seed + 0x3C6EF372) % 2**32)


def _accumulator(x: Tensor) -> torch.dtype:
    """The dtype to sum `x` in: the sum of 512 float16 tokens of value 200 overflows float16."""
    return torch.promote_types(x.dtype, torch.float32)


def flatten(x: Tensor) -> Tensor:
    # not reshape(n, -1), which is ambiguous for a batch of no rows
    return x.reshape(x.shape[0], math.prod(x.shape[1:]))


def spatial_mean(x: Tensor) -> Tensor:
    if x.ndim < 3:
        raise ValueError(f"pool 'spatial_mean' needs shape (n, c, h, w...), found {tuple(x.shape)}")
    return x.mean(dim=tuple(range(2, x.ndim)), dtype=_accumulator(x))


def token_mean(x: Tensor, mask: Mask, batch: Any) -> Tensor:
    kept = kept_tokens("token_mean", x, mask).to(x.device)
    # filled, not multiplied by 0, because padding may hold NaN
    total = x.masked_fill(~kept[:, :, None], 0).sum(dim=1, dtype=_accumulator(x))
    return total / kept.sum(dim=1, keepdim=True)


def token_max(x: Tensor, mask: Mask, batch: Any) -> Tensor:
    kept = kept_tokens("token_max", x, mask).to(x.device)
    return x.masked_fill(~kept[:, :, None], -math.inf).amax(dim=1)


def last_token(x: Tensor, mask: Mask, batch: Any) -> Tensor:
    kept = kept_tokens("last_token", x, mask).to(x.device)
    last = kept.shape[1] - 1 - kept.flip(1).to(torch.uint8).argmax(dim=1)
    return x[torch.arange(x.shape[0], device=x.device), last]


def class_token(x: Tensor, mask: Mask, batch: Any) -> Tensor:
    kept = kept_tokens("class_token", x, mask)
    if not kept[:, 0].all():
        row = int((~kept[:, 0]).nonzero()[0])
        raise ValueError(f"pool 'class_token' takes the first token, which is padding in row {row}")
    return x[:, 0]


def kept_tokens(pool: str, x: Tensor, mask: Mask) -> Tensor:
    """The mask as bool (n, t) on the host, with at least one token a row of `x` (n, t, d)."""
    if x.ndim != 3 or x.shape[1] == 0:
        raise ValueError(f"pool {pool!r} needs shape (n, t, d), found {tuple(x.shape)}")
    kept = mask(x)
    if kept is None:
        return torch.ones(x.shape[:2], dtype=torch.bool)
    if kept.shape != x.shape[:2]:
        raise ValueError(
            f"pool {pool!r} needs an attention mask of shape {tuple(x.shape[:2])}, "
            f"found {tuple(kept.shape)}"
        )
    empty = ~kept.any(dim=1)
    if empty.any():
        row = int(empty.nonzero()[0])
        raise ValueError(f"pool {pool!r}: the attention mask keeps no token in row {row}")
    return kept
