"""The example network is TensorFlow's: its shapes, its initialisation, and its file."""

from __future__ import annotations

import importlib
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from examples import mnist_convnet as convnet
from tests.examples.images import assert_same, parameters, synthetic

EXAMPLES = Path(__file__).resolve().parents[2] / "examples"
SHAPES = {
    "input": (1, 28, 28),
    "conv1_preact": (32, 28, 28),
    "conv1_postact": (32, 28, 28),
    "conv1_postpool": (32, 14, 14),
    "conv2_preact": (64, 14, 14),
    "conv2_postact": (64, 14, 14),
    "conv2_postpool": (64, 7, 7),
    "fc1_preact": (512,),
    "fc1_postact": (512,),
    "logits": (10,),
}


def test_ten_probe_points_can_be_hooked() -> None:
    model = convnet.ConvNet().eval()
    seen: dict[str, Tensor] = {}
    modules = dict(model.named_modules())
    for name in convnet.PROBE_POINTS:
        modules[name].register_forward_hook(lambda _m, _i, out, name=name: seen.update({name: out}))
    x = convnet.normalise(synthetic(3)[0])
    logits = model(x)
    assert {name: tuple(value.shape[1:]) for name, value in seen.items()} == SHAPES
    assert tuple(SHAPES) == convnet.PROBE_POINTS
    # a ReLU in place would have changed what the hook before it kept
    for block in ("conv1", "conv2", "fc1"):
        assert (seen[f"{block}_preact"] < 0).any()
        assert torch.equal(seen[f"{block}_preact"].relu(), seen[f"{block}_postact"])
    assert torch.equal(seen["input"], x)
    assert torch.equal(seen["logits"], logits)


def test_parameter_count() -> None:
    count = sum(p.numel() for p in convnet.ConvNet().parameters())
    assert count == (25 * 32 + 32) + (25 * 32 * 64 + 64) + (3136 * 512 + 512) + (512 * 10 + 10)


def test_initialisation() -> None:
    values = parameters(convnet.ConvNet())
    biases = {name: value for name, value in values.items() if name.endswith("bias")}
    assert len(biases) == 4
    for name, value in biases.items():
        assert (value == (0.0 if name == "conv1_preact.bias" else 0.1)).all(), name
    # a normal cut at two standard deviations keeps 0.87963 of its standard deviation
    for name in values.keys() - biases.keys():
        weight = values[name].double()
        assert weight.abs().max() <= 0.2
        # five standard errors of a mean and, the kurtosis being below 3, of a standard deviation
        error = 5 * 0.087963 / weight.numel() ** 0.5
        assert abs(weight.mean()) < error
        assert abs(weight.std() - 0.087963) < error


def test_weights_depend_on_the_seed_alone() -> None:
    state = torch.get_rng_state()
    first = parameters(convnet.ConvNet(3))
    assert torch.equal(torch.get_rng_state(), state)
    torch.rand(1)
    assert_same(parameters(convnet.ConvNet(3)), first)
    other = parameters(convnet.ConvNet(4))
    assert not torch.equal(other["logits.weight"], first["logits.weight"])


def test_normalise() -> None:
    images = np.zeros((2, 28, 28), dtype=np.uint8)
    images[1] = 255
    images.flags.writeable = False  # as a memory map would be
    x = convnet.normalise(images)
    assert x.shape == (2, 1, 28, 28)
    assert x.dtype == torch.float32
    assert (x[0] == -0.5).all()
    assert (x[1] == 0.5).all()


@pytest.mark.parametrize(
    "images", [np.zeros((2, 28, 28), np.float32), np.zeros((2, 784), np.uint8)]
)
def test_normalise_refuses_what_is_not_raw_images(images: np.ndarray) -> None:
    with pytest.raises(ValueError, match=r"expected uint8 \(n, 28, 28\), found \w+ \(2, "):
        convnet.normalise(images)


def test_test_error_counts_and_keeps_the_mode() -> None:
    images, _ = synthetic(1_001)  # more than one block
    model = nn.Sequential(nn.Flatten(), nn.Dropout(0.5), nn.Linear(784, 10))
    predicted = model[2](convnet.normalise(images).flatten(1)).argmax(1).numpy()
    assert convnet.test_error(model, images, predicted) == 0
    wrong = predicted.copy()
    wrong[[0, 999, 1_000]] += 1
    assert convnet.test_error(model, images, wrong) == pytest.approx(3 / 1_001)
    assert model.training


def test_cache_round_trip(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "new" / "convnet.pt"
    images, labels = synthetic(70)
    first = convnet.load_or_train(path, images, labels, epochs=1, seed=5)
    assert [p.name for p in path.parent.iterdir()] == ["convnet.pt"]

    def fail(*_: object, **__: object) -> None:
        raise AssertionError("trained again")

    monkeypatch.setattr(convnet, "train", fail)
    second = convnet.load_or_train(path, images, labels.astype(np.uint8), epochs=1.0, seed=5)
    assert_same(parameters(second), parameters(first))
    assert not first.training
    assert not second.training


@pytest.mark.parametrize("change", ["epochs", "seed", "rows", "images", "labels"])
def test_a_cache_is_never_mistaken_for_another(tmp_path: Path, change: str) -> None:
    path = tmp_path / "convnet.pt"
    images, labels = synthetic(70)
    convnet.load_or_train(path, images, labels, epochs=0, seed=5)
    content = path.read_bytes()
    settings = {"epochs": 0.0, "seed": 5}
    if change in settings:
        settings[change] += 1
    elif change == "rows":
        images, labels = images[1:], labels[1:]
    elif change == "images":
        images[3, 14, 14] ^= 1
    else:
        labels[0] = (labels[0] + 1) % 10
    with pytest.raises(ValueError) as caught:
        convnet.load_or_train(path, images, labels, **settings)
    for word in (str(path), "expected {'epochs'", "found {'epochs'", "delete it to retrain"):
        assert word in str(caught.value)
    assert path.read_bytes() == content


def test_a_foreign_file_is_refused_and_kept(tmp_path: Path) -> None:
    path = tmp_path / "convnet.pt"
    path.write_bytes(b"notes")
    with pytest.raises(ValueError, match=r"convnet\.pt: expected a file of load_or_train"):
        convnet.load_or_train(path, *synthetic(70), epochs=0)
    assert path.read_bytes() == b"notes"
    torch.save(convnet.ConvNet().state_dict(), path)
    with pytest.raises(ValueError, match="expected a file of load_or_train"):
        convnet.load_or_train(path, *synthetic(70), epochs=0)


def test_a_kill_while_writing_leaves_no_cache(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "convnet.pt"

    def killed(_: object, temporary: Path) -> None:
        temporary.write_bytes(b"half")
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(torch, "save", killed)
        with pytest.raises(KeyboardInterrupt):
            convnet.load_or_train(path, *synthetic(70), epochs=0)
    assert not path.exists()
    convnet.load_or_train(path, *synthetic(70), epochs=0)
    assert path.exists()


def test_imports_as_a_script_and_as_part_of_a_package(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(EXAMPLES)
    monkeypatch.syspath_prepend(EXAMPLES.parent)
    for name in ("mnist_convnet", "examples.mnist_convnet"):
        module = importlib.import_module(name)
        assert Path(str(module.__file__)) == EXAMPLES / "mnist_convnet.py"
