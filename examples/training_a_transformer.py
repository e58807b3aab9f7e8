"""Train a two-block transformer on a small grammar, and probe it live: what is learned when, where?

    python examples/training_a_transformer.py [--out out] [--quick]

The model reads the statements of `examples/grammar.py` from left to right and learns to tell the
next word. Fifty times on the way every word's embedding and the outputs of both blocks are probed
for what the words so far tell:

    part of speech       of the word itself: its type tells it
    next part of speech  what the model is trained for, less the word
    tense so far         of the verbs up to here, "none" before the first
    negation so far      whether a "not" or "never" has come

Prints the first step at which each layer has come nine tenths of the way, and writes
`training_a_transformer.png` (the error on other statements by step) and `.gif` (by layer, a frame a
step). Takes about two minutes of one core and downloads nothing.
"""

from __future__ import annotations

import argparse
import sys
import time
from itertools import accumulate
from pathlib import Path

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import numpy as np
import torch
from torch import Tensor, nn

import convexprobe as cxp

sys.path.insert(0, str(Path(__file__).parents[1]))  # run as a script, from anywhere
from examples.grammar import TAGS, Statement, statements

PAD, IGNORED = 0, -100
TENSES = ("none", "present", "past")
CONCEPTS = ("part of speech", "next part of speech", "tense so far", "negation so far")
LAYERS = {"embedding": "embedding", "blocks.layers.0": "block 0", "blocks.layers.1": "block 1"}


class Transformer(nn.Module):
    """Words `(n, t)` to the logits of the next words `(n, t, vocabulary)`."""

    def __init__(self, vocabulary: int, longest: int, width: int = 32) -> None:
        super().__init__()
        self.embedding = nn.Embedding(vocabulary, width, padding_idx=PAD)
        self.position = nn.Parameter(0.1 * torch.randn(longest, width))
        block = nn.TransformerEncoderLayer(
            width, 4, 4 * width, dropout=0.0, batch_first=True, norm_first=True
        )
        self.blocks = nn.TransformerEncoder(block, 2, enable_nested_tensor=False)
        self.head = nn.Linear(width, vocabulary)

    def forward(self, words: Tensor) -> Tensor:
        length = words.shape[1]
        mask = torch.ones(length, length, dtype=torch.bool).triu(1)
        x = self.embedding(words) + self.position[:length]
        return self.head(self.blocks(x, mask=mask, is_causal=True))


def labels_of(made: Statement) -> dict[str, list[int]]:
    """The label of every word by concept, of the words so far."""
    tags = [TAGS.index(word.tag) for word in made.words]
    tenses = [TENSES.index(word.tense) for word in made.words]
    negations = [int(word.tag == "negation") for word in made.words]
    coming = [*tags[1:], len(TAGS)]  # after the stop comes the end
    values = (tags, coming, list(accumulate(tenses, max)), list(accumulate(negations, max)))
    return dict(zip(CONCEPTS, values, strict=True))


def padded(rows: list[list[int]], longest: int, value: int) -> Tensor:
    """The rows `(n, longest)`, with the value behind their ends."""
    return torch.tensor([row + [value] * (longest - len(row)) for row in rows])


def arrays(made: list[Statement], index: dict[str, int], longest: int) -> tuple[Tensor, dict]:
    """The words `(n, t)` of statements, and their labels `(n, t)` by concept."""
    words = [[index[word.text] for word in one.words] for one in made]
    each = [labels_of(one) for one in made]
    labels = {
        name: padded([one[name] for one in each], longest, IGNORED).numpy() for name in CONCEPTS
    }
    return padded(words, longest, PAD), labels


def draw(curves: dict[tuple[str, str], dict[int, float]], path: Path) -> None:
    """One panel a concept, one curve a layer: the error by step."""
    figure, axes = plt.subplots(1, len(CONCEPTS), figsize=(12.0, 3.0), layout="constrained")
    for ax, concept in zip(axes, CONCEPTS, strict=True):
        for number, (layer, name) in enumerate(LAYERS.items()):
            curve = curves[layer, concept]
            ax.plot([1 + step for step in curve], [100 * e for e in curve.values()],
                    color=plt.get_cmap("viridis")(0.42 * number), label=name)  # fmt: skip
        ax.set_xscale("log")
        ax.set_ylim(bottom=0)
        ax.set_title(concept, fontsize=10)
        ax.set_xlabel("1 + step")
        ax.grid(alpha=0.3)
    axes[0].set_ylabel("error on other statements (%)")
    axes[0].legend(frameon=False, fontsize=8)
    figure.savefig(path, dpi=100)


def steps(last: int, count: int) -> list[int]:
    """So many steps from 0 to the last, denser early."""
    return [max(i, round(last * (i / (count - 1)) ** 3)) for i in range(count)]


def learned(curve: dict[int, float]) -> int:
    """The first step at which nine tenths of the whole fall of an error are behind."""
    first, least = next(iter(curve.values())), min(curve.values())
    return next(step for step, e in curve.items() if e <= least + 0.1 * (first - least))


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--out", type=Path, default=Path("out"))
    parser.add_argument("--quick", action="store_true", help="few steps, in a few seconds")
    settings = parser.parse_args()
    settings.out.mkdir(parents=True, exist_ok=True)
    name = "training_a_transformer" + ("_quick" if settings.quick else "")
    last, points, probed = (40, 4, 40) if settings.quick else (2000, 50, 250)

    made = statements(2 * probed + (200 if settings.quick else 6000), seed=0)
    index = {w: 1 + i for i, w in enumerate(sorted({w.text for m in made for w in m.words}))}
    longest = max(len(one.words) for one in made)
    fitted = arrays(made[:probed], index, longest)
    held = arrays(made[probed : 2 * probed], index, longest)
    text, _ = arrays(made[2 * probed :], index, longest)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = Transformer(len(index) + 1, longest)
    monitor = cxp.ProbeMonitor(
        *fitted, layers=list(LAYERS), pool="tokens", test=held, l2=1e-4, batch_size=probed
    )
    at = steps(last, points)

    started, probing = time.process_time(), 0.0
    optimiser = torch.optim.AdamW(model.parameters(), lr=2e-3)
    shuffle = torch.Generator().manual_seed(0)
    loss = torch.tensor(np.nan)
    for step in range(last + 1):
        if step in at:
            before = time.process_time()
            monitor.record(model, step)
            probing += time.process_time() - before
        words = text[torch.randint(len(text), (32,), generator=shuffle)]
        logits = model(words[:, :-1])
        loss = nn.functional.cross_entropy(
            logits.flatten(0, 1), words[:, 1:].flatten(), ignore_index=PAD
        )
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
    history = monitor.history
    print(history)
    print(f"loss {loss:.3f} nats a word; {time.process_time() - started:.0f} CPU seconds, "
          f"{probing:.0f} of them probing")  # fmt: skip

    curves: dict[tuple[str, str], dict[int, float]] = {}
    for entry in history.entries:
        for result in entry.layers:
            layer, concept = result.layer.split("/")
            curves.setdefault((layer, concept), {})[entry.step] = result.test_error
    print(f"{'':22s}" + "".join(f"{short:>26s}" for short in LAYERS.values()))
    for concept in CONCEPTS:
        cells = []
        for layer in LAYERS:
            curve = curves[layer, concept]
            ends = [100 * curve[step] for step in (min(curve), max(curve))]
            cells.append(f"{ends[0]:.1f} to {ends[1]:.1f} %, step {learned(curve)}")
        print(f"{concept:22s}" + "".join(f"{cell:>26s}" for cell in cells))
    draw(curves, settings.out / f"{name}.png")
    history.animate(settings.out / f"{name}.gif")
    print(f"wrote {name}.png and {name}.gif in {settings.out}")


if __name__ == "__main__":
    main()
