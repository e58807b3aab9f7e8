"""Which pool each layer has: a pool turns a batch of activations `(n, ...)` into rows `(n, d)`.

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

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from inspect import Parameter, signature
from typing import Any

from torch import Tensor

from convexprobe.extraction.layer_names import matches
from convexprobe.extraction.pools import (
    Mask,
    class_token,
    flatten,
    kept_tokens,
    last_token,
    spatial_mean,
    token_max,
    token_mean,
)

Pool = str | Callable[..., Tensor]
PoolChoice = Pool | Mapping[str, Pool]

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


def _given(x: Tensor, mask: Mask, batch: Any) -> Tensor:
    return x


_NAMED: dict[str, PoolRule] = {
    "flatten": PoolRule(lambda x, mask, batch: flatten(x)),
    "spatial_mean": PoolRule(lambda x, mask, batch: spatial_mean(x)),
    "token_mean": PoolRule(token_mean, masked=True),
    "token_max": PoolRule(token_max, masked=True),
    "last_token": PoolRule(last_token, masked=True),
    "class_token": PoolRule(class_token, masked=True),
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
