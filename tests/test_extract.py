"""Extraction: the right rows under the right names, one clear error for each misuse, and a model
that comes back exactly as it was."""

from __future__ import annotations

import io
import random
import sys
import warnings
from collections import UserDict
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.utils.data import DataLoader, IterableDataset, Sampler, TensorDataset

from convexprobe.extract import extract
from convexprobe.pooling import random_projection


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


class Reused(nn.Module):
    """conv, relu (in place), fc, relu again, head: the second relu is deeper than the first."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(1, 3, 3)
        self.bn = nn.BatchNorm2d(3)
        self.relu = nn.ReLU(inplace=True)
        self.fc = nn.Linear(3 * 4, 5)
        self.head = nn.Linear(5, 2)

    def forward(self, x: Tensor) -> Tensor:
        x = self.relu(self.bn(self.conv(x)))
        return self.head(self.relu(self.fc(x.flatten(1))))

    def by_hand(self, x: Tensor) -> dict[str, Tensor]:
        """Every point in order, without hooks and without in-place operations."""
        found: dict[str, Tensor] = {}
        with torch.no_grad():
            found["conv"] = self.conv(x)
            found["bn"] = torch.nn.functional.batch_norm(
                found["conv"], self.bn.running_mean, self.bn.running_var,
                self.bn.weight, self.bn.bias, eps=self.bn.eps,
            )  # fmt: skip
            found["relu#0"] = found["bn"].clamp(min=0)
            found["fc"] = self.fc(found["relu#0"].flatten(1))
            found["relu#1"] = found["fc"].clamp(min=0)
            found["head"] = self.head(found["relu#1"])
        return {name: value.flatten(1) for name, value in found.items()}


def reused(seed: int = 0) -> Reused:
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = Reused()
        model.bn.running_mean.uniform_(-1, 1)
    return model


class Recurrent(nn.Module):
    """An LSTM, whose output is a tuple, and a module whose output is a dict with an integer."""

    class Table(nn.Module):
        def forward(self, x: Tensor) -> dict[str, Any]:
            return {"hidden": x * 2, "places": x.argmax(-1), "nothing": None}

    def __init__(self) -> None:
        super().__init__()
        self.lstm = nn.LSTM(3, 4, batch_first=True)
        self.table = self.Table()

    def forward(self, x: Tensor) -> Tensor:
        return self.table(self.lstm(x)[0])["hidden"]


class Text(nn.Module):
    """Called by keywords, as Hugging Face models are."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(9, 4)
        self.block = nn.Linear(4, 4)

    def forward(self, *, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        return self.block(self.embed(input_ids))


class Failing(nn.Module):
    """Passes its input on, and raises from the call `after` on."""

    def __init__(self, after: int) -> None:
        super().__init__()
        self.after, self.calls = after, [0]

    def forward(self, x: Tensor) -> Tensor:
        self.calls[0] += 1
        if self.calls[0] > self.after:
            raise RuntimeError("the deep module ran")
        return x


class Wrapped(nn.Module):
    """A module made of a function, beside a layer `fc` of width 3."""

    def __init__(self, function: Callable[[Wrapped, Tensor], Any]) -> None:
        super().__init__()
        self.fc = nn.Linear(3, 3)
        self.other = nn.Identity()
        self.function = function

    def forward(self, x: Tensor) -> Any:
        return self.function(self, x)


@settings(deadline=None, max_examples=25)
@given(
    sizes=st.lists(st.integers(1, 4), min_size=1, max_size=4),
    sized=st.booleans(),
    layers=st.sampled_from(
        [None, ["relu#1", "conv"], "bn", ["input", "relu#0"], lambda name, _: name in "bn relu"]
    ),
)
def test_rows_do_not_depend_on_the_batches(sizes: list[int], sized: bool, layers: Any) -> None:
    model, x = reused().train(), normal(sum(sizes), 1, 4, 4)
    batches = list(x.split(sizes))
    rows, labels = extract(model, batches if sized else iter(batches), layers, progress=False)
    expected = {"input": x.flatten(1), **model.by_hand(x)}
    assert labels is None
    assert list(rows) == [name for name in expected if name in rows]  # in order of computation
    for name, found in rows.items():
        # batched and unbatched convolutions may sum in another order
        torch.testing.assert_close(found, expected[name], rtol=1e-5, atol=1e-6)
        assert found.untyped_storage().nbytes() == found.numel() * found.element_size()
        assert found.is_contiguous()


def test_rows_take_part_in_autograd() -> None:
    with torch.inference_mode():
        rows, _ = extract(nn.Sequential(nn.Linear(3, 2)), [normal(4, 3)])
    weight = torch.zeros(2, requires_grad=True)
    (rows["0"] @ weight).sum().backward()
    torch.testing.assert_close(weight.grad, rows["0"].sum(0))


@pytest.mark.parametrize("claimed", [0, 3, 7, 10, 1000])
def test_a_loader_may_be_wrong_about_its_length(claimed: int) -> None:
    class Liar(Sampler[int]):
        def __len__(self) -> int:
            return claimed

        def __iter__(self) -> Iterator[int]:
            return iter(range(10))

    loader = DataLoader(TensorDataset(normal(10, 3)), batch_size=4, sampler=Liar())
    found = extract(nn.Sequential(nn.Identity()), loader)[0]["0"]
    assert torch.equal(found, normal(10, 3))
    assert found.untyped_storage().nbytes() == 10 * 3 * 4


def test_loaders_that_know_their_length_are_stored_without_a_second_copy(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    model, x, y = nn.Sequential(nn.Identity()), normal(10, 3), torch.arange(10)

    class Stream(IterableDataset[Tensor]):
        def __iter__(self) -> Iterator[Tensor]:
            return iter(x)

    assert torch.equal(extract(model, DataLoader(Stream(), batch_size=3))[0]["0"], x)
    shuffled = DataLoader(TensorDataset(x, y), batch_size=4, shuffle=True, drop_last=True)
    rows, labels = extract(model, shuffled)
    assert labels is not None
    assert labels.shape == (8,)
    assert torch.equal(rows["0"], x[labels])
    monkeypatch.setattr(torch, "cat", None)  # what would put separate batches together
    assert torch.equal(extract(model, x.split(4))[0]["0"], x)
    assert torch.equal(extract(model, DataLoader(TensorDataset(x), batch_size=4))[0]["0"], x)
    shortened = DataLoader(TensorDataset(x), batch_size=4, drop_last=True)
    assert torch.equal(extract(model, shortened)[0]["0"], x[:8])


@pytest.mark.parametrize("convert", [torch.Tensor.clone, torch.Tensor.numpy, torch.Tensor.tolist])
def test_labels_of_any_kind(convert: Callable[[Tensor], Any]) -> None:
    x, y = normal(7, 3), torch.arange(7)
    pairs = [(a, convert(b)) for a, b in zip(x.split(3), y.split(3), strict=True)]
    _, labels = extract(nn.Sequential(nn.Identity()), pairs)
    assert labels is not None
    assert torch.equal(labels, y)


def test_labels_survive_a_loader_that_fills_one_buffer() -> None:
    def loader() -> Iterator[tuple[Tensor, Tensor]]:
        x, y = torch.empty(2, 3), torch.empty(2)
        for step in range(3):
            yield x.fill_(step), y.fill_(step)

    rows, labels = extract(nn.Sequential(nn.Identity()), loader())
    assert labels is not None
    assert labels.tolist() == [0, 0, 1, 1, 2, 2]
    assert rows["0"][:, 0].tolist() == [0, 0, 1, 1, 2, 2]


@pytest.mark.parametrize("name", ["labels", "label"])
@pytest.mark.parametrize("kind", [dict, UserDict])
def test_mappings_are_keyword_arguments_and_masks_pool(name: str, kind: type) -> None:
    ids = torch.tensor([[1, 2, 3], [4, 5, 0]])
    mask = torch.tensor([[1, 1, 1], [1, 1, 0]])
    batch = kind({"input_ids": ids, "attention_mask": mask, name: torch.tensor([0, 1])})
    model = Text()
    rows, labels = extract(model, [batch, batch], pool="token_mean")
    assert labels is not None
    assert labels.tolist() == [0, 1, 0, 1]
    torch.testing.assert_close(rows["embed"][3], model.embed.weight[[4, 5]].mean(0).detach())
    assert name in batch  # the loader's own mapping is not touched


def test_later_batches_stop_after_the_deepest_point() -> None:
    deep = Failing(after=1)
    model = nn.Sequential(nn.Linear(3, 4), nn.ReLU(), deep)
    rows, _ = extract(model, normal(9, 3).split(3), ["1", "0"])
    assert rows["1"].shape == (9, 4)
    assert deep.calls == [1]
    with pytest.raises(RuntimeError, match="the deep module ran"):
        extract(model, normal(9, 3).split(3), "2")


def test_a_model_that_catches_exceptions_is_stopped_all_the_same() -> None:
    def forward(model: Wrapped, x: Tensor) -> Tensor:
        try:
            return model.other(model.fc(x))
        except Exception:
            return x

    rows, _ = extract(Wrapped(forward), normal(4, 3).split(2), "fc")
    assert rows["fc"].shape == (4, 3)


@pytest.mark.parametrize("dtype", ["float16", torch.bfloat16, "float32", torch.float64])
def test_rows_are_rounded_once(dtype: Any) -> None:
    model, x = nn.Sequential(nn.Identity()), normal(5, 7)
    found = extract(model, x.split(2), dtype=dtype)[0]["0"]
    assert torch.equal(found, x.to(found.dtype))
    assert str(found.dtype).endswith(str(dtype).removeprefix("torch."))
    half = extract(model, [x.bfloat16()], pool=random_projection(3))[0]["0"]
    assert half.dtype == torch.bfloat16  # computed in float32, stored as the layer is


def test_overflow_names_the_layer_the_row_and_the_count() -> None:
    x = torch.ones(6, 3)
    x[4, 1] = x[5, 0] = x[5, 1] = 1e6
    x[1, 0] = float("inf")  # not finite before: the user's, and kept
    model = nn.Sequential(nn.Identity())
    message = r"layer '0', batch 2: 3 finite activations overflow torch.float16, first in row 4;"
    with pytest.raises(OverflowError, match=message):
        extract(model, x.split(2), dtype="float16")
    assert extract(model, [x], dtype="bfloat16")[0]["0"][1, 0] == float("inf")


def test_batches_that_disagree_are_named() -> None:
    model = nn.Sequential(nn.ReLU())
    x = normal(2, 3)
    with pytest.raises(ValueError, match=r"layer '0', batch 1: .* width 3 .* found 4"):
        extract(model, [x, normal(2, 4)])
    with pytest.raises(ValueError, match=r"batch 1: expected labels of shape \(2,\).* \(3,\)"):
        extract(model, iter([(x, [0, 1]), (x, [0, 1, 2])]))
    with pytest.raises(ValueError, match=r"batch 0: expected labels .* \(2, 1\)"):
        extract(model, [(x, torch.zeros(2, 1))])
    with pytest.raises(TypeError, match=r"batch 0: labels must be numbers, found a list of .* str"):
        extract(model, [(x, ["cat", "dog"])])
    for batches in ([(x, [0, 1]), x], [x, (x, [0, 1])]):
        with pytest.raises(ValueError, match="batch 1: expected labels in every batch or in none"):
            extract(model, batches)
    tokens = Wrapped(lambda model, x: model.fc(x.reshape(-1, 3)))
    with pytest.raises(ValueError, match=r"layer 'fc', batch 0: .* 2 rows.* found shape \(8, 3\)"):
        extract(tokens, [normal(2, 4, 3)], "fc")
    nested = Wrapped(lambda model, x: model.other(torch.nested.nested_tensor([model.fc(x)])))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # nested tensors are declared a prototype
        with pytest.raises(TypeError, match=r"layer 'other', batch 0: .* found a nested tensor"):
            extract(nested, [x])
    scalar = Wrapped(lambda model, x: model.other(model.fc(x).sum()))
    with pytest.raises(ValueError, match=r"layer 'other', batch 0: .* found shape \(\)"):
        extract(scalar, [x])


def test_a_forward_pass_that_changes_its_mind_is_named() -> None:
    def often(model: Wrapped, x: Tensor) -> Tensor:
        for _ in range(int(x[0, 0])):
            x = model.fc(x)
        return model.other(x)

    one, two, zero = torch.ones(2, 3), torch.full((2, 3), 2.0), torch.zeros(2, 3)
    with pytest.raises(ValueError, match=r"layer 'fc', batch 1: expected calls .* 1, found more"):
        extract(Wrapped(often), [one, two])
    with pytest.raises(ValueError, match="layer 'fc', batch 1: expected it to run"):
        extract(Wrapped(often), [one, zero])
    with pytest.raises(ValueError, match="layer 'fc#1', batch 1: expected it to run"):
        extract(Wrapped(often), [two, one])


@pytest.mark.parametrize(
    ("loader", "kind", "message"),
    [
        ([], ValueError, "at least one row, found none"),
        (iter([torch.zeros(0, 3)]), ValueError, "at least one row, found none"),
        (torch.zeros(2, 3), TypeError, "found one Tensor"),
        ({"input_ids": torch.zeros(2, 3)}, TypeError, "found one dict"),
        ([np.zeros((2, 3))], TypeError, "batch 0: .* found an object of type ndarray"),
        ([torch.zeros(2, 3), {"labels": [1, 2]}], TypeError, "batch 1: .* found a dict"),
        (iter([torch.zeros(())]), TypeError, r"batch 0: .* found a tensor of shape \(\)"),
        ([(torch.zeros(2, 3), 1, 2)], TypeError, "batch 0: .* found a tuple"),
    ],
)
def test_loaders_that_cannot_be_read(loader: Any, kind: type[Exception], message: str) -> None:
    with pytest.raises(kind, match=message):
        extract(nn.Sequential(nn.ReLU()), loader)


def test_models_and_arguments_that_cannot_be_used() -> None:
    x = [normal(2, 3)]
    model = nn.Sequential(nn.Linear(3, 3))
    with pytest.raises(TypeError, match=r"model must be a torch.nn.Module, found function"):
        extract(lambda x: x, x)  # type: ignore[arg-type]  # the wrong type is the test
    with pytest.raises(TypeError, match=r"wrapped or compiled one \(DataParallel\)"):
        extract(nn.DataParallel(model), x)
    compiled = nn.Sequential(nn.Linear(3, 3))
    # what compiled[0].compile() does, without the seconds that it takes to import the compiler
    compiled[0]._compiled_call_impl = compiled[0]._call_impl
    with pytest.raises(TypeError, match=r"submodule '0': .* compiled one \(Linear\)"):
        extract(compiled, x)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch.jit is on its way out
        traced = torch.jit.trace(model, x[0])
    with pytest.raises(TypeError, match=r"model: .* wrapped"):
        extract(traced, x)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # lazy modules are declared experimental
        lazy = nn.Sequential(nn.LazyLinear(3))
    with pytest.raises(ValueError, match=r"submodule '0': lazy"):
        extract(lazy, x)
    with pytest.raises(ValueError, match=r"layers: .* submodule"):
        extract(nn.Linear(3, 3), x)
    for dtype in ("int8", torch.int64, float):
        with pytest.raises(ValueError, match="dtype must be one of float16"):
            extract(model, x, dtype=dtype)  # type: ignore[arg-type]  # the wrong type is the test
    with pytest.raises(ValueError, match="unknown name 'flaten'"):
        extract(model, x, pool="flaten")
    with pytest.raises(ValueError, match="layer '0', batch 0: pool 'token_mean' needs"):
        extract(model, x, pool="token_mean")
    with pytest.raises(ValueError, match="layer '0': no pattern"):
        extract(model, x, pool={"fc": "flatten"})


class Stateful(nn.Module):
    """Changes everything a forward pass can change: buffers, attributes, all random states."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("count", torch.zeros(()))
        self.register_buffer("cache", torch.zeros(2))
        self.cached = 2

    def forward(self, x: Tensor) -> Tensor:
        self.count += 1
        self.cache, self.cached = torch.ones(len(x)), len(x)
        self.register_buffer("late", torch.ones(1))
        random.random(), np.random.rand(), torch.rand(1)  # noqa: NPY002
        return x + self.count


def fingerprint(model: nn.Module) -> list[Any]:
    """Everything that must not change, identities included."""
    found: list[Any] = []
    for name, module in model.named_modules():
        hooks = (module._forward_hooks, module._forward_pre_hooks)
        extra = (module._forward_hooks_with_kwargs, module._forward_pre_hooks_with_kwargs)
        found += [name, module.training, [list(h.items()) for h in hooks + extra]]
        found += [(key, id(value)) for key, value in vars(module).items()]
    for name, tensor in (*model.named_parameters(), *model.named_buffers()):
        found += [name, id(tensor), tensor.tolist(), tensor.requires_grad, id(tensor.grad)]
    legacy = np.random.get_state()  # noqa: NPY002
    found += [random.getstate(), legacy[1].tolist(), legacy[2:], torch.get_rng_state().tolist()]
    return found


def in_training() -> nn.Module:
    """Some of it training, some not; some gradients, a frozen parameter, a hook of the user's."""
    model = nn.Sequential(nn.Linear(3, 3), nn.BatchNorm1d(3), nn.Dropout(), Stateful())
    model(normal(4, 3)).sum().backward()
    model.train()
    model[2].eval()
    model[0].bias.requires_grad_(False)
    model[1].register_forward_hook(lambda module, args, output: None)
    return model


def test_everything_is_put_back() -> None:
    model = in_training()
    loader = DataLoader(TensorDataset(normal(9, 3)), batch_size=4, shuffle=True)
    before = fingerprint(model)
    first, _ = extract(model, loader)
    assert fingerprint(model) == before
    second, _ = extract(model, loader)  # the same random states: the same shuffle and rows
    assert all(torch.equal(first[name], second[name]) for name in first)


@pytest.mark.parametrize("where", ["forward", "loader", "pool", "hook"])
def test_everything_is_put_back_after_an_error(where: str) -> None:
    model = nn.Sequential(in_training(), Failing(1 if where == "forward" else 99))

    def loader() -> Iterator[Tensor]:
        yield normal(4, 3)
        if where == "loader":
            raise KeyboardInterrupt
        yield normal(4, 4 if where == "hook" else 3)

    before = fingerprint(model)
    pool = (lambda x: x[:, :, 0]) if where == "pool" else "flatten"
    with pytest.raises((RuntimeError, KeyboardInterrupt, IndexError, ValueError)):
        extract(model, loader(), ["1", "0.0:input"], pool=pool)
    assert fingerprint(model) == before


def test_it_runs_in_evaluation_mode_without_gradients() -> None:
    seen: list[tuple[bool, bool]] = []
    model = nn.Sequential(nn.BatchNorm1d(3), nn.Dropout()).train()
    model[1].register_forward_hook(
        lambda module, args, output: seen.append((module.training, torch.is_grad_enabled()))
    )
    rows, _ = extract(model, [normal(4, 3)])
    assert seen == [(False, False)]
    assert torch.equal(rows["0"], rows["1"])


def test_the_bar_is_shown_on_a_terminal_or_on_demand(monkeypatch: pytest.MonkeyPatch) -> None:
    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    for stream, progress, shown in [
        (io.StringIO(), None, False),
        (Terminal(), None, True),
        (io.StringIO(), True, True),
        (Terminal(), False, False),
    ]:
        monkeypatch.setattr(sys, "stderr", stream)
        extract(nn.Sequential(nn.ReLU()), [normal(2, 3)], progress=progress)
        assert ("extract" in stream.getvalue()) == shown
