"""Pooling: the activations of one layer, of any shape, become rows of a matrix (n, d).

A pool maps a batch of activations `(n, ...)` to rows `(n, d)`. It is one of

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

or a mapping from layer names and globs to those, where the first that matches wins. Without an
attention mask every token is kept. Means and projections of float16 and bfloat16 activations are
computed and returned in float32: whoever stores them rounds once.
"""

from __future__ import annotations

import difflib
import math
import operator
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from fnmatch import fnmatchcase

import torch
from torch import Tensor

Pool = str | Callable[[Tensor], Tensor]
PoolChoice = Pool | Mapping[str, Pool]
PoolRule = Callable[[Tensor, Tensor | None], Tensor]  # activations, attention mask -> rows


def random_features(count: int, seed: int = 0) -> Callable[[Tensor], Tensor]:
    """A pool that keeps `count` of the flat features, drawn once without replacement.

    The draw depends on `seed` and the number of features alone, not on the batch, the checkpoint,
    the device or the global random state; the features stay in their order.

    Raises:
        TypeError: `count` or `seed` is not an integer.
        ValueError: `count` is below 1 or, when the pool is applied, above the number of features.
    """
    return _RandomFeatures(_positive("count", count), operator.index(seed))


def random_projection(dim: int, seed: int = 0) -> Callable[[Tensor], Tensor]:
    """A pool that multiplies the flat features by a Gaussian matrix of variance `1 / dim`.

    Squared lengths are kept in expectation (Johnson & Lindenstrauss 1984). The matrix, `4 * dim *
    width` bytes, depends on `seed` and the number of features alone, as in `random_features`.

    Raises:
        TypeError: `dim` or `seed` is not an integer.
        ValueError: `dim` is below 1.
    """
    return _RandomProjection(_positive("dim", dim), operator.index(seed))


@dataclass(frozen=True)
class _RandomPool(ABC):
    size: int
    seed: int
    # what was drawn, by width, device and dtype: a projection costs far more to draw than to apply
    _drawn: dict[object, Tensor] = field(
        default_factory=dict, init=False, repr=False, compare=False
    )

    @abstractmethod
    def __call__(self, x: Tensor) -> Tensor: ...

    def _generator(self) -> torch.Generator:
        # On the CPU, because a GPU draws other numbers from the same seed. And away from the small
        # seeds of the user: a network initialised after torch.manual_seed(0) holds the very
        # numbers that a generator of seed 0 draws, and a projection would be correlated with them.
        return torch.Generator(device="cpu").manual_seed((self.seed + 0x3C6EF372) % 2**32)


class _RandomFeatures(_RandomPool):
    def __call__(self, x: Tensor) -> Tensor:
        flat = _flatten(x)
        width = flat.shape[1]
        if self.size > width:
            raise ValueError(
                f"random_features(count={self.size}) needs at least as many features, "
                f"found {width} in activations of shape {tuple(x.shape)}"
            )
        key = (width, flat.device)
        if key not in self._drawn:
            order = torch.randperm(width, generator=self._generator(), device="cpu")
            self._drawn[key] = order[: self.size].sort().values.to(flat.device)
        return flat.index_select(1, self._drawn[key])


class _RandomProjection(_RandomPool):
    def __call__(self, x: Tensor) -> Tensor:
        flat = _flatten(x)
        width, dtype = flat.shape[1], _accumulator(flat)
        key = (width, flat.device, dtype)
        if key not in self._drawn:
            matrix = torch.randn(
                self.size, width, generator=self._generator(), dtype=torch.float32, device="cpu"
            )
            self._drawn[key] = matrix.div_(math.sqrt(self.size)).to(flat.device, dtype)
        # a model that runs under autocast would round this product to half precision
        with torch.autocast(flat.device.type, enabled=False):
            return torch.nn.functional.linear(flat.to(dtype), self._drawn[key])


def _positive(name: str, value: int) -> int:
    value = operator.index(value)
    if value < 1:
        raise ValueError(f"{name} must be at least 1, found {value}")
    return value


def _accumulator(x: Tensor) -> torch.dtype:
    """The dtype of sums over `x`: 512 float16 tokens of value 200 already overflow float16."""
    return torch.promote_types(x.dtype, torch.float32)


def _flatten(x: Tensor) -> Tensor:
    # not reshape(n, -1), which is ambiguous for a batch of no rows
    return x.reshape(x.shape[0], math.prod(x.shape[1:]))


def _spatial_mean(x: Tensor) -> Tensor:
    if x.ndim < 3:
        raise ValueError(f"pool 'spatial_mean' needs shape (n, c, h, w...), found {tuple(x.shape)}")
    return x.mean(dim=tuple(range(2, x.ndim)), dtype=_accumulator(x))


def _token_mean(x: Tensor, mask: Tensor | None) -> Tensor:
    kept = _kept_tokens("token_mean", x, mask)
    # filled, not multiplied by 0: padding may hold NaN
    total = x.masked_fill(~kept[:, :, None], 0).sum(dim=1, dtype=_accumulator(x))
    return total / kept.sum(dim=1, keepdim=True)


def _last_token(x: Tensor, mask: Tensor | None) -> Tensor:
    kept = _kept_tokens("last_token", x, mask)
    last = kept.shape[1] - 1 - kept.flip(1).to(torch.uint8).argmax(dim=1)
    return x[torch.arange(x.shape[0], device=x.device), last]


def _class_token(x: Tensor, mask: Tensor | None) -> Tensor:
    kept = _kept_tokens("class_token", x, mask)
    if not bool(kept[:, 0].all()):
        row = int(kept[:, 0].logical_not().nonzero()[0])
        raise ValueError(f"pool 'class_token' takes the first token, which is padding in row {row}")
    return x[:, 0]


def _kept_tokens(pool: str, x: Tensor, mask: Tensor | None) -> Tensor:
    """The mask as bool (n, t) on the device of `x` (n, t, d), with at least one token a row."""
    if x.ndim != 3 or x.shape[1] == 0:
        raise ValueError(f"pool {pool!r} needs shape (n, t, d), found {tuple(x.shape)}")
    if mask is None:
        return torch.ones(x.shape[:2], dtype=torch.bool, device=x.device)
    if mask.shape != x.shape[:2]:
        raise ValueError(
            f"pool {pool!r} needs an attention mask of shape {tuple(x.shape[:2])}, "
            f"found {tuple(mask.shape)}"
        )
    kept = mask.to(x.device) != 0
    some = kept.any(dim=1)
    if not bool(some.all()):
        row = int(some.logical_not().nonzero()[0])
        raise ValueError(f"pool {pool!r}: the attention mask keeps no token in row {row}")
    return kept


_NAMED: dict[str, PoolRule] = {
    "flatten": lambda x, mask: _flatten(x),
    "spatial_mean": lambda x, mask: _spatial_mean(x),
    "token_mean": _token_mean,
    "last_token": _last_token,
    "class_token": _class_token,
}


def check_pool(pool: PoolChoice) -> None:
    """Refuse, before any work, what can never pool.

    Raises:
        TypeError: neither a name, a callable nor a mapping from patterns to those.
        ValueError: an unknown name, or an empty mapping.
    """
    if isinstance(pool, Mapping):
        if not pool:
            raise ValueError("pool is an empty mapping: it needs a pattern for every layer")
        for pattern, choice in pool.items():
            if not isinstance(pattern, str):
                raise TypeError(f"pool: patterns must be strings, found {pattern!r}")
            _rule(choice)
    else:
        _rule(pool)


def choose_pool(pool: PoolChoice, names: Iterable[str]) -> PoolRule:
    """The rule for one layer, which may go by several `names`.

    Raises:
        ValueError: no pattern of the mapping matches; the message starts with the first name.
    """
    if not isinstance(pool, Mapping):
        return _rule(pool)
    names = tuple(names)
    for pattern, choice in pool.items():
        # equality too: the brackets of "lstm:output[0]" mean something else in a glob
        if any(name == pattern or fnmatchcase(name, pattern) for name in names):
            return _rule(choice)
    raise ValueError(
        f"layer {names[0]!r}: no pattern of the pool mapping matches it, "
        f"found {', '.join(map(repr, pool))}; a last entry '*' covers the rest"
    )


def _rule(pool: Pool) -> PoolRule:
    if isinstance(pool, str):
        if pool not in _NAMED:
            near = difflib.get_close_matches(pool, _NAMED, n=1, cutoff=0.0)[0]
            raise ValueError(
                f"pool: unknown name {pool!r}, did you mean {near!r}? "
                f"The names are {', '.join(map(repr, _NAMED))}"
            )
        return _NAMED[pool]
    if not callable(pool):
        raise TypeError(
            f"pool must be a name, a callable or a mapping, found {type(pool).__name__}"
        )
    return lambda x, mask: pool(x)


def pool_rows(rule: PoolRule, x: Tensor, mask: Tensor | None, *, where: str) -> Tensor:
    """Rows (n, d) of one batch of activations `x` (n, ...); perhaps a view of `x`.

    Raises:
        TypeError: a callable returned something else than a floating-point tensor.
        ValueError: the shape of `x`, of the mask or of what a callable returned does not fit.
            Both messages start with `where`, the layer and the batch.
    """
    try:
        rows = rule(x, mask)
    except ValueError as error:
        raise ValueError(f"{where}: {error}") from error
    except Exception as error:  # of the user's callable: keep its type, add the place
        error.add_note(f"{where}: while pooling activations of shape {tuple(x.shape)}")
        raise
    if not isinstance(rows, Tensor):
        raise TypeError(
            f"{where}: the pool must return a tensor (n, d), found {type(rows).__name__}"
        )
    if not rows.is_floating_point():
        raise TypeError(f"{where}: the pool must return floating-point rows, found {rows.dtype}")
    if rows.ndim != 2 or rows.shape[0] != x.shape[0] or rows.shape[1] == 0:
        raise ValueError(
            f"{where}: the pool must turn activations of shape {tuple(x.shape)} into rows of shape "
            f"({x.shape[0]}, d) with d > 0, found {tuple(rows.shape)}"
        )
    return rows
