"""Probe every block of Inception v3 at every checkpoint of its training on ImageNet.

    python examples/inception_imagenet.py IMAGENET CHECKPOINTS --out out
    torchrun --nproc-per-node 8 examples/inception_imagenet.py IMAGENET CHECKPOINTS --out out

IMAGENET holds `train/<class>/<image>` and `val/<class>/<image>`. CHECKPOINTS holds state dicts of
torchvision's `inception_v3`, in files that `convexprobe/training/checkpoints.py` describes. Every
block is averaged over its positions. With `--features 1000` that many of its activations, a fixed
random choice, are kept instead, as in the later version of the paper. Under torchrun every rank
decodes, runs and holds its share of the images.

Needs the version and build (CPU or CUDA) of torchvision that belong to the installed torch: 0.28
for torch 2.13. All blocks together have 13 752 float32 features a row: 70 GB for all of ImageNet,
divided among the ranks. `--per-class` takes fewer images.

Writes the records of `probe_checkpoints`, `layers.png`, `heatmap.png` and `movie.gif`. After a kill
the same command continues where it was.
"""

from __future__ import annotations

import argparse
import os
from collections.abc import Callable
from pathlib import Path

import matplotlib

matplotlib.use("Agg")
import numpy as np
import torch
import torch.distributed as dist
from PIL import Image
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset

import convexprobe as cxp

BLOCKS = (
    "Conv2d_1a_3x3", "Conv2d_2a_3x3", "Conv2d_2b_3x3", "maxpool1", "Conv2d_3b_1x1",
    "Conv2d_4a_3x3", "maxpool2", "Mixed_5b", "Mixed_5c", "Mixed_5d", "Mixed_6a", "Mixed_6b",
    "Mixed_6c", "Mixed_6d", "Mixed_6e", "Mixed_7a", "Mixed_7b", "Mixed_7c", "avgpool", "fc",
)  # fmt: skip
SUFFIXES = (".jpeg", ".jpg", ".png")
MEAN, DEVIATION = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


class Folder(Dataset[tuple[Tensor, int]]):
    """Normalised float32 images `(3, size, size)` and the numbers of their classes.

    Args:
        root: folder of `<class>/<image>`; classes are numbered in the order of their names.
        size: side in pixels of the central square that is cut out; the image is first scaled so
            that its shorter side is 8/7 of this.
        per_class: how many images of a class to take, the first by name; None takes all.
        part: share of the images, "i/n" counted from 0.

    Raises:
        ValueError: there is no such folder, or fewer than two classes have images.
    """

    def __init__(self, root: Path, size: int, per_class: int | None, part: str = "0/1") -> None:
        if not root.is_dir():
            raise ValueError(f"expected a folder of classes, found no {str(root)!r}")
        self.size = size
        self.classes = sorted(path.name for path in root.iterdir() if path.is_dir())
        labelled = []
        for number, name in enumerate(self.classes):
            images = (p for p in (root / name).iterdir() if p.suffix.lower() in SUFFIXES)
            labelled += [(path, number) for path in sorted(images)[:per_class]]
        if len({number for _, number in labelled}) < 2:
            raise ValueError(f"{str(root)!r}: expected two folders with images or more")
        self.images = cxp.shard(labelled, part)

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        path, number = self.images[index]
        with Image.open(path) as image:
            shorter = self.size * 8 // 7
            scale = shorter / min(image.size)
            whole = image.convert("RGB").resize(
                [max(shorter, round(scale * s)) for s in image.size]
            )
        left, top = ((side - self.size) // 2 for side in whole.size)
        pixels = np.asarray(whole.crop((left, top, left + self.size, top + self.size)), np.float32)
        x = (torch.from_numpy(pixels / 255) - torch.tensor(MEAN)) / torch.tensor(DEVIATION)
        return x.permute(2, 0, 1).contiguous(), number


def inception(classes: int) -> nn.Module:
    """Make torchvision's Inception v3 without trained weights."""
    try:
        from torchvision.models import inception_v3
    except (ImportError, RuntimeError) as error:  # RuntimeError if it is built for another torch
        raise SystemExit(
            f"torchvision is needed and could not be imported ({error}); install the version and "
            f"build that belong to torch {torch.__version__} (0.28 for torch 2.13, CPU or CUDA)"
        ) from error
    return inception_v3(weights=None, init_weights=False, num_classes=classes)


def main(
    arguments: list[str] | None = None, network: Callable[[int], nn.Module] = inception
) -> cxp.ProbeHistory:
    """Run the whole sweep; `network` makes the model, given the number of classes."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("imagenet", type=Path)
    parser.add_argument("checkpoints", type=Path)
    parser.add_argument("--out", type=Path, default=Path("out"))
    parser.add_argument("--features", type=int, help="random activations of a block; else its mean")
    parser.add_argument("--per-class", type=int, help="most images of a class")
    parser.add_argument("--size", type=int, default=299, help="side of an image, pixels")
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--workers", type=int, default=0, help="processes that decode images")
    parser.add_argument("--l2", type=float, help="the penalty; by default chosen for each block")
    parser.add_argument("--tol", type=float, default=1e-3)
    settings = parser.parse_args(arguments)

    ranks, rank, group = 1, 0, None
    if "TORCHELASTIC_RUN_ID" in os.environ:
        dist.init_process_group("nccl" if torch.cuda.is_available() else "gloo")
        ranks, rank, group = dist.get_world_size(), dist.get_rank(), "world"
    device = torch.device("cpu")
    if torch.cuda.is_available():
        device = torch.device("cuda", int(os.environ.get("LOCAL_RANK", 0)))
        torch.cuda.set_device(device)

    def loader(name: str) -> DataLoader:
        folder = Folder(
            settings.imagenet / name, settings.size, settings.per_class, f"{rank}/{ranks}"
        )
        return DataLoader(folder, settings.batch, num_workers=settings.workers)

    train = loader("train")
    model = network(len(train.dataset.classes)).to(device)
    reduced = cxp.random_features(settings.features) if settings.features else "spatial_mean"
    history = cxp.probe_checkpoints(
        model, settings.checkpoints, train, layers=list(BLOCKS), test=loader("val"),
        pool={"avgpool": "flatten", "fc": "flatten", "**": reduced},
        out=settings.out / "records", l2="auto" if settings.l2 is None else settings.l2,
        tol=settings.tol, process_group=group,
    )  # fmt: skip
    if rank == 0:
        print(history)
        history.plot_layers().figure.savefig(settings.out / "layers.png", dpi=150)
        history.plot_heatmap().figure.savefig(settings.out / "heatmap.png", dpi=150)
        history.animate(settings.out / "movie.gif")
    if group is not None:
        dist.destroy_process_group()
    return history


if __name__ == "__main__":
    main()
