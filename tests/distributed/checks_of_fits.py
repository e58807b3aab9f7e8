"""What every rank checks of fits: the probes of one process, and the same errors everywhere."""

from __future__ import annotations

import json
from functools import partial
from typing import Any

import numpy as np
import pytest
import torch
import torch.distributed as dist
from torch import nn
from torch.utils.data import DataLoader, Subset, TensorDataset

from convexprobe import extract, fit_probes, remember, shard
from convexprobe.activations import placement
from convexprobe.activations.placement import Neighbours, nbytes
from tests.distributed.world import RANKS, Ranks, Streamed, agree_with_one, check, uneven
from tests.oracle import random_data


@check
def fit_probes_returns_the_probes_of_one_process(ranks: Ranks) -> None:
    """String labels, a class on one rank alone, weights, l2="auto" with rows held out."""
    data = random_data(500, 6, 4, seed=3, weighted=True)
    order = np.argsort(data.y == 3, kind="stable")  # the last class on the last rank
    x, y, s = data.x[order], np.asarray(["a", "bb", "c", "dddd"])[data.y[order]], data.weights
    communicator = ranks.world
    own = uneven(500, communicator)
    layers = {"one": x, "two": torch.tensor(x[:, :3])}
    mine = {name: layer[own] for name, layer in layers.items()}
    ours = fit_probes(mine, y[own], sample_weight=s[own], process_group=communicator.process_group)
    agree_with_one(ours, communicator, fit_probes, layers, y, sample_weight=s)
    again = fit_probes(
        mine, y[own], sample_weight=s[own], l2=ours["one"].l2, warm_start=ours,
        process_group=communicator.process_group,
    )  # fmt: skip
    agree_with_one(again, communicator, fit_probes, layers, y, sample_weight=s, l2=ours["one"].l2)
    moved = {name: layer + 0.1 for name, layer in mine.items()}
    later = fit_probes(
        moved, y[own], sample_weight=s[own], l2=0.01, warm_start=remember(ours, mine),
        process_group=communicator.process_group,
    )  # fmt: skip
    agree_with_one(later, communicator, fit_probes, layers, y, sample_weight=s, l2=0.01)
    score = ours.evaluate(mine, y[own], communicator.process_group)["one"]
    alone = ours.evaluate(layers, y)["one"]
    assert score.rows == 500 and score.error == alone.error
    np.testing.assert_allclose(score.loss, alone.loss, rtol=1e-12)
    groups = np.random.default_rng(0).integers(0, 50, 500)
    drawn = ours.evaluate(
        mine, y[own], communicator.process_group, groups=groups[own], bootstrap=20,
        sample_weight=s[own],
    )["one"]  # fmt: skip
    told = ours.evaluate(layers, y, groups=groups, bootstrap=20, sample_weight=s)["one"]
    np.testing.assert_allclose(drawn.auroc, told.auroc, rtol=1e-9)
    for name, values in told.samples.items():
        np.testing.assert_allclose(drawn.samples[name], values, rtol=1e-9, atol=1e-12)


@check
def families_folds_and_validation(ranks: Ranks) -> None:
    data = random_data(400, 5, 3, seed=4)
    held = random_data(90, 5, 3, seed=5)
    own, seen = uneven(400, ranks.world), uneven(90, ranks.world, (3, 0, 1, 2))
    x, y = torch.tensor(data.x), data.y
    fit = partial(fit_probes, process_group="world")
    agree_with_one(fit(x[own], y[own], cv=3), ranks.world, fit_probes, x, y, cv=3)
    words = np.array([f"word {i}" for i in np.random.default_rng(0).integers(0, 40, 400)])
    grouped = fit(x[own], y[own], groups=words[own])
    agree_with_one(grouped, ranks.world, fit_probes, x, y, groups=words)
    chosen = {"standardize": True, "class_weight": "balanced", "seed": [0, 1]}
    scaled = fit(x[own] * 100 + 5, y[own], **chosen)
    agree_with_one(scaled, ranks.world, fit_probes, x * 100 + 5, y, **chosen)
    concepts = {"zero": y == 0, "class": y}
    mine = {name: values[own] for name, values in concepts.items()}
    path = [1e-3, 1e-2, 1e-1]
    agree_with_one(fit(x[own], mine, l2=path), ranks.world, fit_probes, x, concepts, l2=path)
    judged = fit(x[own], y[own], l2=path, validation=(torch.tensor(held.x[seen]), held.y[seen]))
    all_held = (torch.tensor(held.x), held.y)
    agree_with_one(judged, ranks.world, fit_probes, x, y, l2=path, validation=all_held)
    early = fit(x[own], mine, l2=path, stopping="validation")
    agree_with_one(early, ranks.world, fit_probes, x, concepts, l2=path, stopping="validation")


@check
def a_concept_may_know_no_row_of_a_rank(ranks: Ranks) -> None:
    data = random_data(400, 5, 3, seed=4)
    own = uneven(400, ranks.world)
    known = np.arange(400) % 3 > 0
    known[: own.stop if ranks.world.rank == 0 else 0] = False
    known = ranks.world.all_gather(known[own])
    x, concepts = torch.tensor(data.x), {"some": np.where(known, data.y, -100), "all": data.y == 0}
    mine = {name: values[own] for name, values in concepts.items()}
    path = [1e-3, 1e-2, 1e-1]
    ours = fit_probes(x[own], mine, l2=path, process_group="world", class_weight="balanced")
    agree_with_one(ours, ranks.world, fit_probes, x, concepts, l2=path, class_weight="balanced")
    assert ours["activations/some"].rows == pytest.approx(float(known.sum()))
    score = ours.evaluate(x[own], mine, "world")["activations/some"]
    assert score.rows == known.sum()
    held = (x[own], mine)
    chosen = fit_probes(x[own], mine, l2=path, process_group="world", validation=held)
    whole = (x, concepts)
    agree_with_one(chosen, ranks.world, fit_probes, *whole, l2=path, validation=whole)
    with pytest.raises(ValueError, match=r"labels\['some'\]: expected rows with a label"):
        nothing = {**mine, "some": np.full(len(mine["all"]), -100)}
        fit_probes(x[own], nothing, l2=0.1, process_group="world")


@check
def half_precision_rows(ranks: Ranks) -> None:
    data = random_data(700, 8, 3, seed=6)
    own = uneven(700, ranks.world)
    x = torch.tensor(data.x).half()
    for bias in (True, False):
        probes = fit_probes(x[own], data.y[own], l2=0.01, bias=bias, process_group="world")
        agree_with_one(probes, ranks.world, fit_probes, x, data.y, l2=0.01, bias=bias)


@check
def streamed_rows(ranks: Ranks) -> None:
    """Rank 1 streams its rows in a limit that bounds the samples of all; the others hold theirs."""
    data = random_data(700, 8, 3, seed=11)
    own = uneven(700, ranks.world)
    x = torch.tensor(data.x[own])
    rows, limit = (Streamed(x), 1.0) if ranks.world.rank == 1 else (x, None)
    probes = fit_probes({"h": rows}, data.y[own], memory_limit=limit, process_group="world")
    agree_with_one(probes, ranks.world, fit_probes, {"h": data.x}, data.y)


@check
def ranks_divide_what_is_free_where_they_are(ranks: Ranks) -> None:
    data = random_data(300, 5, 3, seed=16)
    own, rank = uneven(300, ranks.world, (1, 1, 1, 1)), ranks.world.rank
    x = torch.tensor(data.x[own])
    for communicator in ranks.groups():
        size = communicator.size
        assert Neighbours.of([x], None, communicator) == Neighbours(size, size)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(placement, "identity", lambda device: f"gpu {rank // 2}")
        assert Neighbours.of([x], None, ranks.world) == Neighbours(4, 2)
        patch.setattr("socket.gethostname", lambda: f"host {min(rank, 1)}")
        assert Neighbours.of([x], None, ranks.world) == Neighbours(*[(1, 1), (3, 1), (3, 2)][
            min(rank, 2)])  # fmt: skip
    loaded = []

    def load(*args: Any, **settings: Any) -> torch.Tensor:
        loaded.append(free)
        return x

    for free in (2.0 * RANKS * nbytes(x), 2.0 * RANKS * nbytes(x) - 1.0):
        rows = Streamed(x)
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(placement, "free_memory", lambda device, free=free: free)
            patch.setattr(rows, "load", load)
            fit_probes({"h": rows}, data.y[own], l2=0.1, process_group="world")
    assert loaded == [2.0 * RANKS * nbytes(x)]


@check
def a_bad_row_is_named_on_every_rank(ranks: Ranks) -> None:
    data = random_data(300, 5, 3, seed=8)
    own = uneven(300, ranks.world)
    x = data.x[own].copy()
    if ranks.world.rank == 2:
        x[7, 3] = np.nan
    for l2 in ("auto", 0.1):
        with pytest.raises(ValueError, match=r"rank 2: activations\['h'\]: .* nan in row 7, feat"):
            fit_probes({"h": x}, data.y[own], l2=l2, process_group="world")
    huge = np.full(data.x[own].shape, 1e308)
    with pytest.raises(ValueError, match=r"rank 1: activations\['h'\]: .* 1e.308 in row 0"):
        fit_probes({"h": huge}, data.y[own], l2=0.1, process_group="world")


@check
def input_refused_on_one_rank_is_refused_on_all(ranks: Ranks) -> None:
    data = random_data(300, 5, 3, seed=9)
    own, rank = uneven(300, ranks.world), ranks.world.rank
    x, y = data.x[own], data.y[own]
    odd = y.copy()
    if rank == 1:
        odd[4] = 9
    some = [fit_probes(data.x, data.y, l2=l2) for l2 in (0.1, 0.2)]
    cases: list[tuple[type[Exception], str, tuple[Any, ...], dict[str, Any]]] = [
        (ValueError, "rank 3: labels: expected", (x, y[: len(y) - (rank == 3)]), {}),
        (ValueError, "rank 1: labels: row 4 has class 9", (x, odd), {"classes": [0, 1, 2]}),
        (TypeError, "rank 2: activations.*dtype", (x.astype(complex) if rank == 2 else x, y), {}),
        (ValueError, "activations: expected the same .* on rank 1", (x[:, : 5 - (rank == 1)], y),
         {}),
        (ValueError, "l2: expected the same .* on rank 1", (x, y), {"l2": 0.1 * (1 + rank)}),
        (ValueError, r"labels: .*concepts \['c0'\].* on rank 0", (x, {f"c{rank}": y}), {}),
        (ValueError, "labels: .*concepts .* on rank 2", (x, {"a": y} if rank == 2 else y), {}),
        (ValueError, "labels: .*numbers on rank 1 and strings on rank 3",
         (x, y.astype(str) if rank == 3 else y), {}),
        (ValueError, r"labels\['b'\]: .*numbers and strings on rank 1 and numbers on rank 2",
         (x, {"a": y, "b": [*y[1:].tolist(), "x"] if rank == 1 else y}), {}),
        (ValueError, "sample_weight: expected the same .*none.* on rank 0 and .*some.* on rank 1",
         (x, y), {"sample_weight": np.ones(len(y)) if rank == 1 else None}),
        (ValueError, "validation: expected the same .*some.* on rank 0 and .*none.* on rank 3",
         (x, y), {"validation": None if rank == 3 else (x, y)}),
        (ValueError, "warm_start: expected the same .*none.* on rank 0 and .*ProbeSet.* on rank 1",
         (x, y), {"warm_start": some[0] if rank == 1 else None}),
        (ValueError, "warm_start: expected the same .* on rank 0 and .*SHA-256 .* on rank 2",
         (x, y), {"warm_start": some[rank == 2]}),
        (TypeError, "rank 1: warm_start: .*5", (x, y), {"warm_start": 5 if rank == 1 else None}),
        (ValueError, "classes: expected the same .* on rank 3", (x, y),
         {"classes": range(3 + (rank == 3))}),
        (ValueError, "strings or numbers", (x, [(c,) for c in y.tolist()]), {}),
        (ValueError, "rank 3: sample_weight: .* in row 0", (x, y),
         {"sample_weight": np.full(len(y), -1.0 if rank == 3 else 1.0)}),
        (ValueError, "sample_weight: expected a positive", (x, y),
         {"sample_weight": np.zeros(len(y))}),
        (ValueError, "at least two classes", (x, 0 * y), {"l2": 0.1}),
        (ValueError, "rows on one rank", (x[:0], y[:0]), {}),
        (ValueError, "rank 1: validation", (x, y), {"validation": (x[:, : 5 - (rank == 1)], y)}),
    ]  # fmt: skip
    for error, pattern, args, options in cases:
        with pytest.raises(error, match=pattern):
            fit_probes(*args, **options, process_group="world")
    classes = [(0,), (1,), (2,)]
    probes = fit_probes(
        x, [(c,) for c in y.tolist()], l2=0.1, classes=classes, process_group="world"
    )
    assert probes["activations"].classes == tuple(classes)
    with pytest.raises(TypeError, match="rank 0: activations"):
        probes.evaluate(None if rank == 0 else x, y, "world")
    with pytest.raises(ValueError, match=r"sample_weight: expected the same .* on rank 2"):
        some[0].evaluate(x, y, "world", sample_weight=np.ones(len(y)) if rank == 2 else None)


@check
def groups_are_checked(ranks: Ranks) -> None:
    x, y = np.ones((4, 2)), np.arange(4) % 2
    for group in ("all", 3, dist.GroupMember.NON_GROUP_MEMBER):
        with pytest.raises(ValueError, match="group: expected None"):
            fit_probes(x, y, process_group=group)


@check
def extraction_is_data_parallel(ranks: Ranks) -> None:
    """Each rank extracts a shard of the data set, and probes are those of all of it."""
    generator = torch.Generator().manual_seed(0)
    images, labels = torch.randn(130, 12, generator=generator), torch.arange(130) % 3
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(12, 8), nn.ReLU(), nn.Linear(8, 4))
    data = TensorDataset(images, labels)
    mine = Subset(data, shard(range(130), f"{ranks.world.rank}/{RANKS}"))
    rows = extract(model, DataLoader(mine, batch_size=16))
    assert len(rows[1]) in (32, 33)
    whole = extract(model, DataLoader(data, batch_size=16))
    ours = fit_probes(*rows, l2=0.1, process_group="world")
    agree_with_one(ours, ranks.world, fit_probes, *whole, l2=0.1)


@check
def an_error_of_any_kind_on_one_rank_is_raised_by_all(ranks: Ranks) -> None:
    for error, kind in (
        (json.JSONDecodeError("bad", "", 0), ValueError), (FileNotFoundError("gone"), OSError),
        (torch.OutOfMemoryError("full"), RuntimeError), (KeyError("name"), RuntimeError),
    ):  # fmt: skip
        with pytest.raises(kind, match="rank 2: ") as caught, ranks.world.raise_together():
            if ranks.world.rank == 2:
                raise error
        assert type(caught.value) is kind and str(error).splitlines()[0] in str(caught.value)
