"""Pools: what they compute and refuse, and what the random ones depend on."""

from __future__ import annotations

import functools
import random
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from convexprobe.extraction.pooling import choose_pool, pool_rows, pool_rules
from convexprobe.extraction.pools import random_features, random_projection, token_at

WHERE = "layer 'block.3', batch 7"


def pooled(pool: Any, x: Tensor, mask: Tensor | None = None, batch: Any = None) -> Tensor:
    rule = choose_pool(pool_rules(pool), ["block.3"])
    return pool_rows(rule, x, lambda x: mask, batch, where=WHERE)


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


@st.composite
def masks(draw: Callable[[Any], Any]) -> Tensor:
    """Masks (n, t) with at least one token a row, padded on any side or with holes."""
    n, t = draw(st.integers(1, 4)), draw(st.integers(1, 6))
    rows = [draw(st.lists(st.booleans(), min_size=t, max_size=t).filter(any)) for _ in range(n)]
    return torch.tensor(rows)


@settings(deadline=None)
@given(masks())
def test_padding_never_matters(mask: Tensor) -> None:
    x = normal(*mask.shape, 3).double()
    x = x.masked_fill(~mask[..., None], float("nan"))
    mean, last = pooled("token_mean", x, mask), pooled("last_token", x, mask)
    for row, kept in enumerate(mask):
        torch.testing.assert_close(mean[row], x[row][kept].mean(0))
        assert torch.equal(last[row], x[row][kept][-1])


def test_no_mask_keeps_every_token() -> None:
    x = normal(2, 5, 3)
    torch.testing.assert_close(pooled("token_mean", x), x.mean(1))
    assert torch.equal(pooled("last_token", x), x[:, -1])
    assert torch.equal(pooled("class_token", x), x[:, 0])


@pytest.mark.parametrize("shape", [(2, 3, 4), (2, 3, 4, 5), (2, 3, 1, 2, 2)])
def test_spatial_mean_is_the_mean_of_the_flat_positions(shape: tuple[int, ...]) -> None:
    x = normal(*shape)
    torch.testing.assert_close(pooled("spatial_mean", x), x.flatten(2).mean(2))


@pytest.mark.parametrize("shape", [(4,), (4, 3), (4, 2, 3), (0, 2, 3)])
def test_flatten_keeps_every_number(shape: tuple[int, ...]) -> None:
    x = normal(*shape)
    rows = pooled("flatten", x)
    assert rows.ndim == 2
    assert torch.equal(rows.ravel(), x.ravel())


def test_means_of_float16_do_not_overflow_on_the_way() -> None:
    x = torch.full((1, 512, 2), 200.0, dtype=torch.float16)  # the sum, 102 400, overflows
    assert torch.equal(pooled("token_mean", x), torch.full((1, 2), 200.0))
    assert torch.equal(pooled("spatial_mean", x.transpose(1, 2)), torch.full((1, 2), 200.0))


def test_random_features_are_distinct_features_in_order() -> None:
    x = torch.arange(60.0).reshape(1, 3, 20)
    rows = pooled(random_features(17, seed=3), x)[0]
    assert (rows.diff() > 0).all()  # increasing, hence distinct and a subset
    assert torch.equal(pooled(random_features(60), x), x.reshape(1, 60))


@pytest.mark.parametrize("factory", [random_features, random_projection])
def test_random_pools_depend_on_seed_and_width_alone(factory: Any) -> None:
    x = normal(4, 3, 8)
    pool = factory(5, seed=1)
    states = random.getstate(), np.random.get_state()[1].copy(), torch.get_rng_state()  # noqa: NPY002
    rows = pooled(pool, x)
    assert random.getstate() == states[0]
    assert np.array_equal(np.random.get_state()[1], states[1])  # noqa: NPY002
    assert torch.equal(torch.get_rng_state(), states[2])
    torch.manual_seed(99)
    torch.testing.assert_close(torch.cat([pooled(pool, x[:1]), pooled(pool, x[1:])]), rows)
    torch.testing.assert_close(pooled(factory(5, seed=1), x.reshape(4, 24)), rows)
    assert not torch.allclose(pooled(factory(5, seed=2), x), rows)


def test_random_projection_keeps_lengths_in_the_mean() -> None:
    x = torch.nn.functional.normalize(normal(50, 300))
    squares = pooled(random_projection(400), x).square().sum(1)
    # each is chi-squared(400)/400, of standard deviation 0.07; the rows share the matrix
    assert abs(float(squares.mean()) - 1) < 0.05
    assert float((squares - 1).abs().max()) < 0.4


def test_random_projection_is_not_the_user_s_own_random_numbers() -> None:
    # a batch, or weights, drawn with the same seed; the matrix scaled back
    x = normal(400, 300, seed=0)
    matrix = pooled(random_projection(400, seed=0), torch.eye(300)).T * 20
    assert abs(float((matrix * x).mean())) < 0.02  # 0 with standard deviation 0.003; 1 if the same


def test_random_projection_ignores_autocast_and_keeps_float64() -> None:
    x = normal(4, 30)
    pool = random_projection(3)
    rows = pooled(pool, x)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(pooled(pool, x), rows)
    assert pooled(pool, x.double()).dtype == torch.float64
    assert pooled(pool, x.bfloat16()).dtype == torch.float32


def test_first_matching_pattern_wins_and_brackets_can_be_meant_literally() -> None:
    x = normal(2, 4, 3)
    pool = {"lstm:output[0]": "last_token", "lstm*": "class_token", "**": "flatten"}
    for names, expected in [
        (["lstm:output[0]"], x[:, -1]),
        (["lstm2"], x[:, 0]),
        (["fc", "lstm2"], x[:, 0]),
        (["fc"], x.reshape(2, 12)),
    ]:
        rule = choose_pool(pool_rules(pool), names)
        assert torch.equal(rule.pool(x, lambda x: None, None), expected)


@pytest.mark.parametrize(
    ("pool", "shape", "mask", "message"),
    [
        ("spatial_mean", (4, 3), None, r"\(n, c, h, w...\), found \(4, 3\)"),
        ("token_mean", (4, 3), None, r"\(n, t, d\), found \(4, 3\)"),
        ("last_token", (4, 3, 2, 2), None, r"\(n, t, d\), found \(4, 3, 2, 2\)"),
        ("class_token", (4, 0, 2), None, r"\(n, t, d\), found \(4, 0, 2\)"),
        ("token_mean", (2, 3, 2), torch.ones(2, 4) > 0, r"shape \(2, 3\), found \(2, 4\)"),
        ("token_mean", (2, 3, 2), torch.tensor([[1, 0, 0], [0, 0, 0]]) > 0, "no token in row 1"),
        ("last_token", (1, 2, 2), torch.zeros(1, 2) > 0, "no token in row 0"),
        ("class_token", (2, 2, 2), torch.tensor([[1, 1], [0, 1]]) > 0, "padding in row 1"),
        (random_features(7), (4, 3, 2), None, r"count=7.*found 6 in .*\(4, 3, 2\)"),
        (lambda x: x, (4, 3, 2), None, r"\(4, d\) with d > 0, found \(4, 3, 2\)"),
        (lambda x: x[1:], (4, 3), None, r"found \(3, 3\)"),
        (lambda x: x[:, :0], (4, 3), None, r"found \(4, 0\)"),
    ],
)
def test_misfits_name_the_layer_and_the_shape(
    pool: Any, shape: tuple[int, ...], mask: Tensor | None, message: str
) -> None:
    with pytest.raises(ValueError, match=f"^{WHERE}: .*{message}"):
        pooled(pool, normal(*shape), mask)


def test_what_a_callable_returns_is_checked_and_what_it_raises_is_kept() -> None:
    x = normal(4, 3)
    with pytest.raises(TypeError, match=f"^{WHERE}: .*found ndarray"):
        pooled(lambda x: x.numpy(), x)
    with pytest.raises(TypeError, match=f"^{WHERE}: .*found torch.int64"):
        pooled(lambda x: x.long(), x)
    with pytest.raises(ZeroDivisionError) as caught:
        pooled(lambda x: 1 // 0, x)
    assert caught.value.__notes__ == [f"{WHERE}: while pooling activations of shape (4, 3)"]


@pytest.mark.parametrize(
    ("pool", "kind", "message"),
    [
        ("spatial_maen", ValueError, "unknown name 'spatial_maen', the names are .*'spatial_mean'"),
        ({"*": "nothing"}, ValueError, "unknown name 'nothing'"),
        ({}, ValueError, "empty mapping"),
        ({3: "flatten"}, TypeError, "patterns must be strings, found 3"),
        (None, TypeError, "found NoneType"),
        ({"*": 4}, TypeError, "found int"),
    ],
)
def test_impossible_pools_are_refused_before_any_work(
    pool: Any, kind: type[Exception], message: str
) -> None:
    with pytest.raises(kind, match=message):
        pool_rules(pool)


def test_an_unmatched_layer_is_named() -> None:
    with pytest.raises(ValueError, match=r"^layer 'fc': no pattern .* found 'conv\*'"):
        choose_pool(pool_rules({"conv*": "flatten"}), ["fc"])


@pytest.mark.parametrize("factory", [random_features, random_projection])
def test_random_pools_refuse_bad_sizes(factory: Any) -> None:
    with pytest.raises(ValueError, match="at least 1, found 0"):
        factory(0)
    with pytest.raises(TypeError):
        factory(2.5)


@settings(deadline=None)
@given(masks())
def test_the_maximum_is_over_the_tokens_that_are_kept(mask: Tensor) -> None:
    x = normal(*mask.shape, 3)
    rows = pooled("token_max", x.masked_fill(~mask[..., None], float("inf")), mask)
    for row, tokens, kept in zip(rows, x, mask, strict=True):
        assert torch.equal(row, tokens[kept].amax(0))


@given(st.lists(st.integers(-5, 4), min_size=1, max_size=4))
def test_a_token_is_taken_at_each_example_s_position(positions: list[int]) -> None:
    x = normal(len(positions), 5, 3)
    expected = torch.stack([row[at] for row, at in zip(x, positions, strict=True)])
    batch = {"end": torch.tensor(positions), "n": 1}
    functions = (lambda batch: batch["end"], lambda batch: positions)
    for pool in (token_at("end"), *map(token_at, functions)):
        assert torch.equal(pooled(pool, x, batch=batch), expected)
    assert torch.equal(pooled(token_at(positions[0]), x), x[:, positions[0]])


MASK = torch.tensor([[1, 1, 0], [1, 1, 1]]) > 0


@pytest.mark.parametrize(
    ("pool", "kind", "message"),
    [
        (token_at(3), ValueError, "position 3 of row 0 is beyond the sequence of 3 tokens"),
        (token_at(-4), ValueError, "position -4 of row 0 is beyond the sequence of 3 tokens"),
        (token_at(lambda batch: [0, 9]), ValueError, "position 9 of row 1 is beyond the sequence"),
        (token_at(2), ValueError, "position 2 of row 0 is padding"),
        (token_at(-1), ValueError, "position 2 of row 0 is padding"),
        (token_at("end"), ValueError, "expected an item 'end' in the batch, found 'at'"),
        (token_at("at"), ValueError, r"positions of shape \(2,\), one per row, found \(3,\)"),
        (token_at(lambda batch: [0.5, 1]), TypeError, "expected integer positions, found torch.fl"),
    ],
)
def test_positions_that_are_not_there_are_refused(
    pool: Any, kind: type[Exception], message: str
) -> None:
    with pytest.raises(kind, match=f"^token_at: .*{message}|^{WHERE}: token_at: .*{message}"):
        pooled(pool, normal(2, 3, 4), MASK, {"at": torch.zeros(3).long()})
    with pytest.raises(ValueError, match=r"token_at needs shape \(n, t, d\), found \(2, 4\)"):
        pooled(token_at(0), normal(2, 4), MASK)


def test_positions_are_an_integer_a_name_or_a_function() -> None:
    for odd in (None, 1.5, True, [1, 2]):
        with pytest.raises(TypeError, match="positions: expected an integer, a name or a function"):
            token_at(odd)  # type: ignore[arg-type]


def test_a_callable_receives_as_much_as_it_asks_for() -> None:
    x, batch = normal(2, 3, 4), {"weights": torch.tensor([2.0, 3.0])}
    seen: list[Any] = []

    def three(x: Tensor, mask: Tensor, batch: Any, scale: float = 2.0) -> Tensor:
        seen.append((mask, batch, scale))
        return x[:, 0] * batch["weights"][:, None]

    assert torch.equal(pooled(three, x, MASK, batch), x[:, 0] * batch["weights"][:, None])
    assert seen[0][0] is MASK or torch.equal(seen[0][0], MASK)
    assert seen[0][1] is batch and seen[0][2] == 2.0
    two = lambda x, mask: (x * mask[..., None]).sum(1)  # noqa: E731
    assert torch.equal(pooled(two, x, MASK), torch.stack([x[0, :2].sum(0), x[1].sum(0)]))
    assert torch.equal(pooled(two, x), x.sum(1))  # no mask keeps all
    for one in (lambda x, dim=1: x.sum(dim), functools.partial(torch.sum, dim=1),
                torch.nn.Flatten(), lambda *x: x[0].sum(1)):  # fmt: skip
        assert pooled(one, x, MASK).shape[0] == 2
    flat = pooled(lambda x, mask: x * (mask is None), normal(2, 3), None)
    assert torch.equal(flat, normal(2, 3))
    with pytest.raises(TypeError, match=r"pool: expected a callable .* that needs 4"):
        pool_rules(lambda x, mask, batch, more: x)
