"""Identity: models and functions that compute other things differ, in every process alike."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import threading
from collections.abc import Callable
from copy import deepcopy
from dataclasses import dataclass
from functools import cache, partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils import parametrizations, prune

from convexprobe.extraction.identity import describe_function, describe_model
from convexprobe.extraction.pools import random_features, random_projection

ROOT = Path(__file__).parents[2]
SCALE = 2.0
SEEN: set[str] = set()


@dataclass
class Settings:
    scale: float = 1.0
    names: tuple[str, ...] = ("a",)


class Sizes(NamedTuple):
    width: int


class Slots:
    __slots__ = ("width",)

    def __init__(self, width: int) -> None:
        self.width = width


class Net(nn.Module):
    """A network with an attribute of every kind that its output may depend on."""

    def __init__(self, **attributes: Any) -> None:
        super().__init__()
        with torch.random.fork_rng([]):
            torch.manual_seed(0)
            self.fc = nn.Linear(3, 3)
        self.act: Any = F.gelu
        self.power, self.kinds, self.dtype = 2.0, {"a", "b", "c", "d"}, torch.float32
        self.table = {"shift": [1, (2.5, None)], "mask": torch.ones(3)}
        vars(self).update(attributes)

    def forward(self, x: Tensor) -> Tensor:
        return self.scaled(self.act(self.fc(x)))

    @torch.no_grad()
    def scaled(self, x: Tensor) -> Tensor:
        return x**self.power * SCALE


class Other(Net):
    def scaled(self, x: Tensor) -> Tensor:
        return x - 1


def pool(width: int, reduce: Callable[..., Tensor] = torch.mean) -> Callable[[Tensor], Tensor]:
    return lambda x: reduce(x[:, :, :width], dim=1)


def modules(model: nn.Module) -> str:
    identity = describe_model(model)
    assert identity.unknown == ()
    return identity.modules


def function(f: Any) -> str:
    text, unknown = describe_function(f)
    assert unknown == ()
    return text


def test_the_same_model_is_the_same_whatever_is_done_with_it() -> None:
    model = Net()
    before = describe_model(model)
    model(torch.ones(2, 3)).sum()
    assert describe_model(model.train()) == describe_model(model.eval()) == before
    assert describe_model(deepcopy(model)) == describe_model(Net()) == before
    with torch.no_grad():
        model.fc.weight += 1
    changed = describe_model(model)
    assert changed.weights != before.weights and changed.modules == before.modules


def test_two_processes_give_one_identity() -> None:
    code = """
from tests.extraction.test_identity import *
print(describe_model(Net()), describe_model(nn.TransformerEncoderLayer(4, 2)).modules)
print(describe_model(nn.LSTM(3, 4)).modules, describe_function(pool(3)))
print(describe_function(random_projection(3)), describe_function(lambda x: x in {"a", "b", "c"}))
"""
    texts = {
        subprocess.run(
            [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True,
            env={**os.environ, "PYTHONHASHSEED": str(seed), "PYTHONPATH": str(ROOT)},
        ).stdout
        for seed in (1, 2)
    }  # fmt: skip
    assert len(texts) == 1 and "0x" not in texts.pop()


@pytest.mark.parametrize(
    "attributes",
    [
        {"act": F.relu},
        {"act": torch.tanh},
        {"act": lambda x: x},
        {"act": lambda x: x + 1},
        {"act": partial(F.gelu, approximate="tanh")},
        {"act": nn.ReLU().forward},
        {"act": pool(2)},
        {"act": pool(3)},
        {"act": cache(pool(4))},
        {"power": 3.0},
        {"power": True},
        {"kinds": {"a", "b"}},
        {"dtype": torch.float16},
        {"table": {"shift": [1, (2.5, 0)], "mask": torch.ones(3)}},
        {"table": {"shift": [1, (2.5, None)], "mask": torch.zeros(3)}},
        {"extra": np.arange(3)},
        {"forward": torch.relu},
        {"hidden": [nn.Linear(2, 2)]},
        {"settings": Settings()},
        {"settings": Settings(2.0)},
        {"settings": Sizes(1)},
        {"settings": Slots(1)},
        {"settings": Slots(2)},
        {"settings": [range(3), slice(1), re.compile("a"), Path("a"), np.float32(3), 1j, b"a"]},
    ],
    ids=lambda attributes: next(iter(attributes)),
)
def test_an_attribute_that_changes_is_another_model(attributes: dict[str, Any]) -> None:
    text = modules(Net(**attributes))
    assert text == modules(deepcopy(Net(**attributes)))
    assert text not in SEEN  # of the other cases
    SEEN.add(text)


def test_imports_inside_a_function_are_the_same_before_and_after_it_has_run() -> None:
    def late(x: Tensor) -> Any:
        from colorsys import hls_to_rgb  # which nobody has imported yet

        import this_is_no_module

        return hls_to_rgb, this_is_no_module

    sys.modules.pop("colorsys", None)
    before = describe_function(late)
    assert "uses the module 'this_is_no_module' as a whole" in before[1][0]
    import colorsys  # noqa: F401

    assert describe_function(late) == before


def test_code_that_changes_is_another_model(monkeypatch: pytest.MonkeyPatch) -> None:
    seen = [modules(Net()), modules(Other()), modules(nn.Sequential(Net()))]
    assert len(set(seen)) == 3
    monkeypatch.setattr(sys.modules[__name__], "SCALE", 3.0)  # a global that `scaled` reads
    assert modules(Net()) != seen[0]
    monkeypatch.setattr(sys.modules[__name__], "SCALE", 2.0)
    assert modules(Net()) == seen[0]
    linear = nn.Sequential(nn.Linear(2, 2))
    before = modules(linear)
    monkeypatch.setattr(nn.Linear, "forward", lambda self, x: x)
    assert modules(linear) != before


def test_only_code_that_a_forward_pass_may_use_follows_its_globals(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    class Trained(Net):
        def training_step(self, x: Tensor) -> Any:
            return ROOT, x

    before = modules(Trained())
    monkeypatch.setattr(sys.modules[__name__], "ROOT", Path("elsewhere"))
    assert modules(Trained()) == before


def test_functions_differ_by_code_closure_defaults_and_globals(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    class Callable_:
        def __init__(self, width: int) -> None:
            self.width = width

        def __call__(self, x: Tensor) -> Tensor:
            return x[: self.width]

    functions: list[Any] = [
        lambda x: x[0], lambda x: x[1], lambda x, k=1: x[k], lambda x, k=2: x[k],
        lambda x: [y + 1 for y in x], lambda x: [y + 2 for y in x], lambda x: x * SCALE,
        pool(3), pool(4), pool(3, torch.amax), pool(3, pool(3)), partial(pool, 3), partial(pool, 4),
        Callable_(1), Callable_(2), Callable_(1).__call__, random_features(3), random_features(4),
        random_features(3, seed=1), random_projection(3), torch.relu, F.relu, torch.Tensor.relu,
        torch.ops.aten.relu.default, np.tanh, nn.Linear(2, 2), nn.ReLU(), max, "a".join, "b".join,
    ]  # fmt: skip
    texts = [function(f) for f in functions]
    assert len(set(texts)) == len(functions)
    assert texts == [function(f) for f in functions]
    assert function(random_features(3)) == texts[16] and function(pool(3)) == texts[7]
    monkeypatch.setattr(sys.modules[__name__], "SCALE", 3.0)
    assert function(functions[6]) != texts[6]


def test_what_cannot_be_identified_is_said() -> None:
    hooked = Net()
    hooked.fc.register_forward_hook(lambda module, args, output: output)
    locked = Net(act=partial(F.gelu, threading.Lock()))
    for model, word in [
        (hooked, "module 'fc' has a hook"),
        (locked, "the model, attribute 'act', holds something that cannot be identified"),
        (Net(act=np.frompyfunc(abs, 1, 1)), "attribute 'act'"),
        (Net(act=(x for x in ())), "attribute 'act'"),
        (Net().to("meta"), "parameter or buffer 'fc.weight' holds values that cannot be read"),
    ]:
        unknown = describe_model(model).unknown
        assert any(word in sentence for sentence in unknown), unknown
    lock = threading.Lock()
    assert describe_function(lambda x: (x, lock))[1]


def test_hooks_of_torch_s_own_are_known() -> None:
    first = nn.Sequential(nn.Linear(3, 3))
    pruned = deepcopy(first)
    prune.l1_unstructured(pruned[0], "weight", 1)
    assert modules(pruned) != modules(first)
    assert modules(parametrizations.weight_norm(deepcopy(first[0]))) != modules(first[0])


def test_a_class_leaves_out_what_does_not_matter() -> None:
    class Counter:
        def __init__(self, count: int = 0) -> None:
            self.count = count

        def __reduce__(self) -> Any:
            return Counter, ()

    assert modules(Net(calls=Counter(3))) == modules(Net(calls=Counter(4)))


@pytest.mark.filterwarnings("ignore")  # torch calls half of its layouts prototypes
def test_tensors_of_every_layout_are_told_apart() -> None:
    def identity(buffer: Tensor) -> tuple[str, tuple[str, ...]]:
        model = nn.Module()
        model.register_buffer("b", buffer)
        described = describe_model(model)
        return described.weights, described.unknown

    x = torch.eye(4).cumsum(1)
    kinds = [
        x, x.bfloat16(), x.to_sparse(), x.to_sparse_csr(), x.to_sparse_csc(),
        x * 1j, (x * 1j).conj(), torch.quantize_per_tensor(x, 0.1, 0, torch.qint8),
        torch.quantize_per_tensor(x, 0.2, 0, torch.qint8), x.bool(), x[:0], x[0, 0],
        torch.nested.nested_tensor([x, x[:2]]), torch.nested.nested_tensor([x, x[:3]]),
        (2 * x).to_sparse(), x.to_sparse_bsr((2, 2)),
    ]  # fmt: skip
    identities = [identity(kind) for kind in kinds]
    assert all(unknown == () for _, unknown in identities)
    assert len({weights for weights, _ in identities}) == len(kinds)
    assert identity(x.to_mkldnn()) == identity(x) == identity((x * -1j).conj().imag)
