"""The network of figures 7 and 8 by its definition, its checkpoints, and probes that do not see
where a layer lies and how large it is; conditional entropy of the example of section 2."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn.functional import cross_entropy, leaky_relu, linear

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "examples"))

import deep_figure
import deep_mlp
import information
from deep_mlp import DeepMLP

from tests.examples.images import synthetic


def by_hand(model: DeepMLP, x: Tensor, bridge: int | None) -> list[Tensor]:
    """The outputs of the layers, from the state dict."""
    w, out = model.state_dict(), []
    h = x.flatten(1)
    for at in range(8):
        if bridge == at + 1:
            h = torch.cat([h, x.flatten(1)], 1)
        z = linear(h, w[f"layers.{at}.0.weight"], w[f"layers.{at}.0.bias"])
        h = leaky_relu(z, 0.5)
        out.append(h)
    return out


@pytest.mark.parametrize("options", [{}, {"guide_every": 2}, {"bridge_to": 4}])
def test_network_is_what_its_options_say(options: dict[str, int]) -> None:
    state = torch.get_rng_state()
    model = DeepMLP(8, **options)
    assert torch.equal(torch.get_rng_state(), state)
    x = torch.randn(5, 1, 28, 28, generator=torch.Generator().manual_seed(0))
    layers = by_hand(model, x, options.get("bridge_to"))
    for found, expected in zip(model.hidden(x), [x.flatten(1), *layers], strict=True):
        torch.testing.assert_close(found, expected)
    w = model.state_dict()
    heads = [(at, f"guides.{at}") for at in range(2, 8, 2)] if "guide_every" in options else []
    for logits, (at, name) in zip(model.classifiers(x), [*heads, (8, "logits")], strict=True):
        expected = linear(layers[at - 1], w[f"{name}.weight"], w[f"{name}.bias"])
        torch.testing.assert_close(logits, expected)
    # glorot: variance 2 / (in + out); five standard errors of a standard deviation
    weight = w["layers.3.0.weight"]
    wanted = (2 / sum(weight.shape)) ** 0.5
    assert abs(float(weight.std()) - wanted) < 5 * wanted / (2 * weight.numel()) ** 0.5


def test_training_lowers_the_sum_of_all_losses_and_depends_on_the_seed_alone() -> None:
    images, labels = synthetic(150)
    x, y = deep_mlp.normalise(images), torch.from_numpy(labels)
    losses: list[float] = []
    model = DeepMLP(4, guide_every=2)

    def record(step: int) -> None:
        losses.append(float(sum(cross_entropy(z, y) for z in model.classifiers(x)).detach()))

    deep_mlp.train(model, images, labels, 10, callback=record)
    assert len(losses) == 11
    assert losses[0] == pytest.approx(2 * np.log(10), rel=0.1)
    assert losses[-1] < losses[0] - 0.1
    again = DeepMLP(4, guide_every=2)
    torch.rand(1)
    deep_mlp.train(again, images, labels, 10)
    for name, value in again.state_dict().items():
        assert torch.equal(value, model.state_dict()[name]), name


def test_checkpoints_are_read_again_and_never_mistaken_for_others(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    images, labels = synthetic(150)
    paths = deep_mlp.load_or_train(tmp_path, DeepMLP(4), images, labels, [0, 3, 1])
    assert list(paths) == [0, 1, 3]
    content = {path: path.read_bytes() for path in tmp_path.iterdir()}
    assert set(content) == set(paths.values())
    paths[1].unlink()  # as after a kill
    deep_mlp.load_or_train(tmp_path, DeepMLP(4), images, labels, [0, 3, 1])
    assert {path: path.read_bytes() for path in tmp_path.iterdir()} == content

    def fail(*_: object, **__: object) -> None:
        raise AssertionError("trained again")

    monkeypatch.setattr(deep_mlp, "train", fail)
    deep_mlp.load_or_train(tmp_path, DeepMLP(4), images, labels, [3, 0])
    for other in (DeepMLP(4, seed=1), DeepMLP(4, guide_every=2), DeepMLP(4, bridge_to=2)):
        with pytest.raises(ValueError, match=r"expected run .* found .*delete it to retrain"):
            deep_mlp.load_or_train(tmp_path, other, images, labels, [0, 3])
    with pytest.raises(ValueError, match="delete it to retrain"):
        deep_mlp.load_or_train(tmp_path, DeepMLP(4), images, labels[::-1], [0, 3])
    assert {path: path.read_bytes() for path in tmp_path.iterdir()} == content


def test_probes_do_not_see_where_a_layer_lies_and_how_large_it_is(tmp_path: Path) -> None:
    # What is probed is (x - mean) / scale; moving and shrinking the last layer by hand changes
    # neither that nor, to rounding, any error or loss of its probe.
    images, labels = synthetic(150)
    small, plain = DeepMLP(3), DeepMLP(3)
    last = small.layers[2][0]
    with torch.no_grad():
        last.weight *= 1e-12
    losses = []
    for name, model in (("small", small), ("plain", plain)):
        paths = deep_mlp.load_or_train(tmp_path / name, model, images, labels, [0])
        history = deep_figure.probe(model, paths, images, labels, tmp_path / f"{name}_probes")
        assert [p.status.name for p in history[0].values()] == ["CERTIFIED"] * 4
        losses.append([p.loss for p in history[0].values()])
    assert losses[0] == pytest.approx(losses[1], abs=2e-3)  # two optima to their tolerance


def test_standard_keeps_what_a_large_mean_would_hide() -> None:
    x = torch.randn(400, 3, generator=torch.Generator().manual_seed(0))
    standard = deep_figure.Standard(3)
    standard.measure(1e-10 * x + 1.0)  # below float32's resolution at 1: what is left is constant
    assert standard.scale == 1.0
    moved = 1e-4 * x + 1.0
    standard.measure(moved)
    out = standard(moved).double()
    assert abs(float(out.mean())) < 1e-3
    assert float(out.var(0, correction=0).mean()) == pytest.approx(1.0, abs=1e-3)
    expected = moved.double() - moved.double().mean(0)
    scale = expected.square().mean().sqrt()
    torch.testing.assert_close(out, expected / scale, rtol=0, atol=1e-3)


def test_conditional_entropy_is_exact() -> None:
    # Values a a b c: P(Y | a) is the mean of (1, 0) and (1/2, 1/2), and so (3/4, 1/4).
    layer = np.array([[0.25, 1.0], [0.25, 1.0], [0.0, 1.0], [0.0, 0.75]])
    p = np.array([[1, 0], [0.5, 0.5], [0.5, 0.5], [0, 1]])
    found, values = information.conditional_entropy(layer, p)
    of_a = -(0.75 * np.log2(0.75) + 0.25 * np.log2(0.25))
    assert values == 3
    assert found == pytest.approx(0.5 * of_a + 0.25 * 1.0, rel=1e-12)


def test_a_rounded_layer_is_a_function_of_the_one_before_it() -> None:
    x, _ = information.distribution()
    model, group = information.network(), np.arange(len(x))
    for layer in model[:-1]:
        x = layer(x)
        assert torch.equal(4 * x.detach(), torch.round(4 * x.detach()))
        _, new = np.unique(x.detach().numpy(), axis=0, return_inverse=True)
        pairs = len(np.unique(np.stack([group, new]), axis=1).T)
        assert pairs == len(np.unique(group))  # each old value has one new value
        group = new
