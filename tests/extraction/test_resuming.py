"""A directory of activations is reused only for what it is of, and by one writer at a time."""

from __future__ import annotations

import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import convexprobe as cxp
from tests.extraction.small import Left, batches, extract_to, network
from tests.processes import end, start


class Acting(nn.Module):
    """A linear layer and an activation function that is no module."""

    def __init__(self, act: Any) -> None:
        super().__init__()
        self.body, self.act, self.end = network()[0], act, nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        return self.end(self.act(self.body(x)))


def by(factor: float) -> Any:
    return lambda x: factor * x.flatten(1)


@pytest.mark.parametrize("interrupted", [False, True])
def test_old_rows_are_not_returned_for_another_model_or_pool(
    tmp_path: Path, interrupted: bool
) -> None:
    def write(act: Any = F.gelu, data: Any = None, **options: Any) -> None:
        extract_to(tmp_path, Acting(act), batches() if data is None else data, **options)

    if interrupted:
        data = batches()
        data[6] = (data[6][0][:, :3], data[6][1])  # which the model cannot take
        with pytest.raises(RuntimeError):
            write(data=data, pool=by(1))
    else:
        write(pool=by(1))
    for options, what in [
        ({"act": F.relu}, "modules, attributes or code"),
        ({"act": lambda x: x}, "modules, attributes or code"),
        ({"pool": by(2)}, "another pool"),
        ({"pool": lambda x: x.flatten(1)}, "another pool"),
        ({"pool": {"end": by(1)}}, "another pool"),
        ({"layers": "e*"}, "another choice of layers"),
        ({"layers": "end"}, "another choice of layers"),
        ({"dtype": "float64"}, r"another dtype \(None \(NoneType\), asked for 'torch.float64'"),
    ]:
        with pytest.raises(ValueError, match=f"{what}.*choose another directory, or delete it"):
            write(**{"pool": by(1), **options})
    with (
        torch.autocast("cpu", dtype=torch.bfloat16),
        pytest.raises(ValueError, match="autocast region"),
    ):
        write(pool=by(1))
    write(pool=by(1))  # the same anonymous function, defined again


def test_a_directory_without_rows_is_nobody_s(tmp_path: Path) -> None:
    with pytest.raises(TypeError, match="found int"):
        extract_to(tmp_path, network(), batches(), pool=lambda x: 1)
    extract_to(tmp_path, network(1), batches(), pool="flatten")


def test_pools_in_another_order_are_others(tmp_path: Path) -> None:
    pools: dict[str, Any] = {"0": "flatten", "**": by(2)}
    extract_to(tmp_path, network(), batches(), pool=pools)
    with pytest.raises(ValueError, match="another pool"):
        extract_to(tmp_path, network(), batches(), pool=dict(reversed(pools.items())))


@pytest.mark.parametrize("kind", ["hook", "pool", "attribute"])
def test_what_cannot_be_identified_is_said_once_and_never_reused(tmp_path: Path, kind: str) -> None:
    lock = threading.Lock()  # which no checksum can describe

    def same(x: Tensor) -> Tensor:
        return x.flatten(1) if lock else x

    def arguments() -> tuple[nn.Module, Any]:
        model = Acting(same if kind == "attribute" else F.gelu)
        if kind == "hook":
            model.body.register_forward_hook(lambda module, args, output: 2 * output)
        return model, same if kind == "pool" else by(1)

    model, pool = arguments()
    with pytest.warns(UserWarning, match="cannot tell what they are of: ") as caught:
        cxp.extract(model, batches(), out=tmp_path, pool=pool)
    assert len(caught) == 1 and caught[0].filename == __file__
    with pytest.raises(ValueError, match="cannot be told whether they are those asked for: "):
        cxp.extract(arguments()[0], batches(), out=tmp_path, pool=arguments()[1])
    with pytest.raises(ValueError, match=r"cannot be told|another"):
        cxp.extract(Acting(F.gelu), batches(), out=tmp_path, pool=by(1))


def test_inputs_of_any_type_are_compared_when_it_resumes(tmp_path: Path) -> None:
    class Adding(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.end = nn.Identity()

        def forward(self, x: Tensor, shift: Any) -> Tensor:
            shift = shift.to_dense() if isinstance(shift, Tensor) else torch.as_tensor(shift)
            return self.end(x + shift)

    x = torch.ones(2, 3)
    for number, (old, new) in enumerate(
        [(1.0, 2.0), ([1, 2, 3], [1, 2, 4]), (np.ones(3), np.zeros(3)),
         (torch.eye(2, 3).to_sparse(), torch.ones(2, 3).to_sparse())]
    ):  # fmt: skip
        out = tmp_path / str(number)
        extract_to(out, Adding(), [{"x": x, "shift": old}])
        extract_to(out, Adding(), [{"x": x, "shift": old}])
        with pytest.raises(ValueError, match="batch 0: expected the inputs and labels"):
            extract_to(out, Adding(), [{"x": x, "shift": new}])


def extract_where_another_writes(out: Path) -> None:
    with pytest.raises(RuntimeError, match="writes activations there"):
        cxp.extract(network(), batches(), out=out)


def test_a_second_writer_is_one_clear_error_and_loses_nothing(tmp_path: Path) -> None:
    expected, labels = cxp.extract(network(), batches())
    seen = Left()

    def loader() -> Any:
        for index, batch in enumerate(batches()):
            if index == 4:
                with pytest.raises(RuntimeError, match="writes activations there") as error:
                    cxp.extract(network(), batches(), out=tmp_path)
                seen.calls, message = 1, str(error.value)
                assert str(tmp_path) in message
                assert end(start(extract_where_another_writes, tmp_path)) == 0
            yield batch

    extract_to(tmp_path, network(), loader())
    stored, stored_labels = cxp.open_activations(tmp_path)
    assert seen.calls == 1 and torch.equal(stored_labels, labels)  # type: ignore[arg-type]
    assert all(torch.equal(stored[name].load(), rows) for name, rows in expected.items())
    extract_to(tmp_path, network(), batches())  # the lock is gone
