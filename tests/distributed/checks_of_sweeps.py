"""What every rank checks of sweeps: whatever differs between ranks is refused by all."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import convexprobe as cxp
import convexprobe._files as _files
from tests.distributed.world import Ranks, check, uneven
from tests.tiny import checkpoints, network, rows

STEPS = checkpoints(3)
SHORT: dict[str, Any] = {"l2": 1e-2, "layers": ["4"], "process_group": "world"}


def own_rows(ranks: Ranks, **settings: Any) -> tuple[Tensor, Tensor]:
    own = uneven(150, ranks.world, (2, 5, 2, 1))
    return tuple(values[own] for values in rows())  # type: ignore[return-value]


def sweep(ranks: Ranks, steps: Any, **settings: Any) -> cxp.ProbeHistory:
    model = settings.pop("model", None) or network(7)
    return cxp.probe_checkpoints(model, steps, *own_rows(ranks), progress=False,
                                 **{**SHORT, **settings})  # fmt: skip


@contextmanager
def folder() -> Iterator[Path]:
    with tempfile.TemporaryDirectory() as name:
        yield Path(name)


@contextmanager
def within(seconds: float) -> Iterator[None]:
    started = time.monotonic()
    yield
    assert time.monotonic() - started < seconds


@check
def groups_and_concepts_are_those_of_one_process(ranks: Ranks) -> None:
    x, y = rows()
    own = uneven(150, ranks.world, (2, 5, 2, 1))
    known = torch.where(torch.arange(150) % 3 > 0, (y > 0).long(), -100)
    concepts = {"class": y, "sign": known}
    films = torch.arange(150) // 5
    shared: dict[str, Any] = {"layers": ["4"], "class_weight": {2: 3.0}, "l2": 1e-2}
    mine = {name: values[own] for name, values in concepts.items()}
    ours = cxp.ProbeMonitor(
        x[own], mine, groups=films[own], test=(x[own], mine), process_group="world", **shared
    ).record(network(), 0)
    alone = cxp.ProbeMonitor(x, concepts, groups=films, test=(x, concepts), **shared).record(
        network(), 0
    )
    assert ours is not None and alone is not None
    for one, other in zip(ours.layers, alone.layers, strict=True):
        assert one.layer == other.layer and one.loss == pytest.approx(other.loss, abs=2e-3)
        assert one.test is not None and other.test is not None
        assert one.test.auroc == pytest.approx(other.test.auroc, abs=2e-2)
        assert one.test.rows == other.test.rows
    with pytest.raises(ValueError, match=r"groups: expected the same .* on rank 3"):
        given = films[own] if ranks.world.rank == 3 else None
        cxp.ProbeMonitor(x[own], mine, groups=given, process_group="world", **shared)


@check
def weights_that_differ_between_ranks_are_refused_by_all(ranks: Ranks) -> None:
    monitor = cxp.ProbeMonitor(*own_rows(ranks), **SHORT)
    model = network()
    if ranks.world.rank == 2:
        model[1].running_mean[0] = 1.0  # as of a batch norm that has seen other rows
    message = r"model, '1.running_mean': expected the same on every rank, found .* and .* on rank 2"
    with within(5), pytest.warns(UserWarning, match=message):
        assert monitor.record(model, 0) is None
    assert monitor.record(network(), 1) is not None and list(monitor.history) == [1]


@check
def steps_that_differ_between_ranks_are_refused_by_all(ranks: Ranks) -> None:
    monitor, step = cxp.ProbeMonitor(*own_rows(ranks), **SHORT), int(ranks.world.rank == 3)
    message = "step: expected the same on every rank, found 0 on rank 0 and 1 on rank 3"
    with within(5), pytest.warns(UserWarning, match=message):
        assert monitor.record(network(), step) is None
    with within(5), pytest.raises(TypeError, match="rank 3: step: expected an integer, found 'x'"):
        monitor.record(network(), "x" if ranks.world.rank == 3 else 0)


@check
def settings_and_checkpoints_that_differ_are_refused_by_all(ranks: Ranks) -> None:
    odd = ranks.world.rank == 1
    for change, message in (
        ({"tol": 1e-2 if odd else 1e-3}, "tol: expected the same on every rank"),
        ({"layers": ["0"] if odd else ["4"]}, "layers: expected the same on every rank"),
        ({"test": rows(9) if odd else None}, "test: expected the same on every rank"),
        ({"batch_size": -1 if odd else 9}, "rank 1: batch_size: expected an integer of at least 1"),
    ):
        with within(5), pytest.raises(ValueError, match=message):
            sweep(ranks, STEPS, **change)
    with within(5), pytest.raises(ValueError, match="checkpoints: expected the same on every rank"):
        sweep(ranks, STEPS[:2] if odd else STEPS)
    with within(5), pytest.warns(UserWarning, match="checkpoints: checkpoint: expected the same"):
        history = sweep(ranks, iter(STEPS[:2] if odd else STEPS))
    assert list(history) == [0, 3]


@check
def what_only_one_rank_has_recorded_is_done_again_by_all(ranks: Ranks) -> None:
    with folder() as out:
        sweep(ranks, STEPS[:2], out=out)
        inside = out / f"rank_{ranks.world.rank}_of_4"
        if ranks.world.rank == 1:
            for path in inside.glob("step_3*"):
                path.unlink()
        twice = [*STEPS[:2], (9, STEPS[1][1])]  # the same weights as step 3
        with within(10):
            history = sweep(ranks, twice, out=out)
        assert [(e.step, e.duplicate_of) for e in history.entries] == [(0, None), (3, None), (9, 3)]


@check
def a_file_that_only_one_rank_sees_changed_is_read_by_all(ranks: Ranks) -> None:
    with folder() as out, folder() as files:
        for step, state in STEPS:
            torch.save(state, files / f"step_{step}.pt")
        before = sweep(ranks, files, out=out)
        if ranks.world.rank == 0:
            torch.save(STEPS[1][1], files / "step_3.pt")
        with within(10):
            after = sweep(ranks, files, out=out)
        assert before.entries == after.entries
        if ranks.world.rank == 0:
            torch.save(STEPS[0][1], files / "step_3.pt")
        with (
            within(10),
            pytest.warns(UserWarning, match="model, .0.weight.: expected the same"),
        ):
            after = sweep(ranks, files, out=out)


class Faulty(nn.Sequential):
    """Fails on one rank."""

    def forward(self, x: Tensor) -> Tensor:
        if torch.distributed.get_rank() == 3 and float(self[4].bias[0]) == 7.0:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return super().forward(x)


@check
def a_forward_pass_that_fails_on_one_rank_is_noted_by_all(ranks: Ranks) -> None:
    bad = {**STEPS[1][1], "4.bias": torch.full((3,), 7.0)}
    message = "not probed: step 3: RuntimeError: rank 3: CUDA out of memory"
    with within(10), pytest.warns(UserWarning, match=message):
        history = sweep(ranks, [STEPS[0], (3, bad), STEPS[2]], model=Faulty(*network(7)))
    assert list(history) == [0, 6]
    unreadable = {"4.bias": 3} if ranks.world.rank == 1 else STEPS[1][1]
    with (
        within(10),
        pytest.warns(UserWarning, match="step 3: rank 1: step 3: expected"),
    ):
        history = sweep(ranks, [STEPS[0], (3, unreadable), STEPS[2]])
    assert list(history) == [0, 6]


@check
def a_disk_that_is_full_on_one_rank_stops_all(ranks: Ranks) -> None:
    def full(path: Path) -> None:
        raise OSError(28, "No space left on device")

    with folder() as out, pytest.MonkeyPatch.context() as patch:
        monitor = cxp.ProbeMonitor(*own_rows(ranks), out=out, **SHORT)
        if ranks.world.rank == 2:
            patch.setattr(_files, "_sync", full)
        with within(10), pytest.raises(OSError, match=r"rank 2: .*No space left on device"):
            monitor.record(network(), 0)
        monitor.close()
