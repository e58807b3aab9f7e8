"""The ImageNet example on a folder of a few generated images."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

from examples.inception_imagenet import BLOCKS, Folder, inception, main


def stand_in(classes: int) -> nn.Module:
    """Small layers under the names of Inception's blocks."""
    model = nn.Sequential()
    for block in BLOCKS[:-2]:
        made = nn.Sequential(nn.Conv2d(3, 3, 3, padding=1), nn.ReLU())
        model.add_module(block, nn.MaxPool2d(3, 1, 1) if "pool" in block else made)
    model.add_module("avgpool", nn.AdaptiveAvgPool2d(1))
    model.add_module("flatten", nn.Flatten())
    model.add_module("fc", nn.Linear(3, classes))
    return model


@pytest.fixture
def images(tmp_path: Path) -> Path:
    """Two classes, eight images each for training and four for testing, of uneven sizes."""
    rng = np.random.default_rng(0)
    for part, count in (("train", 8), ("val", 4)):
        for name, shade in (("cat", 90), ("dog", 160)):
            folder = tmp_path / "images" / part / name
            folder.mkdir(parents=True)
            (folder / "notes.txt").write_text("no image")
            for i in range(count):
                noise = rng.integers(shade - 80, shade + 80, (90 + i, 120, 3))
                Image.fromarray(noise.astype(np.uint8)).save(folder / f"{i}.png")
    return tmp_path / "images"


def has_torchvision() -> bool:
    try:
        import torchvision  # noqa: F401 (built for another torch, it fails here)
    except (ImportError, RuntimeError):
        return False
    return True


def networks() -> list[tuple[Callable[[int], nn.Module], int]]:
    """Each network, and the side of its images."""
    return [(stand_in, 32), *([(inception, 75)] if has_torchvision() else [])]


@pytest.mark.parametrize(("network", "size"), networks())
@pytest.mark.parametrize("options", [[], ["--features", "5"]])
def test_a_sweep_over_checkpoints(
    network: Callable[[int], nn.Module],
    size: int,
    options: list[str],
    images: Path,
    tmp_path: Path,
) -> None:
    folder = tmp_path / "checkpoints"
    folder.mkdir()
    for step in (0, 100):
        with torch.random.fork_rng([]):
            torch.manual_seed(step)
            torch.save(network(2).state_dict(), folder / f"step_{step}.pt")
    out = tmp_path / "out"
    command = [str(images), str(folder), "--out", str(out), "--size", str(size), "--l2", "0.1"]
    history = main([*command, *options], network)
    assert history.layers == BLOCKS and list(history) == [0, 100] and not history.failures
    assert all(p.status.name == "CERTIFIED" for step in history for p in history[step].values())
    if options:
        assert history[0]["Mixed_5b"].weights.shape[1] == 5
    for name in ("layers.png", "heatmap.png", "movie.gif"):
        assert (out / name).stat().st_size > 1000


def test_a_folder_of_classes(images: Path) -> None:
    whole = Folder(images / "train", 32, None)
    x, number = whole[9]
    assert (x.shape, x.dtype, number, len(whole)) == ((3, 32, 32), torch.float32, 1, 16)
    assert whole.classes == ["cat", "dog"]
    parts = [Folder(images / "train", 32, 3, f"{i}/4").images for i in range(4)]
    assert [image for part in parts for image in part] == Folder(images / "train", 32, 3).images
    for bad in (images, images / "none"):
        with pytest.raises(ValueError, match=r"expected (two folders|a folder)"):
            Folder(bad, 32, None)


@pytest.mark.skipif(has_torchvision(), reason="torchvision is there")
def test_what_to_install_is_said() -> None:
    with pytest.raises(SystemExit, match="torchvision is needed"):
        inception(2)
