"""The example network is trained as TensorFlow's: its schedule, its updates, and its seed."""

from __future__ import annotations

import os

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from convexprobe.datasets.mnist import mnist
from examples import mnist_convnet as convnet
from tests.examples.images import assert_same, parameters, synthetic


@pytest.mark.parametrize(
    ("step", "rate", "start"),
    [
        (0, 0.01, 0),
        (1, 0.01, 64),
        (858, 0.01, 858 * 64),  # 54 912: the last start of the first round
        (859, 0.01, 40),  # 54 976 = 54 936 + 40: the rows are left before the epoch is over
        (860, 0.0095, 104),  # 55 040 >= 55 000: a new epoch
        (8592, 0.01 * 0.95**9, 549_888 % 54_936),
    ],
)
def test_schedule_of_the_tutorial(step: int, rate: float, start: int) -> None:
    assert convnet.schedule(step, 55_000) == (pytest.approx(rate, rel=1e-12), start)


def test_ten_epochs_are_8593_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[tuple[int, int]] = []

    class Reached(Exception):
        pass

    def schedule(step: int, rows: int) -> tuple[float, int]:
        asked.append((step, rows))
        raise Reached

    lengths: list[int] = []

    def bar(steps: range, **_: object) -> range:
        lengths.append(len(steps))
        return steps

    monkeypatch.setattr(convnet, "schedule", schedule)
    monkeypatch.setattr(convnet, "tqdm", bar)
    images, labels = np.zeros((55_000, 28, 28), np.uint8), np.zeros(55_000, np.int64)
    with pytest.raises(Reached):
        convnet.train(convnet.ConvNet(), images, labels)
    assert lengths == [8593]
    assert asked == [(0, 55_000)]


def reference_step(
    w: dict[str, Tensor],
    v: dict[str, Tensor],
    images: np.ndarray,
    labels: np.ndarray,
    mask: Tensor,
    rate: float,
) -> float:
    """One step of the tutorial in float64, from its text; `mask` is what its dropout keeps."""
    for value in w.values():
        value.requires_grad_()
    x = (torch.from_numpy(images).double()[:, None] - 127.5) / 255
    for layer in ("conv1_preact", "conv2_preact"):
        x = F.conv2d(x, w[f"{layer}.weight"], w[f"{layer}.bias"], padding="same")
        x = F.max_pool2d(x.relu(), 2, stride=2)
    x = (x.flatten(1) @ w["fc1_preact.weight"].T + w["fc1_preact.bias"]).relu()
    z = (x * mask / 0.5) @ w["logits.weight"].T + w["logits.bias"]
    loss = (z.logsumexp(1) - z[torch.arange(len(z)), torch.from_numpy(labels)]).mean()
    for name, value in w.items():
        if name.startswith(("fc1", "logits")):
            loss = loss + 5e-4 * (value**2).sum() / 2
    gradients = torch.autograd.grad(loss, list(w.values()))
    for (name, value), gradient in zip(w.items(), gradients, strict=True):
        v[name] = 0.9 * v[name] + gradient
        w[name] = value.detach() - rate * v[name]
    return float(loss.detach())


def test_two_steps_equal_the_reference(monkeypatch: pytest.MonkeyPatch) -> None:
    # in float64, because float32's rounding moves the maximum of one pooling window here, and with
    # it 0.1 % of the first layer's gradient; normalise is the one place that fixes the dtype
    normalise = convnet.normalise
    monkeypatch.setattr(convnet, "normalise", lambda images: normalise(images).double())
    # 100 rows: the second minibatch starts at 64 mod 36 = 28, as after a first round
    images, labels = synthetic(100)
    model = convnet.ConvNet().double()
    start = parameters(model)
    masks: list[Tensor] = []
    # where the input of the dropout is 0, its mask has no effect
    model.dropout.register_forward_hook(lambda _m, _i, out: masks.append((out != 0).double()))
    losses: list[float] = []
    convnet.train(model, images, labels, epochs=1.28, callback=lambda _, loss: losses.append(loss))
    assert len(masks) == len(losses) == 2

    w = {name: value.clone() for name, value in start.items()}
    v = {name: torch.zeros_like(value) for name, value in w.items()}
    expected = [
        reference_step(w, v, images[first : first + 64], labels[first : first + 64], mask, 0.01)
        for first, mask in zip((0, 28), masks, strict=True)
    ]
    # the images were divided in float32, the reference's in float64
    assert losses == pytest.approx(expected, rel=1e-6)
    for name, value in model.named_parameters():
        moved, wanted = value.detach() - start[name], w[name] - start[name]
        assert (moved - wanted).norm() < 1e-5 * wanted.norm(), name


def test_the_rate_falls_with_the_epochs() -> None:
    # from zero, everything but the biases of the logits stays zero: ten numbers to follow by hand
    images, labels = synthetic(100)
    model = convnet.ConvNet()
    for p in model.parameters():
        nn.init.zeros_(p)
    path = [torch.zeros(10)]
    convnet.train(
        model,
        images,
        labels,
        epochs=6.5,
        callback=lambda *_: path.append(model.logits.bias.detach().clone()),
    )
    assert len(path) == 11
    b, v = torch.zeros(10, dtype=torch.float64), torch.zeros(10, dtype=torch.float64)
    for step, found in enumerate(path[1:]):
        first = step * 64 % 36
        counts = np.bincount(labels[first : first + 64], minlength=10)
        v = 0.9 * v + b.softmax(0) - torch.from_numpy(counts / 64) + 5e-4 * b
        b = b - 0.01 * 0.95 ** (step * 64 // 100) * v
        torch.testing.assert_close(found.double(), b, rtol=1e-4, atol=1e-7)


def test_thirty_steps_learn() -> None:
    images, labels = synthetic(320)
    model = convnet.ConvNet()
    before = convnet.test_error(model, images, labels)
    losses: list[float] = []
    steps: list[int] = []

    def record(step: int, loss: float) -> None:
        steps.append(step)
        losses.append(loss)

    convnet.train(model, images, labels, epochs=6, callback=record)
    assert steps == list(range(1, 31))
    assert np.mean(losses[-5:]) < np.mean(losses[:5]) - 1
    assert convnet.test_error(model, images, labels) < before / 2
    assert not model.training


def trained(seed: int, disturb: bool = False) -> dict[str, Tensor]:
    images, labels = synthetic(70)
    model = convnet.ConvNet()

    def draw(step: int, loss: float) -> None:
        if disturb:
            torch.rand(step)
            convnet.test_error(model.eval(), images, labels)

    convnet.train(model, images, labels, epochs=2.8, seed=seed, callback=draw)  # 3 steps
    return parameters(model)


def legacy_state() -> np.ndarray:
    state = np.random.get_state(legacy=True)  # noqa: NPY002
    assert isinstance(state, tuple)
    return state[1]


def test_training_depends_on_the_seed_alone_and_disturbs_nothing() -> None:
    torch_state, numpy_state = torch.get_rng_state(), legacy_state()
    first = trained(seed=1)
    assert torch.equal(torch.get_rng_state(), torch_state)
    np.testing.assert_array_equal(legacy_state(), numpy_state)
    torch.rand(1)
    assert_same(trained(seed=1), first)
    assert_same(trained(seed=1, disturb=True), first)
    assert not torch.equal(trained(seed=2)["logits.weight"], first["logits.weight"])


def test_no_epochs_leave_the_network_as_it_was() -> None:
    model = convnet.ConvNet()
    convnet.train(model, *synthetic(70), epochs=0)
    assert_same(parameters(model), parameters(convnet.ConvNet()))


@pytest.mark.parametrize(
    ("n", "labels", "epochs", "message"),
    [
        (64, np.zeros(64, np.int64), 1, "expected more than 64 images.*found 64"),
        (70, np.zeros(69, np.int64), 1, r"found 70, labels of shape \(69,\)"),
        (70, np.full(70, 10), 1, "a label from 0 to 9"),
        (70, np.zeros(70, np.int64), -1, "epochs: expected a finite number >= 0, found -1"),
        (70, np.zeros(70, np.int64), float("nan"), "found nan"),
    ],
)
def test_train_refuses_at_the_door(n: int, labels: np.ndarray, epochs: float, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        convnet.train(convnet.ConvNet(), synthetic(n)[0], labels, epochs=epochs)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_training_on_a_gpu_depends_on_the_seed_alone_and_disturbs_nothing() -> None:
    images, labels = synthetic(70)
    masks: list[Tensor] = []
    for _ in range(2):
        torch.rand(1, device="cuda")
        states = torch.get_rng_state(), torch.cuda.get_rng_state()
        model = convnet.ConvNet().cuda()
        model.dropout.register_forward_hook(lambda _m, _i, out: masks.append(out == 0))
        convnet.train(model, images, labels, epochs=1)  # one step, hence the same weights before
        assert torch.equal(torch.get_rng_state(), states[0])
        assert torch.equal(torch.cuda.get_rng_state(), states[1])
        assert 0 <= convnet.test_error(model, images, labels) <= 1
    assert (masks[0] != masks[1]).float().mean() < 1e-3  # but for units within rounding of 0


@pytest.mark.skipif(
    not os.environ.get("CONVEXPROBE_DATA"), reason="CONVEXPROBE_DATA names no directory with MNIST"
)
def test_twenty_steps_on_mnist() -> None:
    images, labels = (rows[convnet.VALIDATION_ROWS :] for rows in mnist("train"))
    test_images, test_labels = (rows[:1_000] for rows in mnist("test"))
    model = convnet.ConvNet()
    assert convnet.test_error(model, test_images, test_labels) > 0.7
    convnet.train(model, images, labels, epochs=20.5 * 64 / 55_000)
    # 0.34 was seen after 20 of the 8 593 steps
    assert convnet.test_error(model, test_images, test_labels) < 0.5
