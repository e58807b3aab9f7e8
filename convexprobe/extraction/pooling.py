"""Pools: functions that turn a batch of activations `(n, ...)` into rows `(n, d)`.

A pool is one of

| pool | activations | rows |
|---|---|---|
| `"flatten"` | `(n, ...)` | `(n, product of the rest)` |
| `"spatial_mean"` | `(n, c, h, w, ...)` | `(n, c)`, mean over all positions |
| `"token_mean"` | `(n, t, d)` | `(n, d)`, mean over the tokens that the attention mask keeps |
| `"last_token"` | `(n, t, d)` | `(n, d)`, the last token that the mask keeps |
| `"class_token"` | `(n, t, d)` | `(n, d)`, the first token |
| `random_features(count)` | `(n, ...)` | `(n, count)`, a fixed random subset of the flat features |
| `random_projection(dim)` | `(n, ...)` | `(n, dim)`, a fixed Gaussian projection of them |
| any callable | `(n, ...)` | `(n, d)`, checked |

or a mapping from layer names and globs to pools, of which the first that matches is used; `**` is
every layer (`extraction.layer_names` has the globs). Masks
are found as `extraction.masks` says; without one, every token is kept. Means and projections of
float16 and bfloat16 activations are computed and returned in float32, so that they are rounded only
once, when they are stored.
"""

from __future__ import annotations

import math
import operator
from collections.abc import Callable, Mapping, Sequence
from functools import cache

import torch
import torch.nn.functional as F
from torch import Tensor

from convexprobe._arguments import check_integer
from convexprobe.extraction.layer_names import matches

Pool = str | Callable[[Tensor], Tensor]
PoolChoice = Pool | Mapping[str, Pool]
Mask = Callable[[Tensor], Tensor | None]  # activations (n, t, d) -> tokens that are kept (n, t)
PoolRule = Callable[[Tensor, Mask], Tensor]


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
        flat = _flatten(x)
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
        flat = _flatten(x).to(_accumulator(x))
        # a model that runs under autocast would round this product to half precision
        with torch.autocast(flat.device.type, enabled=False):
            return F.linear(flat, matrix(flat.shape[1], flat.device, flat.dtype))

    pool.__qualname__ = f"random_projection({dim}, seed={seed})"
    return pool


def _generator(seed: int) -> torch.Generator:
    # On the CPU, because a GPU draws other numbers from the same seed. Shifted, because a network
    # initialised after torch.manual_seed(0) holds the very numbers that a generator of seed 0
    # draws, and a projection would be correlated with them.
    return torch.Generator("cpu").manual_seed((seed + 0x3C6EF372) % 2**32)


def _accumulator(x: Tensor) -> torch.dtype:
    """The dtype to sum `x` in: the sum of 512 float16 tokens of value 200 overflows float16."""
    return torch.promote_types(x.dtype, torch.float32)


def _flatten(x: Tensor) -> Tensor:
    # not reshape(n, -1), which is ambiguous for a batch of no rows
    return x.reshape(x.shape[0], math.prod(x.shape[1:]))


def _spatial_mean(x: Tensor) -> Tensor:
    if x.ndim < 3:
        raise ValueError(f"pool 'spatial_mean' needs shape (n, c, h, w...), found {tuple(x.shape)}")
    return x.mean(dim=tuple(range(2, x.ndim)), dtype=_accumulator(x))


def _token_mean(x: Tensor, mask: Mask) -> Tensor:
    kept = _kept_tokens("token_mean", x, mask)
    # filled, not multiplied by 0, because padding may hold NaN
    total = x.masked_fill(~kept[:, :, None], 0).sum(dim=1, dtype=_accumulator(x))
    return total / kept.sum(dim=1, keepdim=True)


def _last_token(x: Tensor, mask: Mask) -> Tensor:
    kept = _kept_tokens("last_token", x, mask)
    last = kept.shape[1] - 1 - kept.flip(1).to(torch.uint8).argmax(dim=1)
    return x[torch.arange(x.shape[0], device=x.device), last]


def _class_token(x: Tensor, mask: Mask) -> Tensor:
    kept = _kept_tokens("class_token", x, mask)
    if not kept[:, 0].all():
        row = int((~kept[:, 0]).nonzero()[0])
        raise ValueError(f"pool 'class_token' takes the first token, which is padding in row {row}")
    return x[:, 0]


def _kept_tokens(pool: str, x: Tensor, mask: Mask) -> Tensor:
    """The mask as bool (n, t) on the device of `x` (n, t, d), with at least one token a row."""
    if x.ndim != 3 or x.shape[1] == 0:
        raise ValueError(f"pool {pool!r} needs shape (n, t, d), found {tuple(x.shape)}")
    kept = mask(x)
    if kept is None:
        return torch.ones(x.shape[:2], dtype=torch.bool, device=x.device)
    if kept.shape != x.shape[:2]:
        raise ValueError(
            f"pool {pool!r} needs an attention mask of shape {tuple(x.shape[:2])}, "
            f"found {tuple(kept.shape)}"
        )
    kept = kept.to(x.device)
    empty = ~kept.any(dim=1)
    if empty.any():
        row = int(empty.nonzero()[0])
        raise ValueError(f"pool {pool!r}: the attention mask keeps no token in row {row}")
    return kept


def _unmasked(pool: Callable[[Tensor], Tensor]) -> PoolRule:
    return lambda x, mask: pool(x)


_NAMED: dict[str, PoolRule] = {
    "flatten": _unmasked(_flatten),
    "spatial_mean": _unmasked(_spatial_mean),
    "token_mean": _token_mean,
    "last_token": _last_token,
    "class_token": _class_token,
}


def needs_mask(rule: PoolRule) -> bool:
    """Whether the rule asks which tokens are padding."""
    return rule in (_token_mean, _last_token, _class_token)


def pool_rules(pool: PoolChoice) -> dict[str, PoolRule]:
    """The rule of each pattern; a pool that is not a mapping has the one pattern `**`.

    Raises:
        TypeError: the pool is neither a name, a callable nor a mapping from patterns to those.
        ValueError: the name is unknown, or the mapping empty.
    """
    if isinstance(pool, Mapping) and not pool:
        raise ValueError("pool is an empty mapping: it needs a pattern for every layer")
    rules: dict[str, PoolRule] = {}
    for pattern, choice in (pool if isinstance(pool, Mapping) else {"**": pool}).items():
        if not isinstance(pattern, str):
            raise TypeError(f"pool: patterns must be strings, found {pattern!r}")
        if isinstance(choice, str) and choice not in _NAMED:
            names = ", ".join(map(repr, _NAMED))
            raise ValueError(f"pool: unknown name {choice!r}, the names are {names}")
        if not isinstance(choice, str) and not callable(choice):
            kind = type(choice).__name__
            raise TypeError(f"pool must be a name, a callable or a mapping, found {kind}")
        rules[pattern] = _NAMED[choice] if isinstance(choice, str) else _unmasked(choice)
    return rules


def choose_pool(rules: Mapping[str, PoolRule], names: Sequence[str]) -> PoolRule:
    """The first rule whose pattern matches one of the layer's names.

    Raises:
        ValueError: no pattern matches.
    """
    for pattern, rule in rules.items():
        # equal names match too: the brackets of "lstm:output[0]" mean something else in a glob
        if any(name == pattern or matches(name, pattern) for name in names):
            return rule
    raise ValueError(
        f"layer {names[0]!r}: no pattern of the pool mapping matches it, found "
        f"{', '.join(map(repr, rules))}; add a last entry '**' for all other layers"
    )


def pool_rows(rule: PoolRule, x: Tensor, mask: Mask, *, where: str) -> Tensor:
    """Rows (n, d) of a batch of activations `x` (n, ...), which may share memory with `x`.

    Raises, in messages that start with `where`:
        TypeError: a callable did not return a floating-point tensor.
        ValueError: the shape of `x`, of the mask or of what a callable returned does not fit.
    """
    try:
        rows = rule(x, mask)
    except ValueError as error:
        raise ValueError(f"{where}: {error}") from error
    except Exception as error:  # raised by the user's callable, whose type is kept
        error.add_note(f"{where}: while pooling activations of shape {tuple(x.shape)}")
        raise
    if not isinstance(rows, Tensor) or not rows.is_floating_point():
        kind = rows.dtype if isinstance(rows, Tensor) else type(rows).__name__
        raise TypeError(f"{where}: the pool must return floating-point rows (n, d), found {kind}")
    if rows.ndim != 2 or rows.shape[0] != x.shape[0] or rows.shape[1] == 0:
        raise ValueError(
            f"{where}: the pool must turn activations of shape {tuple(x.shape)} into rows of shape "
            f"({x.shape[0]}, d) with d > 0, found {tuple(rows.shape)}"
        )
    return rows
