"""Pools: functions that turn a batch of activations `(n, ...)` into rows `(n, d)`.

A pool is one of

| pool | activations | rows |
|---|---|---|
| `"flatten"` | `(n, ...)` | `(n, product of the rest)` |
| `"spatial_mean"` | `(n, c, h, w, ...)` | `(n, c)`, mean over all positions |
| `"token_mean"` | `(n, t, d)` | `(n, d)`, mean over the tokens that the attention mask keeps |
| `"token_max"` | `(n, t, d)` | `(n, d)`, maximum over the tokens that the mask keeps |
| `"last_token"` | `(n, t, d)` | `(n, d)`, the last token that the mask keeps |
| `"class_token"` | `(n, t, d)` | `(n, d)`, the first token |
| `token_at(positions)` | `(n, t, d)` | `(n, d)`, the token at a position of each example |
| `"tokens"` | `(n, t, d)` | `(r, d)`, every token that the mask and the labels keep |
| `"words"` | `(n, t, d)` | `(r, d)`, for every word the mean of its pieces |
| `random_features(count)` | `(n, ...)` | `(n, count)`, a fixed random subset of the flat features |
| `random_projection(dim)` | `(n, ...)` | `(n, dim)`, a fixed Gaussian projection of them |
| any callable | `(n, ...)` | `(n, d)`, checked |

or a mapping from layer names and globs to pools, of which the first that matches is used; `**` is
every layer (`extraction.layer_names` has the globs). `"tokens"` and `"words"` are for all layers or
for none. Masks are found as `extraction.masks` says; without one, every token is kept. Means and
projections of float16 and bfloat16 activations are computed and returned in float32, so that they
are rounded only once, when they are stored.

A callable is called with as many of these as it has positional arguments without a default: the
activations `(n, ...)`; the mask, bool `(n, t)` with True for tokens and False for padding, or None
if the activations are not `(n, t, d)`; and the batch's inputs as the loader gave them.
"""

from __future__ import annotations

import math
import operator
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from inspect import Parameter, signature
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from convexprobe._arguments import check_integer, shown
from convexprobe.extraction.layer_names import matches

Pool = str | Callable[..., Tensor]
PoolChoice = Pool | Mapping[str, Pool]
Mask = Callable[[Tensor], Tensor | None]  # activations (n, t, d) -> tokens that are kept (n, t)

EXAMPLES, TOKENS, WORDS = "examples", "tokens", "words"
"""What a row may be."""


@dataclass(frozen=True)
class PoolRule:
    """How one kind of layers becomes rows.

    Attributes:
        pool: makes rows (n, d) of activations, the mask of its tokens and the batch's inputs.
        masked: whether it asks which tokens are padding.
        with_batch: whether it asks for the batch's inputs.
        rows: "examples", "tokens" or "words", what a row is; of the latter two `pool` returns the
            activations (n, t, d) themselves, which are then cut into rows.
    """

    pool: Callable[[Tensor, Mask, Any], Tensor]
    masked: bool = False
    with_batch: bool = False
    rows: str = EXAMPLES


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


def _flatten(x: Tensor) -> Tensor:
    # not reshape(n, -1), which is ambiguous for a batch of no rows
    return x.reshape(x.shape[0], math.prod(x.shape[1:]))


def _spatial_mean(x: Tensor) -> Tensor:
    if x.ndim < 3:
        raise ValueError(f"pool 'spatial_mean' needs shape (n, c, h, w...), found {tuple(x.shape)}")
    return x.mean(dim=tuple(range(2, x.ndim)), dtype=_accumulator(x))


def _token_mean(x: Tensor, mask: Mask, batch: Any) -> Tensor:
    kept = kept_tokens("token_mean", x, mask).to(x.device)
    # filled, not multiplied by 0, because padding may hold NaN
    total = x.masked_fill(~kept[:, :, None], 0).sum(dim=1, dtype=_accumulator(x))
    return total / kept.sum(dim=1, keepdim=True)


def _token_max(x: Tensor, mask: Mask, batch: Any) -> Tensor:
    kept = kept_tokens("token_max", x, mask).to(x.device)
    return x.masked_fill(~kept[:, :, None], -math.inf).amax(dim=1)


def _last_token(x: Tensor, mask: Mask, batch: Any) -> Tensor:
    kept = kept_tokens("last_token", x, mask).to(x.device)
    last = kept.shape[1] - 1 - kept.flip(1).to(torch.uint8).argmax(dim=1)
    return x[torch.arange(x.shape[0], device=x.device), last]


def _class_token(x: Tensor, mask: Mask, batch: Any) -> Tensor:
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


def _given(x: Tensor, mask: Mask, batch: Any) -> Tensor:
    return x


_NAMED: dict[str, PoolRule] = {
    "flatten": PoolRule(lambda x, mask, batch: _flatten(x)),
    "spatial_mean": PoolRule(lambda x, mask, batch: _spatial_mean(x)),
    "token_mean": PoolRule(_token_mean, masked=True),
    "token_max": PoolRule(_token_max, masked=True),
    "last_token": PoolRule(_last_token, masked=True),
    "class_token": PoolRule(_class_token, masked=True),
    TOKENS: PoolRule(_given, masked=True, rows=TOKENS),
    WORDS: PoolRule(_given, masked=True, with_batch=True, rows=WORDS),
}


def _called(function: Callable[..., Tensor]) -> PoolRule:
    """The rule of a callable, which receives as much as it asks for."""
    positional = (Parameter.POSITIONAL_ONLY, Parameter.POSITIONAL_OR_KEYWORD)
    try:
        parameters = signature(function).parameters.values()
        asked = sum(p.kind in positional and p.default is Parameter.empty for p in parameters)
    except (TypeError, ValueError):  # of a builtin without a signature
        asked = 1
    if asked > 3:
        raise TypeError(
            "pool: expected a callable of the activations, the mask and the batch, found one that "
            f"needs {asked} arguments; give the others a default"
        )

    def pool(x: Tensor, mask: Mask, batch: Any) -> Tensor:
        if asked < 2:
            return function(x)
        kept = kept_tokens("pool", x, mask).to(x.device) if x.ndim == 3 and x.shape[1] else None
        return function(x, kept) if asked == 2 else function(x, kept, batch)

    return PoolRule(pool, masked=asked > 1, with_batch=asked > 2)


def pool_rules(pool: PoolChoice) -> dict[str, PoolRule]:
    """The rule of each pattern; a pool that is not a mapping has the one pattern `**`.

    Raises:
        TypeError: the pool is neither a name, a callable nor a mapping from patterns to those.
        ValueError: the name is unknown, the mapping is empty, or rows are tokens of some layers.
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
        rules[pattern] = _NAMED[choice] if isinstance(choice, str) else _called(choice)
    kinds = {rule.rows for rule in rules.values()}
    if len(kinds) > 1:
        raise ValueError(
            f"pool: expected rows of one kind for all layers, found {' and '.join(sorted(kinds))}; "
            "extract them in two calls"
        )
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


def pool_rows(rule: PoolRule, x: Tensor, mask: Mask, batch: Any, *, where: str) -> Tensor:
    """Rows (n, d) of a batch of activations `x` (n, ...), which may share memory with `x`.

    `batch` are the batch's inputs as the loader gave them.

    Raises, in messages that start with `where`:
        TypeError: a callable did not return a floating-point tensor.
        ValueError: the shape of `x`, of the mask or of what a callable returned does not fit.
    """
    try:
        rows = rule.pool(x, mask, batch)
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
